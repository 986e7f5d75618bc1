"""What a run logs to a tracker: a small base class, with a subclass each for Weights & Biases, MLflow, TensorBoard."""

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from bora.errors import first_line

log = logging.getLogger(__name__)

TRACKED_RUN = "tracked_run"  # key in a checkpoint: the tracker's id of the run, which a resumed run continues
LIMITS = {0.0: -2.0, math.inf: 8.0}  # log10_tau of the limits, since a parallel-coordinates plot needs finite numbers


class Start(NamedTuple):
    """What a tracker needs to begin a run, or to resume it.

    Attributes:
        directory: the run directory.
        group: the same for all runs of a sweep.
        name: the run's name within its group.
        config: nested plain values that JSON can hold.
        tags: words to filter runs by.
        id: the tracker's id of the run being resumed; None for a new run.
        step: optimiser steps done; 0 for a new run.
    """

    directory: Path
    group: str
    name: str
    config: dict[str, Any]
    tags: list[str]
    id: str | None
    step: int


class Tracker(ABC):
    """Log figures to a tracker. If it fails, warn once and continue without it: the run's files hold the same figures.

    Attributes:
        id: the tracker's id of the run; None if it has none.
        keeps_names: whether a figure's name may hold any character.
    """

    id: str | None = None
    keeps_names = False
    failed = False

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Log figures by name, at an optimiser step counted from 0."""
        self._try(self._log, figures, step)

    def summarize(self, figures: Mapping[str, float], step: int) -> None:
        """Log figures of the best epoch, once training has ended: they represent the run in a list of runs."""
        self._try(self._summarize, figures, step)

    def lines(self, name: str, xs: list[int], lines: Mapping[str, list[float]], xname: str) -> None:
        """Show several lines in one chart, in place of an earlier one, if the tracker can."""
        self._try(self._lines, name, xs, lines, xname)

    def table(self, name: str, table: pd.DataFrame) -> None:
        """Show a table."""
        self._try(self._table, name, table)

    def artifact(self, folder: Path, files: Iterable[str]) -> None:
        """Keep files of a folder with the run, if the tracker can."""
        self._try(self._artifact, folder, files)

    def close(self, failed: bool) -> None:
        """End the tracker's run, as failed or as finished."""
        self._try(self._close, failed)

    @property
    def where(self) -> str:
        """Where people can see the run; empty if its figures went nowhere."""
        return ""

    @abstractmethod
    def _log(self, figures: Mapping[str, float], step: int) -> None: ...

    @abstractmethod
    def _table(self, name: str, table: pd.DataFrame) -> None: ...

    @abstractmethod
    def _close(self, failed: bool) -> None: ...

    def _summarize(self, figures: Mapping[str, float], step: int) -> None:
        self._log(figures, step)  # the last value is what a list of runs shows

    def _lines(self, name: str, xs: list[int], lines: Mapping[str, list[float]], xname: str) -> None:  # noqa: B027
        """Do nothing: only W&B has such a chart."""

    def _artifact(self, folder: Path, files: Iterable[str]) -> None:  # noqa: B027
        """Do nothing: TensorBoard keeps no files."""

    def _try(self, call: Callable[..., None], *args: Any) -> None:
        if self.failed:
            return
        try:
            call(*args)
        except Exception as error:
            self.failed = True
            log.warning(
                "%s failed (%s): the run continues without it, and its files hold the same figures",
                type(self).__name__,
                first_line(error),
            )


def log10_tau(tau: float) -> float:
    """Return log₁₀ τ; for the limits 0 and ∞, the numbers in LIMITS."""
    return LIMITS[tau] if tau in LIMITS else math.log10(tau)
