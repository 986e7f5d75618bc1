"""A tracker's failure does not end a run: what it would have been told stands in the run's files."""

import contextlib
import logging
from collections.abc import Callable, Mapping, Set
from typing import Any

import wandb
from lightning.pytorch.loggers import Logger, MLFlowLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from bora.errors import first_line

log = logging.getLogger(__name__)


class Tracker(Logger):
    """Passes on what is logged, until that fails; then says so, once, and the run goes on without it.

    Args:
        inner: Lightning's logger of W&B, MLflow or TensorBoard.
        logged: names and steps of what it has already, of a run that goes on: they are not logged a second time.
    """

    def __init__(self, inner: Logger, logged: Set[tuple[str, int | None]] = frozenset()) -> None:
        super().__init__()
        self.inner, self.logged, self.failed = inner, logged, False
        self.id = inner.version  # asked for now: a service that died cannot say it

    @property
    def name(self) -> str | None:
        return type(self.inner).__name__.removesuffix("Logger")

    @property
    def version(self) -> int | str | None:
        return self.id

    @property
    def keeps_names(self) -> bool:
        """Whether a metric's name may hold any letter."""
        return isinstance(self.inner, WandbLogger)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        new = {name: value for name, value in metrics.items() if (name, step) not in self.logged}
        self._try(self.inner.log_metrics, new, step)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """They were logged when the tracker began."""

    def save(self) -> None:
        self._try(self.inner.save)

    def finalize(self, status: str) -> None:
        """What a fit's or a test's end means to the logger; the run's own end is `finish`."""
        self._try(self.inner.finalize, status)

    def finish(self, failed: bool) -> None:
        """Close the tracker's run.

        Args:
            failed: an error came out of it. (Lightning knows only of those inside the Trainer.)
        """
        if isinstance(self.inner, WandbLogger):
            if self.failed:  # its service is gone: without this it would say so once more when Python ends
                with contextlib.suppress(Exception):
                    wandb.teardown(1)
            self._try(wandb.finish, exit_code=int(failed))
        elif isinstance(self.inner, MLFlowLogger):
            self._try(self.inner.finalize, "failed" if failed else "success")

    def _try(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        if self.failed:
            return
        try:
            call(*args, **kwargs)
        except Exception as error:
            self.failed = True
            log.warning(
                "%s failed (%s): the run goes on without it; its files have everything",
                self.name, first_line(error),
            )  # fmt: skip
