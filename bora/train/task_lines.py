"""A line a task in the tracker's dashboard: its perplexity and its distance from Θ, epoch by epoch."""

import logging
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from bora.lib.names import safe_names
from bora.runs.tracker import Tracker
from bora.runs.trackers import RUN_ID
from bora.train.module import TrainingModule

log = logging.getLogger(__name__)


class TaskLines(Callback):
    """Logs figures a task to every logger but metrics.csv, whose columns they would swamp.

    Their names are val_perplexity/<task>, test_perplexity/<task> and distance/<task>. W&B takes a task's name as it
    is; the other trackers leave out or replace letters, so that two tasks could become one: they get `safe_names`.

    Args:
        most: tasks with lines of their own, the first so many; each line is a chart to load.
    """

    def __init__(self, most: int) -> None:
        self.most = most

    def on_fit_start(self, trainer: L.Trainer, module) -> None:
        tasks = len(module.model.tasks)
        if tasks > self.most and self._trackers(trainer):
            log.info(
                "the first %d of %d tasks have lines in the dashboard (logger.task_lines); per_task.csv will have all",
                self.most, tasks,
            )  # fmt: skip

    def on_validation_epoch_end(self, trainer: L.Trainer, module) -> None:
        self._log(trainer, module, "val")

    def on_test_epoch_end(self, trainer: L.Trainer, module) -> None:
        self._log(trainer, module, "test")

    def on_save_checkpoint(self, trainer: L.Trainer, module, checkpoint: dict[str, Any]) -> None:
        """Note the tracker's run, for one that goes on, and have it write what it holds back: it is not logged again."""
        for logger in self._trackers(trainer):
            logger.save()
            checkpoint[RUN_ID] = logger.version

    def _log(self, trainer: L.Trainer, module: TrainingModule, split: str) -> None:
        trackers = self._trackers(trainer)
        # The metric sums over processes, so that all of them must ask for it, trackers or not.
        perplexities = module.metric(split).compute()["task_perplexity"].tolist()
        if not trackers:
            return
        adapters = module.model.adapters
        names, distances = adapters.task_names, adapters.distances().tolist()
        safe = safe_names(names)
        for logger in trackers:
            figures: dict[str, float] = {}
            for task, perplexity, distance in list(zip(names, perplexities, distances, strict=True))[
                : self.most
            ]:
                name = task if logger.keeps_names else safe[task]
                figures |= {f"{split}_perplexity/{name}": perplexity, f"distance/{name}": distance}
            # As Lightning counts the others': an epoch's figures stand at its last step, counted from 0.
            logger.log_metrics(figures, step=trainer.fit_loop.epoch_loop._batches_that_stepped)

    @staticmethod
    def _trackers(trainer: L.Trainer) -> list[Tracker]:
        return [logger for logger in trainer.loggers if isinstance(logger, Tracker)]
