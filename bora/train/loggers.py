"""Lightning's view of what a run logs to: metrics.csv, and the trackers."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from bora.runs.metrics import MetricsFile
from bora.runs.trackers import TRACKED_RUN, Tracker


class RunLogger(Logger):
    """Hand figures to metrics.csv and to the trackers.

    Args:
        metrics: None in every process but the first.
        trackers: none in every process but the first.
    """

    def __init__(self, metrics: MetricsFile | None, trackers: Sequence[Tracker]) -> None:
        super().__init__()
        self.metrics, self.trackers = metrics, trackers

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
        for tracker in self.trackers:
            tracker.log(metrics, step)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the trackers have the config."""

    def save(self) -> None:
        for tracker in self.trackers:
            tracker.flush()

    def saved(self) -> dict[str, Any]:
        """Write out what is buffered, and return what a checkpoint notes, so that a resumed run continues both."""
        self.save()
        ids = [tracker.id for tracker in self.trackers if tracker.id is not None]
        noted: dict[str, Any] = {TRACKED_RUN: ids[0]} if ids else {}
        return noted if self.metrics is None else noted | self.metrics.saved()
