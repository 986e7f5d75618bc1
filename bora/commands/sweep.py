"""What a sweep prints at its end: a row a τ, over its finished jobs; and which jobs failed and why."""

import math
import shlex
import sys
from pathlib import Path
from typing import Any

import pandas as pd
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from bora.errors import UserError
from bora.lib.console import print_sweep, short_path
from bora.lib.names import format_tau
from bora.lib.stopping import stop_jobs_too
from bora.runs.directory import CONFIG, SUMMARY, RunDirectory, choosing_perplexity
from bora.runs.replay import key_of, read_overrides

FIGURES = ("tau", "seed", "val_perplexity", "test_perplexity", "best_epoch")

OFFLINE = "wandb/offline-run-*"  # in a job's folder: what W&B has not uploaded


class Sweep(Callback):
    """Hydra's callback around a sweep."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        # The folder may hold failures of an earlier sweep with other values; they are not this one's.
        self.earlier = {file: failure["written"] for file, failure in failed_runs(Path(config.hydra.sweep.dir)).items()}
        if config.hydra.launcher._target_.endswith((".JoblibLauncher", ".LocalLauncher")):
            stop_jobs_too()  # the jobs are processes of this machine

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Exit with 2 if every failed job failed by its input, with 1 for any defect."""
        folder = Path(config.hydra.sweep.dir)
        runs, by, unreadable = finished_runs(folder)
        if len(runs):
            print_sweep(runs, by)
        print(f"sweep directory: {folder.resolve()}", flush=True)
        place = shlex.quote(short_path(folder))
        if any(folder.glob(f"*/{OFFLINE}")):
            print(f"W&B: offline; to upload:\n  wandb sync {place}/*/{OFFLINE}", flush=True)
        if len(runs):
            print(f"next:\n  bora report {place}", flush=True)
        failures = {k: v for k, v in failed_runs(folder).items() if v["written"] != self.earlier.get(k)}
        for line in unreadable:
            print(f"bora: {line}", file=sys.stderr)
        if failures:
            print(f"bora: {len(failures)} of the sweep's jobs failed:", file=sys.stderr)
        for file, failure in failures.items():
            print(f"bora: {Path(file).parent}: {failure['error']}", file=sys.stderr)
        codes = [failure["exit_code"] for failure in failures.values()] + [2] * bool(unreadable)
        if codes:
            sys.exit(min(codes))


def finished_runs(folder: Path) -> tuple[pd.DataFrame, list[str], list[str]]:
    """Read the finished runs at or below a folder, at any depth.

    Returns:
        A row a run: FIGURES, with NaN for a τ that was learned, `run`, its place in the folder, and what else the runs'
        overrides vary, as text. The columns that tell one setting from another: tau, and those. A line for each run that
        is not readable.
    """
    rows, overrides, unreadable = [], [], []
    for file in sorted(folder.glob(f"**/{SUMMARY}")):
        if not (file.parent / CONFIG).is_file():
            continue  # an evaluation
        try:
            summary = RunDirectory(file.parent).summary()
            if "adapted_from" in summary:
                continue  # new tasks of one of the runs: nothing was held out
            given = {key_of(word): word.partition("=")[2] for word in read_overrides(file.parent)}
        except UserError as error:
            unreadable.append(str(error))
            continue
        row = {key: summary[key] for key in FIGURES} | {"val_perplexity": choosing_perplexity(summary)}
        row |= {"tau": math.nan} if "learned" in summary else {}
        rows.append(row | {"run": file.parent.relative_to(folder).as_posix()})
        if levels := summary.get("levels"):  # their τ stand behind the tasks' in the override
            given["tau of levels"] = ", ".join(f"{name} {format_tau(tau)}" for name, tau in levels.items())
        overrides.append(
            given | {"documents": summary.get("data_sha256", "")[:6]}
        )  # of a table that was changed meanwhile
    table = pd.DataFrame(overrides, index=range(len(rows)), dtype=str).fillna("")
    varied = [str(key) for key in table if table[key].nunique() > 1 and key not in ("tau", "seed")]
    return pd.DataFrame(rows).join(table[varied]), ["tau", *varied], unreadable


def failed_runs(folder: Path) -> dict[str, dict[str, Any]]:
    """Read what each failed job at or below a folder left, and when it was written, by its file's place there."""
    found = {}
    for file in sorted(folder.glob("**/failed*.json")):
        try:
            failure = RunDirectory(file.parent).failure(file.name)
        except UserError as error:
            failure = {"error": str(error), "exit_code": 2}
        found[file.relative_to(folder).as_posix()] = failure | {"written": file.stat().st_mtime_ns}
    return found
