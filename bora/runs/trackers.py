"""The loggers of a run: metrics.csv always; Weights & Biases, MLflow or TensorBoard where it is asked for."""

import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import wandb
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from bora.config import Config, flatten
from bora.errors import UserError, first_line
from bora.lib.processes import is_first
from bora.runs.directory import METRICS, RunDirectory, json_safe
from bora.runs.metrics import MetricsFile
from bora.runs.tracker import Tracker

log = logging.getLogger(__name__)

MODES = ("auto", "online", "offline")
Mode = Literal["online", "offline", "disabled"]  # as W&B takes it
WAIT = 30  # seconds for W&B's server to answer
RUN_ID = "tracked_run"  # in a checkpoint: the tracker's id of the run, which goes on under it


class Run(NamedTuple):
    """What a tracker is told about a run when it begins.

    Attributes:
        directory: of the run.
        group: the same for all runs of a sweep.
        name: of this run in its group.
        config: resolved, and what the run makes of it (the learning rate by its rule, say).
        id, step: the tracker's id, and the optimiser steps done, of an interrupted run that goes on; None for a new one.
    """

    directory: RunDirectory
    group: str
    name: str
    config: dict[str, Any]
    id: str | None
    step: int | None


def build_loggers(
    cfg: Config,
    directory: RunDirectory,
    group: str,
    name: str,
    derived: dict[str, Any],
    checkpoint: Mapping[str, Any],
) -> list[Logger]:
    """metrics.csv in the run directory, and the tracker that cfg.logger.kind names.

    Where an interrupted run goes on, both go on with what they have.

    Args:
        group, name: see Run.
        derived: what the run makes of its config.
        checkpoint: last.ckpt of an interrupted run that goes on, loaded; empty for a new run.

    Raises:
        UserError: an unknown kind or setting, a package that is not installed, a server that is not reached, or a
            metrics.csv that is not what it was.
    """
    if cfg.logger.kind not in TRACKERS:
        raise UserError(f"logger.kind={cfg.logger.kind} must be one of {', '.join(TRACKERS)}")
    config = json_safe(cfg.model_dump() | derived)
    run = Run(directory, group, name, config, checkpoint.get(RUN_ID), checkpoint.get("global_step"))
    loggers: list[Logger] = [MetricsFile(directory.path / METRICS, checkpoint)]
    if is_first():
        loggers += TRACKERS[cfg.logger.kind](cfg.logger, run)
    return loggers


def _wandb(settings: Any, run: Run) -> list[Tracker]:
    if settings.mode not in MODES:
        raise UserError(f"logger.mode={settings.mode} must be one of {', '.join(MODES)}")
    mode = wandb_mode(settings.mode)
    if mode == "disabled":
        return []
    arguments = {
        "name": run.name,
        "dir": run.directory.path,
        "project": settings.project,
        "entity": settings.entity,
        "group": run.group,
        "id": run.id,
        "resume": "allow",
        "config": run.config,
        "settings": wandb.Settings(console="off", silent=True, init_timeout=WAIT),
    }
    # W&B is started here, not by Lightning, which would also pass settings that W&B warns of.
    try:
        experiment = wandb.init(**arguments, mode=mode)
    except wandb.errors.Error as error:
        if settings.mode == "online":
            raise UserError(
                f"logger.mode=online, but W&B cannot be reached ({first_line(error)}); log in with "
                "wandb login, or use logger.mode=offline"
            ) from error
        log.info("W&B cannot be reached (%s): the run is logged offline", first_line(error))
        experiment = wandb.init(**arguments, mode="offline")
    return [Tracker(WandbLogger(experiment=experiment))]


def mlflow_uri(settings: Any) -> str:
    """Where MLflow logs to: as asked for here, else by $MLFLOW_TRACKING_URI, else a file where the command is started."""
    here = f"sqlite:///{Path('mlflow.db').resolve()}"  # absolute: MLflow keeps databases by their URI
    return settings.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or here


def _mlflow(settings: Any, run: Run) -> list[Tracker]:
    uri = mlflow_uri(settings)
    try:
        from mlflow.exceptions import MlflowException
    except ModuleNotFoundError as error:
        raise UserError(f"logger=mlflow needs its extra: pip install 'bora[mlflow]' ({error})") from error
    for name in ("mlflow", "alembic", "lightning.pytorch.loggers.mlflow"):
        logging.getLogger(name).setLevel(logging.ERROR)  # they warn of what is new: an experiment, tables
    logged: set[tuple[str, int]] = set()
    try:
        tracker = MLFlowLogger(run.group, run_name=run.name, tracking_uri=uri, run_id=run.id)
        if run.id is None:  # MLflow refuses to have a run's parameters set anew
            # A reason for which documents were left out is a key too, and MLflow takes few letters in a key.
            parameters = {re.sub(r"[^\w/.\- ]+", "", k): value for k, value in flatten(run.config).items()}
            tracker.log_hyperparams(parameters)
        else:
            client = tracker.experiment
            names = client.get_run(run.id).data.metrics
            logged = {(name, m.step) for name in names for m in client.get_metric_history(run.id, name)}
    except ModuleNotFoundError as error:
        raise UserError(
            f"logger.tracking_uri={uri}: MLflow lacks a package for it ({first_line(error)}); install that, or "
            "give another"
        ) from error
    except (MlflowException, OSError) as error:
        raise UserError(
            f"logger.tracking_uri={uri}: MLflow cannot log there ({first_line(error)}); give another, or start "
            "the server"
        ) from error
    return [Tracker(tracker, logged)]


def _tensorboard(settings: Any, run: Run) -> list[Tracker]:
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError(
            f"logger=tensorboard needs its extra: pip install 'bora[tensorboard]' ({error})"
        ) from error
    # What is logged again hides what is there from that step on. The first step is 0, so that after n steps it is n.
    tracker = TensorBoardLogger(
        run.directory.path, name="tensorboard", version="", default_hp_metric=False, purge_step=run.step or 0
    )
    tracker.log_hyperparams(flatten(run.config))
    return [Tracker(tracker)]


TRACKERS = {"none": lambda settings, run: [], "wandb": _wandb, "mlflow": _mlflow, "tensorboard": _tensorboard}


def wandb_mode(mode: Literal["auto", "online", "offline"]) -> Mode:
    """online, offline or disabled: as asked for here, else by $WANDB_MODE, else by being logged in."""
    if mode != "auto":
        return mode
    environment = os.environ.get("WANDB_MODE", "").lower()
    known: dict[str, Mode] = {
        "online": "online",
        "run": "online",
        "offline": "offline",
        "dryrun": "offline",
        "disabled": "disabled",
    }
    if environment in known:
        return known[environment]
    return "online" if wandb.login(prompt=False, verify=False) else "offline"


@contextmanager
def tracked(loggers: list[Logger]) -> Iterator[None]:
    """Within: the run. After: the tracker's run is closed, as failed if an error came out.

    Each job of a sweep must close its own run, or the next job would go on writing to it.
    """
    try:
        yield
    except BaseException:
        _finish(loggers, failed=True)
        raise
    _finish(loggers, failed=False)


def _finish(loggers: list[Logger], failed: bool) -> None:
    for logger in loggers:
        if isinstance(logger, Tracker):
            logger.finish(failed)
