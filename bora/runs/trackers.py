"""Weights & Biases, MLflow and TensorBoard behind one small class; each package is imported only where it is used."""

import contextlib
import logging
import math
import os
import re
import secrets
import shlex
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import pandas as pd

from bora.config.schema import flatten
from bora.errors import UserError, first_line
from bora.lib.console import short_path
from bora.lib.machine import is_first_process

log = logging.getLogger(__name__)

TRACKED_RUN = "tracked_run"  # in a checkpoint: the tracker's id of the run, which a resumed run continues
WANDB_TIMEOUT_SECONDS = 30
STEP, EPOCH = "trainer/global_step", "epoch"  # W&B's horizontal axes
BY_STEP = "train/*", "grad_norm/*", "lr", "tokens/s"
BY_EPOCH = "val/*", "val_by_batch/*", "val_perplexity/*", "distance/*"
MAX_TAG_CHARS = 64  # W&B's own bound
# Variables that would merge several runs into one W&B run.
ONE_RUN = "WANDB_RUN_ID", "WANDB_SWEEP_ID", "WANDB_RESUME", "WANDB_RESUME_FROM", "WANDB_FORK_FROM"
LIMITS = {0.0: -2.0, math.inf: 8.0}  # log10_tau of the limits, since a parallel-coordinates plot needs finite numbers
Mode = Literal["online", "offline", "disabled"]  # W&B's own names


class Start(NamedTuple):
    """What a tracker needs to begin a run, or to resume it.

    Attributes:
        directory: the run's.
        group: the same for all runs of a sweep.
        name: the run's, within its group.
        config: nested plain values that JSON can hold.
        tags: words to filter runs by.
        id: the tracker's id of the run that is resumed; None for a new run.
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
        """Log figures of the best epoch, once training has ended: they stand for the run in a list of runs."""
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
        """Where the run can be seen, for people; empty where its figures went nowhere."""
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
        """Do nothing: W&B alone has such a chart."""

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


class Wandb(Tracker):
    """A run of Weights & Biases."""

    keeps_names = True

    def __init__(self, run: Any) -> None:
        self.run, self.id = run, run.id
        for axis, names in ((STEP, BY_STEP), (EPOCH, BY_EPOCH)):
            run.define_metric(axis, hidden=True)
            for name in names:
                run.define_metric(name, step_metric=axis)

    @property
    def where(self) -> str:
        if self.run.disabled:
            return ""
        if self.run.offline:
            return f"W&B: offline; to upload:\n  wandb sync {shlex.quote(short_path(Path(self.run.settings.sync_dir)))}"
        return f"W&B: {self.run.url}"

    def _log(self, figures: Mapping[str, float], step: int) -> None:
        # Epochs count from 1, as in best_epoch.
        self.run.log({k: v + (k == EPOCH) for k, v in figures.items()} | {STEP: step})

    def _summarize(self, figures: Mapping[str, float], step: int) -> None:
        self.run.summary.update({k: v for k, v in figures.items() if k != EPOCH})  # a chart would take it for an epoch

    def _lines(self, name: str, xs: list[int], lines: Mapping[str, list[float]], xname: str) -> None:
        from wandb.plot import line_series

        self.run.log({name: line_series(xs, list(lines.values()), keys=list(lines), title=name, xname=xname)})

    def _table(self, name: str, table: pd.DataFrame) -> None:
        import wandb

        self.run.log({name: wandb.Table(dataframe=table)})

    def _artifact(self, folder: Path, files: Iterable[str]) -> None:
        import wandb

        artifact = wandb.Artifact(f"run-{self.id}", type="model")
        for file in files:
            artifact.add_file(str(folder / file), name=file, policy="immutable")  # without a copy
        self.run.log_artifact(artifact)

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

    def _table(self, name: str, table: pd.DataFrame) -> None:
        self.client.log_table(self.id, table, f"{name}.json")

    def _artifact(self, folder: Path, files: Iterable[str]) -> None:
        for file in files:
            self.client.log_artifact(self.id, str(folder / file), str(Path("run", file).parent))

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

    def _table(self, name: str, table: pd.DataFrame) -> None:
        with pd.option_context("display.max_colwidth", None):  # else it cuts a text
            self.writer.add_text(name, table.to_html(index=False))

    def _close(self, failed: bool) -> None:
        self.writer.close()


@contextlib.contextmanager
def open_tracker(settings: Any, start: Start) -> Iterator[Tracker | None]:
    """Begin a run in the tracker that `settings` asks for, and close it afterwards, as failed if an error came out.

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
    except (ImportError, RuntimeError) as error:  # a package that is broken, or finds no home
        raise UserError(
            f"logger={settings.kind} cannot start ({first_line(error)}); mend it, or give logger=none"
        ) from error
    failed = True
    try:
        yield tracker
        failed = False
    finally:  # a sweep's next job must not log to it
        tracker.close(failed)


def start_wandb(settings: Any, start: Start) -> Wandb:
    """Begin a W&B run: offline if nobody is logged in, or if the server cannot be reached and mode is auto.

    Raises:
        UserError: W&B refuses a setting; or mode is online, and the server cannot be reached.
    """
    import wandb

    # wandb's telemetry; on Python 3.14 it is shut down twice, which it would say at the end of every run.
    logging.getLogger("opentelemetry.sdk").setLevel(logging.ERROR)
    words = [*start.tags, *os.environ.get("WANDB_TAGS", "").split(",")]
    arguments: dict[str, Any] = {
        "name": start.name,
        "dir": start.directory,
        "project": settings.project,
        "entity": settings.entity,
        "group": start.group,
        "job_type": "train",
        "tags": list(dict.fromkeys(word[:MAX_TAG_CHARS] for word in words if word)),
        # A second run of this process, by bora.fit, is another run.
        "id": start.id or os.environ.pop("WANDB_RUN_ID", None) or secrets.token_hex(6),
        "config": start.config,
    }

    def begin(mode: Mode) -> Wandb:
        # Before 0.31 wandb warns of resume in every offline run.
        resume: Literal["allow"] | None = "allow" if mode == "online" or start.id else None
        return Wandb(wandb.init(**arguments, mode=mode, resume=resume))

    try:
        arguments["settings"] = wandb.Settings(console="off", silent=True, init_timeout=WANDB_TIMEOUT_SECONDS)
        return begin(wandb_mode(settings.mode))
    except (wandb.errors.Error, ValueError) as error:
        text = " ".join(str(error).split())
        # The last two are in the server's own answer, which wandb takes for a failed communication.
        if not isinstance(error, wandb.errors.CommError) or "upsertBucket" in text or "permission" in text:
            raise UserError(
                f"W&B refuses logger.project={settings.project}, logger.entity={settings.entity or 'null'} or a WANDB_* "
                f"environment variable: {text.partition(' For further information')[0]}"
            ) from error
        if settings.mode == "online":
            raise UserError(
                f"logger.mode=online, but W&B cannot be reached ({first_line(error)}); log in with "
                "wandb login, or give logger.mode=offline"
            ) from error
        log.info("W&B cannot be reached (%s): the run is logged offline", first_line(error))
        wandb.teardown(1)  # its service would keep the id in use
        return begin("offline")


def wandb_mode(mode: Literal["auto", "online", "offline"]) -> Mode:
    """Resolve auto: by $WANDB_MODE, else online if the user is logged in, else offline."""
    if mode != "auto":
        return mode
    if environment := os.environ.get("WANDB_MODE"):
        return cast(Mode, environment)
    import wandb

    return "online" if wandb.login(prompt=False, verify=False) else "offline"


def forget_wandb_run() -> None:
    """Drop what the environment says of one W&B run: a sweep's jobs, and a report, are runs of their own."""
    for name in ONE_RUN:
        os.environ.pop(name, None)


def log10_tau(tau: float) -> float:
    """Return log₁₀ τ; of the limits 0 and ∞, the numbers of LIMITS."""
    return LIMITS[tau] if tau in LIMITS else math.log10(tau)


def start_mlflow(settings: Any, start: Start) -> MLflow:
    """Begin a run in MLflow's experiment of the group's name, with the config as its parameters."""
    # Absolute: MLflow keeps one connection for each URI.
    local = f"sqlite:///{Path('mlflow.db').resolve()}"
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # of 7, which take four minutes
    uri = settings.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or local
    try:
        from mlflow import MlflowClient
        from mlflow.entities import Param
        from mlflow.exceptions import MlflowException
        from mlflow.tracking.context.registry import resolve_tags

        for logger in ("mlflow", "alembic"):
            logging.getLogger(logger).setLevel(logging.ERROR)  # they report every table of a new database
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
    except ImportError:  # before there is an MlflowException
        raise
    except (MlflowException, OSError) as error:
        raise UserError(
            f"logger.tracking_uri={uri}: MLflow cannot log there ({first_line(error)}); give another, or start "
            "the server"
        ) from error


def start_tensorboard(settings: Any, start: Start) -> TensorBoard:
    """Open an event file. Its reader hides earlier figures from the step at which the run starts or resumes."""
    try:
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams
    except ModuleNotFoundError as error:
        raise UserError(f"logger=tensorboard lacks a package ({error}): pip install tensorboard") from error
    writer = SummaryWriter(str(start.directory / "tensorboard"), purge_step=start.step)
    values = {k: v if isinstance(v, bool | int | float) else str(v) for k, v in flatten(start.config).items()}
    for part in hparams(values, dict.fromkeys(("val/perplexity", "test/perplexity"))):
        writer._get_file_writer().add_summary(part)
    return TensorBoard(writer)


STARTERS: dict[str, Callable[[Any, Start], Tracker]] = {
    "wandb": start_wandb,
    "mlflow": start_mlflow,
    "tensorboard": start_tensorboard,
}
