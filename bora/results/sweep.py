"""What a sweep says at its end: τ → perplexity over its finished jobs, and which jobs failed and why."""

import sys
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from bora.files import write_whole
from bora.redaction import as_yaml, redacted
from bora.results.run_directory import FAILED, SUMMARY, RunDirectory
from bora.results.tables import print_sweep


class Sweep(Callback):
    """Notes what a sweep varies before its first job, and tells how it went."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        # Hydra's basic sweeper writes this file, others do not; the jobs' folders are named by it.
        folder = Path(config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(
            folder / "multirun.yaml", as_yaml(redacted(OmegaConf.to_container(config, enum_to_str=True)))
        )
        # The folder may hold failures of an earlier sweep with other values; they are not this one's.
        self.earlier = failed_runs(folder)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Raises SystemExit with 2 if every failed job failed for its input, with 1 for any defect."""
        folder = Path(config.hydra.sweep.dir)
        summaries = finished_runs(folder)
        if summaries:
            print_sweep(summaries)
        print(f"sweep directory: {folder.resolve()}", flush=True)
        failures = {k: v for k, v in failed_runs(folder).items() if self.earlier.get(k) != v}
        if not failures:
            return
        print(f"bora: {len(failures)} of the sweep's jobs failed:", file=sys.stderr)
        for name, failure in failures.items():
            print(f"bora: {name}: {failure['error']}", file=sys.stderr)
        sys.exit(min(failure["exit_code"] for failure in failures.values()))


def finished_runs(folder: Path) -> list[dict[str, Any]]:
    """The summaries below a sweep's folder, at any depth, each with its run's place there as `run`."""
    return [
        {**RunDirectory(file.parent).summary(), "run": file.parent.relative_to(folder).as_posix()}
        for file in sorted(folder.glob(f"*/**/{SUMMARY}"))
    ]


def failed_runs(folder: Path) -> dict[str, dict[str, Any]]:
    """Failed jobs below a sweep's folder: their place there → failed.json."""
    return {
        file.parent.relative_to(folder).as_posix(): RunDirectory(file.parent).failure()
        for file in sorted(folder.glob(f"*/**/{FAILED}"))
    }
