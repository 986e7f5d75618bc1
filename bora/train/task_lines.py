"""A line for each task on the tracker's dashboard: its perplexity and its distance from Θ, epoch by epoch."""

import logging

import lightning as L
from lightning.pytorch.callbacks import Callback

from bora.lib.names import safe_names
from bora.runs.trackers import Tracker
from bora.train.module import TrainingModule

log = logging.getLogger(__name__)


class TaskLines(Callback):
    """Log figures of single tasks to the tracker; they would swamp the columns of metrics.csv.

    Their names are val_perplexity/<task>, test_perplexity/<task> and distance/<task>. W&B takes a task's name as it
    is; the other trackers drop or replace characters, which could merge two tasks, so they get `safe_names`.

    Args:
        tracker: where to log; None for nowhere.
        n_tasks: how many tasks have lines, the first ones; each line is a chart to load.
    """

    def __init__(self, tracker: Tracker | None, n_tasks: int) -> None:
        self.tracker, self.n_tasks = tracker, n_tasks

    def on_fit_start(self, trainer: L.Trainer, module) -> None:
        tasks = len(module.model.tasks)
        if tasks > self.n_tasks and self.tracker is not None:
            log.info(
                "the first %d of %d tasks have lines in the dashboard (logger.task_lines); per_task.csv will have all",
                self.n_tasks,
                tasks,
            )

    def on_validation_epoch_end(self, trainer: L.Trainer, module) -> None:
        self._log(trainer, module, "val")

    def on_test_epoch_end(self, trainer: L.Trainer, module) -> None:
        self._log(trainer, module, "test")

    def _log(self, trainer: L.Trainer, module: TrainingModule, split: str) -> None:
        # The metric sums over processes, so every process asks for it, with or without a tracker.
        # torchmetrics makes a scalar of what a single task gives.
        perplexities = module.metric(split).compute()["task_perplexity"].reshape(-1).tolist()
        if self.tracker is None:
            return
        adapters = module.model.adapters
        names, distances = adapters.task_names, adapters.distances().tolist()
        shown = names if self.tracker.keeps_names else list(safe_names(names).values())
        figures: dict[str, float] = {}
        for i, name in enumerate(shown[: self.n_tasks]):
            figures |= {f"{split}_perplexity/{name}": perplexities[i], f"distance/{name}": distances[i]}
        # As Lightning counts: an epoch's figures stand at its last step, counted from 0.
        self.tracker.log(figures, step=trainer.fit_loop.epoch_loop._batches_that_stepped)
