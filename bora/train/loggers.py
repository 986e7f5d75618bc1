"""The Lightning logger of a run, for metrics.csv and a tracker."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from bora.runs.metrics import MetricsFile
from bora.runs.trackers.tracker import TRACKED_RUN, Tracker


class RunLogger(Logger):
    """Log figures to metrics.csv and to a tracker.

    Args:
        metrics: None in every process but the first.
        tracker: None if none is asked for, and in every process but the first.
    """

    def __init__(self, metrics: MetricsFile | None, tracker: Tracker | None) -> None:
        super().__init__()
        self.metrics, self.tracker = metrics, tracker
        self.ended = False  # whether training has ended; later figures are the best epoch's

    @property
    def name(self) -> None:
        return None

    @property
    def version(self) -> None:
        return None

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        assert self.metrics is not None
        assert step is not None
        self.metrics.append(metrics, step)
        if self.tracker is not None:
            (self.tracker.summarize if self.ended else self.tracker.log)(metrics, step)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the tracker has the config."""

    def saved(self) -> dict[str, Any]:
        """Return the state of both for a checkpoint, so that a resumed run continues them."""
        noted: dict[str, Any] = {} if self.metrics is None else self.metrics.saved()
        if self.tracker is not None and self.tracker.id is not None:
            noted[TRACKED_RUN] = self.tracker.id
        return noted
