"""What a sweep says at its end: τ → perplexity over its finished jobs."""

import logging
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from bora.results.run_directory import SUMMARY, RunDirectory
from bora.results.tables import print_sweep

log = logging.getLogger(__name__)


class SweepTable(Callback):
    """Prints the sweep's table when its last job is done."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        summaries = finished_runs(folder)
        if summaries:
            print_sweep(summaries)
        print(f"sweep directory: {folder.resolve()}")


def finished_runs(folder: Path) -> list[dict[str, Any]]:
    """The summaries below a sweep's folder, each with its run's name as `run`."""
    return [
        {**RunDirectory(file.parent).finished(), "run": file.parent.name}
        for file in sorted(folder.glob(f"*/{SUMMARY}"))
    ]
