"""Weights & Biases, MLflow and TensorBoard behind one small class; each package is imported only where it is used."""

import contextlib
import logging
import os
import re
import shlex
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from bora.config import flatten
from bora.errors import UserError, first_line
from bora.lib.console import short_path
from bora.lib.machine import is_first_process

log = logging.getLogger(__name__)

TRACKED_RUN = "tracked_run"  # in a checkpoint: the tracker's id of the run, which a resumed run continues
WANDB_TIMEOUT_SECONDS = 30
STEP = "trainer/global_step"  # W&B's horizontal axis
Mode = Literal["online", "offline", "disabled"]  # W&B's own names


class Start(NamedTuple):
    """What a tracker needs to begin a run, or to resume it.

    Attributes:
        directory: the run's.
        group: the same for all runs of a sweep.
        name: the run's, within its group.
        config: nested plain values that JSON can hold.
        id: the tracker's id of the run that is resumed; None for a new run.
        step: optimiser steps done; 0 for a new run.
    """

    directory: Path
    group: str
    name: str
    config: dict[str, Any]
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

    def close(self, failed: bool) -> None:
        """End the tracker's run, as failed or as finished."""
        self._try(self._close, failed)

    @property
    def where(self) -> str:
        """Where the run can be seen, for people; empty where its figures went nowhere."""
        return ""

    @abstractmethod
    def _log(self, figures: Mapping[str, float], step: int) -> None: ...

    @abstractmethod
    def _close(self, failed: bool) -> None: ...

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


class Wandb(Tracker):
    """A run of Weights & Biases."""

    keeps_names = True

    def __init__(self, run: Any) -> None:
        self.run, self.id = run, run.id
        run.define_metric(STEP)
        run.define_metric("*", step_metric=STEP, step_sync=True)

    @property
    def where(self) -> str:
        if self.run.disabled:
            return ""
        if self.run.offline:
            return f"W&B: offline; to upload:\n  wandb sync {shlex.quote(short_path(Path(self.run.settings.sync_dir)))}"
        return f"W&B: {self.run.url}"

    def _log(self, figures: Mapping[str, float], step: int) -> None:
        self.run.log({**figures, STEP: step})

    def _close(self, failed: bool) -> None:
        self.run.finish(exit_code=int(failed))

    def close(self, failed: bool) -> None:
        if self.failed:  # its service is gone; without this wandb would report that again when Python exits
            import wandb

            with contextlib.suppress(Exception):
                wandb.teardown(1)
        super().close(failed)


class MLflow(Tracker):
    """A run of MLflow. Figures logged again after a resume stand in its append-only history twice."""

    def __init__(self, client: Any, run_id: str) -> None:
        self.client, self.id = client, run_id

    def _log(self, figures: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())  # milliseconds
        self.client.log_batch(self.id, [Metric(name, value, now, step) for name, value in figures.items()])

    def _close(self, failed: bool) -> None:
        self.client.set_terminated(self.id, "FAILED" if failed else "FINISHED")


class TensorBoard(Tracker):
    """Event files in the run directory's tensorboard/."""

    def __init__(self, writer: Any) -> None:
        self.writer = writer

    def _log(self, figures: Mapping[str, float], step: int) -> None:
        for name, value in figures.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()  # a resumed run continues from the last checkpoint, whose figures must be on disk by then

    def _close(self, failed: bool) -> None:
        self.writer.close()


@contextlib.contextmanager
def open_tracker(settings: Any, start: Start) -> Iterator[Tracker | None]:
    """Begin a run in the tracker that `settings` asks for, and close it afterwards, as failed if an error came out.

    Args:
        settings: the config's group `logger`.

    Raises:
        UserError: a package is not installed, or a server cannot be reached.
    """
    if settings.kind == "none" or not is_first_process():
        yield None
        return
    tracker = STARTERS[settings.kind](settings, start)
    failed = True
    try:
        yield tracker
        failed = False
    finally:  # a sweep's next job must not log to it
        tracker.close(failed)


def start_wandb(settings: Any, start: Start) -> Wandb:
    """Begin a W&B run: offline if nobody is logged in, or if the server cannot be reached and mode is auto."""
    import wandb

    mode = wandb_mode(settings.mode)
    arguments: dict[str, Any] = {
        "name": start.name,
        "dir": start.directory,
        "project": settings.project,
        "entity": settings.entity,
        "group": start.group,
        "id": start.id,
        "resume": "allow",
        "config": start.config,
        "settings": wandb.Settings(console="off", silent=True, init_timeout=WANDB_TIMEOUT_SECONDS),
    }
    try:
        return Wandb(wandb.init(**arguments, mode=mode))
    except wandb.errors.Error as error:
        if settings.mode == "online":
            raise UserError(
                f"logger.mode=online, but W&B cannot be reached ({first_line(error)}); log in with "
                "wandb login, or give logger.mode=offline"
            ) from error
        log.info("W&B cannot be reached (%s): the run is logged offline", first_line(error))
        return Wandb(wandb.init(**arguments, mode="offline"))


def wandb_mode(mode: Literal["auto", "online", "offline"]) -> Mode:
    """Resolve auto: by $WANDB_MODE, else online if the user is logged in, else offline."""
    if mode != "auto":
        return mode
    if environment := os.environ.get("WANDB_MODE"):
        return cast(Mode, environment)
    import wandb

    return "online" if wandb.login(prompt=False, verify=False) else "offline"


def start_mlflow(settings: Any, start: Start) -> MLflow:
    """Begin a run in MLflow's experiment of the group's name, with the config as its parameters."""
    for logger in ("mlflow", "alembic"):
        logging.getLogger(logger).setLevel(logging.ERROR)  # they report every table of a new database
    # Absolute: MLflow keeps one connection for each URI.
    local = f"sqlite:///{Path('mlflow.db').resolve()}"
    uri = settings.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or local
    try:
        from mlflow import MlflowClient
        from mlflow.entities import Param
        from mlflow.exceptions import MlflowException
        from mlflow.tracking.context.registry import resolve_tags

        client = MlflowClient(uri)
        if start.id is not None:
            client.update_run(start.id, "RUNNING")
            return MLflow(client, start.id)
        experiment = client.get_experiment_by_name(start.group)
        experiment_id = client.create_experiment(start.group) if experiment is None else experiment.experiment_id
        run_id = client.create_run(experiment_id, tags=resolve_tags(), run_name=start.name).info.run_id
        # MLflow takes few characters in a key; a reason for dropping documents is one.
        keys = {re.sub(r"[^\w/.\- ]+", "", key): value for key, value in flatten(start.config).items()}
        client.log_batch(run_id, params=[Param(key, str(value)) for key, value in keys.items()])
        return MLflow(client, run_id)
    except ModuleNotFoundError as error:
        raise UserError(
            f"logger.tracking_uri={uri}: a package is missing ({error}); install it. For a local database: "
            "pip install mlflow-skinny sqlalchemy alembic"
        ) from error
    except (MlflowException, OSError) as error:
        raise UserError(
            f"logger.tracking_uri={uri}: MLflow cannot log there ({first_line(error)}); give another, or start "
            "the server"
        ) from error


def start_tensorboard(settings: Any, start: Start) -> TensorBoard:
    """Open an event file. Its reader hides earlier figures from the step at which the run starts or resumes."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError as error:
        raise UserError(f"logger=tensorboard lacks a package ({error}): pip install tensorboard") from error
    return TensorBoard(SummaryWriter(str(start.directory / "tensorboard"), purge_step=start.step))


STARTERS: dict[str, Callable[[Any, Start], Tracker]] = {
    "wandb": start_wandb,
    "mlflow": start_mlflow,
    "tensorboard": start_tensorboard,
}
