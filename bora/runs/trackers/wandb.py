"""A run of Weights & Biases. The package is imported only when it is used."""

import contextlib
import logging
import os
import secrets
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, cast

import pandas as pd

from bora.errors import UserError, first_line
from bora.lib.console import short_path
from bora.runs.trackers.tracker import Start, Tracker

log = logging.getLogger(__name__)

WANDB_TIMEOUT_SECONDS = 30
STEP, EPOCH = "trainer/global_step", "epoch"  # W&B's horizontal axes
BY_STEP = "train/*", "grad_norm/*", "lr", "tokens/s"
BY_EPOCH = "val/*", "val_by_batch/*", "val_perplexity/*", "distance/*"
MAX_TAG_CHARS = 64  # W&B's limit
# Variables that would merge several runs into one W&B run.
ONE_RUN = "WANDB_RUN_ID", "WANDB_SWEEP_ID", "WANDB_RESUME", "WANDB_RESUME_FROM", "WANDB_FORK_FROM"
Mode = Literal["online", "offline", "disabled"]  # W&B's own names


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
        self.run.summary.update({k: v for k, v in figures.items() if k != EPOCH})  # a chart would treat it as an epoch

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


def start_wandb(settings: Any, start: Start) -> Wandb:
    """Begin a W&B run: offline if nobody is logged in, or if the server cannot be reached and mode is auto.

    Raises:
        UserError: W&B refuses a setting; or mode is online, and the server cannot be reached.
    """
    import wandb

    # wandb's telemetry; on Python 3.14 it is shut down twice, and would report that at the end of every run.
    logging.getLogger("opentelemetry.sdk").setLevel(logging.ERROR)
    if wandb.run is not None:  # the caller has a run open, and the environment names that one
        forget_wandb_run()
    words = [*start.tags, *os.environ.get("WANDB_TAGS", "").split(",")]
    arguments: dict[str, Any] = {
        "name": start.name,
        "dir": start.directory,
        "project": settings.project,
        "entity": settings.entity,
        "group": start.group,
        "job_type": "train",
        "tags": list(dict.fromkeys(word[:MAX_TAG_CHARS] for word in words if word)),
        # Popped, since a second bora.fit in this process is another run.
        "id": start.id or os.environ.pop("WANDB_RUN_ID", None) or secrets.token_hex(6),
        "config": start.config,
    }

    def begin(mode: Mode) -> Wandb:
        # Before 0.31 wandb warns about resume in every offline run.
        resume: Literal["allow"] | None = "allow" if mode == "online" or start.id else None
        return Wandb(wandb.init(**arguments, mode=mode, resume=resume, reinit="create_new"))

    try:
        arguments["settings"] = wandb.Settings(console="off", silent=True, init_timeout=WANDB_TIMEOUT_SECONDS)
        return begin(wandb_mode(settings.mode))
    except (wandb.errors.Error, ValueError) as error:
        text = " ".join(str(error).split())
        # The last two occur in a server's answer, which wandb reports as failed communication.
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
    """Resolve auto: $WANDB_MODE, else online if the user is logged in, else offline."""
    if mode != "auto":
        return mode
    if environment := os.environ.get("WANDB_MODE"):
        return cast(Mode, environment)
    import wandb

    return "online" if wandb.login(prompt=False, verify=False) else "offline"


def forget_wandb_run() -> None:
    """Drop environment variables that name one W&B run, since each job of a sweep, and a report, is another run."""
    for name in ONE_RUN:
        os.environ.pop(name, None)
