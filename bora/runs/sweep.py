"""What a sweep says at its end: τ → perplexity over its finished jobs, and which jobs failed and why."""

import sys
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from bora.errors import UserError
from bora.lib.console import print_sweep
from bora.lib.files import write_text_atomically
from bora.lib.redaction import as_yaml, redacted
from bora.lib.stopping import passed_on
from bora.runs.directory import FAILED, NAMES, RESULTS, SUMMARY, RunDirectory
from bora.runs.replay import CONFIG


class Sweep(Callback):
    """Notes what a sweep varies before its first job, and tells how it went."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        # Hydra's basic sweeper writes this file, others do not; the jobs' folders are named by it.
        folder = Path(config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        write_text_atomically(
            folder / "multirun.yaml", as_yaml(redacted(OmegaConf.to_container(config, enum_to_str=True)))
        )
        # The folder may hold failures of an earlier sweep with other values; they are not this one's.
        self.earlier = failed_runs(folder)
        if config.hydra.launcher._target_.endswith((".JoblibLauncher", ".LocalLauncher")):
            passed_on.begin()  # the jobs are processes of this machine

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Raises SystemExit with 2 if every failed job failed for its input, with 1 for any defect."""
        folder = Path(config.hydra.sweep.dir)
        summaries, damaged = finished_runs(folder)
        if summaries:
            print_sweep(summaries)
        print(f"sweep directory: {folder.resolve()}", flush=True)
        failures = {k: v for k, v in failed_runs(folder).items() if self.earlier.get(k) != v}
        for line in damaged:
            print(f"bora: {line}", file=sys.stderr)
        if not failures:
            if damaged:
                sys.exit(2)
            return
        print(f"bora: {len(failures)} of the sweep's jobs failed:", file=sys.stderr)
        for name, failure in failures.items():
            print(f"bora: {name}: {failure['error']}", file=sys.stderr)
        sys.exit(min(failure["exit_code"] for failure in failures.values()))


def finished_runs(folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The summaries of the runs below a sweep's folder, at any depth, each with its run's place there as `run`.

    Returns:
        The summaries, and a line for each that is damaged.
    """
    summaries, damaged = [], []
    for file in sorted(folder.glob(f"*/**/{SUMMARY}")):
        directory = RunDirectory(file.parent)
        if not (file.parent / CONFIG).is_file():
            continue  # an evaluation, or whatever else has such a file
        try:
            if "adapted_from" in directory.summary():
                continue  # new tasks of one of the runs: nothing was held out
            summary = directory.summary_with(RESULTS, NAMES)
        except UserError as error:
            damaged.append(str(error))
        else:
            summaries.append({**summary, "run": file.parent.relative_to(folder).as_posix()})
    return summaries, damaged


def failed_runs(folder: Path) -> dict[str, dict[str, Any]]:
    """Failed jobs below a sweep's folder: their place there → failed.json; of one that is damaged, that it is."""
    found = {}
    for file in sorted(folder.glob(f"*/**/{FAILED}")):
        try:
            failure = RunDirectory(file.parent).failure()
        except UserError as error:
            failure = {"error": str(error), "exit_code": 2}
        found[file.parent.relative_to(folder).as_posix()] = failure
    return found
