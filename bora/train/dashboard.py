"""Show the tasks in a tracker: one chart and one table of all of them, and when the run ends, texts and files."""

import logging
from collections.abc import Callable
from typing import Any

import lightning as L
import pandas as pd
from lightning.pytorch.callbacks import Callback

from bora.lib.names import safe_names
from bora.runs.directory import CONFIG, DOCUMENTS, METRICS, PER_TASK, SUMMARY, SUMS, RunDirectory
from bora.runs.trackers.tracker import Tracker
from bora.train.loggers import RunLogger
from bora.train.module import TrainingModule

log = logging.getLogger(__name__)

MAX_CHART_LINES = 100  # only the first tasks are charted
CHART = "validation perplexity by task"
# The files that bora.load needs, and the run's tables; not last.ckpt, which is as large as best.ckpt.
ARTIFACT = [CONFIG, DOCUMENTS, METRICS, PER_TASK, SUMS, SUMMARY, "checkpoints/best.ckpt"]


class Dashboard(Callback):
    """Record and chart the tasks' perplexity at each validation; optionally log lines for the first tasks.

    The lines' names are val_perplexity/<task>, test_perplexity/<task> and distance/<task>. W&B accepts any task name;
    the other trackers drop or replace characters, which could merge two tasks, so they get `safe_names`.

    Args:
        logger: its tracker, if any, gets the figures.
        n_lines: number of tasks, from the first, with their own lines; each line is a chart to load.
    """

    def __init__(self, logger: RunLogger, n_lines: int) -> None:
        self.logger, self.tracker, self.n_lines = logger, logger.tracker, n_lines
        # For each validation: the epoch, counted from 1, and the tasks' perplexities.
        self.history: list[tuple[int, list[float]]] = []

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history} if self.history else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.history = state["history"]

    def on_fit_end(self, trainer: L.Trainer, module) -> None:
        self.logger.ended = True

    def on_validation_end(self, trainer: L.Trainer, module) -> None:
        perplexities = self._log(trainer, module, "val")
        if self.logger.ended:
            return
        self.history.append((trainer.current_epoch + 1, perplexities))
        if self.tracker is not None:
            epochs, values = zip(*self.history, strict=True)
            charted = module.model.adapters.task_names[:MAX_CHART_LINES]
            lines = dict(zip(charted, map(list, zip(*values, strict=True)), strict=False))
            self.tracker.lines(CHART, list(epochs), lines, "epoch")

    def by_task(self, task_names: list[str]) -> pd.DataFrame:
        """Tabulate validation (counted from 1), epoch, task and val_perplexity: a row for each validation and task."""
        rows = [
            (number, epoch, *each)
            for number, (epoch, perplexities) in enumerate(self.history, start=1)
            for each in zip(task_names, perplexities, strict=False)
        ]
        return pd.DataFrame(rows, columns=["validation", "epoch", "task", "val_perplexity"])

    def on_test_epoch_end(self, trainer: L.Trainer, module) -> None:
        self._log(trainer, module, "test")

    def _log(self, trainer: L.Trainer, module: TrainingModule, split: str) -> list[float]:
        """Log the first tasks' lines, and return all tasks' perplexities."""
        # The metric sums over processes, so every process must compute it, with or without a tracker.
        # For a single task torchmetrics returns a scalar.
        perplexities = module.metric(split).compute()["task_perplexity"].reshape(-1).tolist()
        if self.tracker is None or not self.n_lines:
            return perplexities
        adapters = module.model.adapters
        names, distances = adapters.task_names, adapters.distances().tolist()
        shown = names if self.tracker.keeps_names else list(safe_names(names).values())
        figures: dict[str, float] = {"epoch": trainer.current_epoch}
        for i, name in enumerate(shown[: self.n_lines]):
            figures |= {f"{split}_perplexity/{name}": perplexities[i], f"distance/{name}": distances[i]}
        # As in Lightning, an epoch's figures belong to its last step, counted from 0.
        step = trainer.fit_loop.epoch_loop._batches_that_stepped
        (self.tracker.summarize if self.logger.ended else self.tracker.log)(figures, step)
        return perplexities


def show_end(
    tracker: Tracker, directory: RunDirectory, artifact: bool, samples: Callable[[], pd.DataFrame] | None
) -> None:
    """Show a finished run's best epoch, its table of tasks and sample texts; keep its files if `artifact`.

    Args:
        samples: generates the texts; None for no texts.
    """
    summary = directory.summary()
    best = {"best/epoch": summary["best_epoch"], "best/val_perplexity": summary["val_perplexity"]}
    learned = summary.get("learned", {})
    parts = {"learned": learned} | {f"learned/{name}": part for name, part in learned.get("levels", {}).items()}
    for of, part in parts.items():
        for name in ("tau", "c"):
            ends = zip(("", "_low", "_high"), (part.get(name), *part.get(f"{name}_interval", ())), strict=False)
            best |= {f"{of}/{name}{end}": value for end, value in ends if value is not None}
    tracker.summarize(best, summary["steps"])
    tracker.table("tasks", directory.per_task())
    if samples is not None:
        try:
            tracker.table("samples", samples())
        except Exception as error:  # the run is finished, and complete without them
            log.warning("the tracker has no sample texts: %s", error)
    if artifact:
        tracker.artifact(directory.path, ARTIFACT)
