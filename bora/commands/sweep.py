"""What a sweep prints at its end: τ → perplexity over its finished jobs, and which jobs failed and why."""

import sys
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from bora.errors import UserError
from bora.lib.console import print_sweep
from bora.lib.stopping import stop_jobs_too
from bora.runs.directory import CONFIG, FAILED, SUMMARY, RunDirectory


class Sweep(Callback):
    """Hydra's callback around a sweep."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        # The folder may hold failures of an earlier sweep with other values; they are not this one's.
        self.earlier = failed_runs(Path(config.hydra.sweep.dir))
        if config.hydra.launcher._target_.endswith((".JoblibLauncher", ".LocalLauncher")):
            stop_jobs_too()  # the jobs are processes of this machine

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Exit with 2 if every failed job failed by its input, with 1 for any defect."""
        folder = Path(config.hydra.sweep.dir)
        summaries, unreadable = finished_runs(folder)
        if summaries:
            print_sweep(summaries)
        print(f"sweep directory: {folder.resolve()}", flush=True)
        failures = {k: v for k, v in failed_runs(folder).items() if self.earlier.get(k) != v}
        for line in unreadable:
            print(f"bora: {line}", file=sys.stderr)
        if failures:
            print(f"bora: {len(failures)} of the sweep's jobs failed:", file=sys.stderr)
        for name, failure in failures.items():
            print(f"bora: {name}: {failure['error']}", file=sys.stderr)
        codes = [failure["exit_code"] for failure in failures.values()] + [2] * bool(unreadable)
        if codes:
            sys.exit(min(codes))


def finished_runs(folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Read the summaries of the runs below a sweep's folder, at any depth, each with its run's place there as `run`.

    Returns:
        The summaries, and a line for each that is not readable.
    """
    summaries, unreadable = [], []
    for file in sorted(folder.glob(f"*/**/{SUMMARY}")):
        if not (file.parent / CONFIG).is_file():
            continue  # an evaluation
        try:
            summary = RunDirectory(file.parent).summary()
        except UserError as error:
            unreadable.append(str(error))
            continue
        if "adapted_from" not in summary:  # new tasks of one of the runs: nothing was held out
            summaries.append({**summary, "run": file.parent.relative_to(folder).as_posix()})
    return summaries, unreadable


def failed_runs(folder: Path) -> dict[str, dict[str, Any]]:
    """Read failed.json of each failed job below a sweep's folder, by the job's place there."""
    found = {}
    for file in sorted(folder.glob(f"*/**/{FAILED}")):
        try:
            failure = RunDirectory(file.parent).failure()
        except UserError as error:
            failure = {"error": str(error), "exit_code": 2}
        found[file.parent.relative_to(folder).as_posix()] = failure
    return found
