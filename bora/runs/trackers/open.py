"""Begin a run in the tracker that the config names, and close it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from bora.errors import UserError, first_line
from bora.lib.machine import is_first_process
from bora.runs.trackers.mlflow import start_mlflow
from bora.runs.trackers.tensorboard import start_tensorboard
from bora.runs.trackers.tracker import Start, Tracker
from bora.runs.trackers.wandb import start_wandb

STARTERS: dict[str, Callable[[Any, Start], Tracker]] = {
    "wandb": start_wandb,
    "mlflow": start_mlflow,
    "tensorboard": start_tensorboard,
}


@contextmanager
def open_tracker(settings: Any, start: Start) -> Iterator[Tracker | None]:
    """Begin a run in the tracker that `settings` names, and close it afterwards, as failed if an error was raised.

    Args:
        settings: the config's group `logger`.

    Raises:
        UserError: a package is not installed, a setting is refused, or a server cannot be reached.
    """
    if settings.kind == "none" or not is_first_process():
        yield None
        return
    try:
        tracker = STARTERS[settings.kind](settings, start)
    except (ImportError, RuntimeError) as error:  # a package is broken, or finds no home directory
        raise UserError(
            f"logger={settings.kind} cannot start ({first_line(error)}); fix that, or give logger=none"
        ) from error
    failed = True
    try:
        yield tracker
        failed = False
    finally:  # a sweep's next job must not log to it
        tracker.close(failed)
