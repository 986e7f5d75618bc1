"""What a sweep prints at its end: a row for each τ over its finished jobs, and which jobs failed and why."""

import shlex
import sys
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from bora.commands.tables import print_sweep
from bora.lib.console import short_path
from bora.lib.stopping import stop_jobs_too
from bora.runs.sweep import failed_runs, finished_runs

OFFLINE = "wandb/offline-run-*"  # in a job's folder: runs that W&B has not uploaded


class SweepCallback(Callback):
    """Hydra's callback around a sweep."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        # The folder may hold failures of an earlier sweep with other values, which do not count here.
        self.earlier = {file: failure["written"] for file, failure in failed_runs(Path(config.hydra.sweep.dir)).items()}
        if config.hydra.launcher._target_.endswith((".JoblibLauncher", ".LocalLauncher")):
            stop_jobs_too()  # the jobs are processes on this machine

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Exit with code 2 if every failed job failed because of its input, with 1 after any defect."""
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
