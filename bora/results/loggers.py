"""The loggers of a run: metrics.csv always, Weights & Biases where it is asked for."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import wandb
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from bora.errors import InputError, first_line
from bora.results.run_directory import METRICS, RunDirectory, json_safe

log = logging.getLogger(__name__)

MODES = ("auto", "online", "offline")


def build_loggers(
    cfg: DictConfig, directory: RunDirectory, group: str, name: str, derived: dict[str, Any]
) -> list[Logger]:
    """metrics.csv in the run directory, and W&B if cfg.logger.kind is wandb.

    Where an interrupted run goes on, both go on with what they have.

    Args:
        group: W&B group, the same for all runs of a sweep.
        name: W&B name of this run.
        derived: what the run makes of its config (the learning rate by its rule, say), for W&B's.

    Raises:
        InputError: an unknown kind or mode.
    """
    checkpoint = _interrupted(directory)
    loggers: list[Logger] = [_csv_logger(directory.path, checkpoint)]
    if cfg.logger.kind == "none":
        return loggers
    if cfg.logger.kind != "wandb":
        raise InputError(f"logger.kind={cfg.logger.kind} must be wandb or none")
    if cfg.logger.mode not in MODES:
        raise InputError(f"logger.mode={cfg.logger.mode} must be one of {', '.join(MODES)}")
    mode = wandb_mode(cfg.logger.mode)
    if mode == "disabled" or rank_zero_only.rank != 0:
        return loggers
    settings = {
        "name": name,
        "dir": directory.path,
        "project": cfg.logger.project,
        "entity": cfg.logger.entity,
        "group": group,
        "id": checkpoint.get("wandb_id"),
        "resume": "allow",
        "config": json_safe(OmegaConf.to_container(cfg, resolve=True) | derived),
        "settings": wandb.Settings(console="off", silent=True),
    }
    # W&B is started here, not by Lightning, which would also pass settings that W&B warns of.
    try:
        run = wandb.init(**settings, mode=mode)
    except wandb.errors.Error as error:
        if cfg.logger.mode == "online":
            raise InputError(
                f"logger.mode=online, but W&B cannot be reached ({first_line(error)}); log in with "
                "wandb login, or use logger.mode=offline"
            ) from error
        log.info("W&B cannot be reached (%s): the run is logged offline", first_line(error))
        run = wandb.init(**settings, mode="offline")
    loggers.append(WandbLogger(experiment=run))
    return loggers


def _interrupted(directory: RunDirectory) -> dict[str, Any]:
    if directory.resume_from is None:
        return {}
    return torch.load(directory.resume_from, map_location="cpu", weights_only=True, mmap=True)


def _csv_logger(folder: Path, checkpoint: dict[str, Any]) -> CSVLogger:
    """metrics.csv, written at every logged step; with the rows of the epochs that are done already."""
    file = folder / METRICS
    rows = pd.read_csv(file) if checkpoint and file.is_file() else pd.DataFrame()
    logger = CSVLogger(folder, name="", version="", flush_logs_every_n_steps=1)
    if len(rows):
        rows = rows[(rows["epoch"] <= checkpoint["epoch"]) & _not_of_testing(rows)]
        # Lightning's writer begins a new file; its first rows are the old ones.
        logger.experiment.metrics = [
            {key: value for key, value in row.items() if pd.notna(value)} for row in rows.to_dict("records")
        ]
    return logger


def _not_of_testing(rows: pd.DataFrame) -> pd.Series:
    return rows.filter(like="test/").isna().all(axis=1)


def wandb_mode(mode: str) -> str:
    """online, offline or disabled: as asked for here, else by $WANDB_MODE, else by being logged in."""
    if mode != "auto":
        return mode
    environment = os.environ.get("WANDB_MODE", "").lower()
    known = {
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
def wandb_run(loggers: list[Logger]) -> Iterator[None]:
    """Within: the run. After: W&B's run is finished, as failed if an error came out.

    Each job of a sweep must finish its own run, or the next job would go on writing to it.
    """
    try:
        yield
    except BaseException:
        _finish(loggers, exit_code=1)
        raise
    _finish(loggers, exit_code=0)


def _finish(loggers: list[Logger], exit_code: int) -> None:
    if any(isinstance(logger, WandbLogger) for logger in loggers):
        wandb.finish(exit_code=exit_code)
