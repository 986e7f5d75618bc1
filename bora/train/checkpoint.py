"""best.ckpt, and last.ckpt, from which an interrupted run resumes and ends with the numbers of an uninterrupted one."""

import logging
import signal
import time
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.loops.fetchers import _DataFetcher
from lightning.pytorch.plugins.io import TorchCheckpointIO

from bora.errors import UserError
from bora.lib.files import atomic_write
from bora.lib.stopping import Stop
from bora.runs.checkpoints import FINGERPRINT
from bora.train.loggers import RunLogger
from bora.train.progress import Progress, ends_epoch, ends_step

log = logging.getLogger(__name__)


class AtomicCheckpoints(TorchCheckpointIO):
    """Write checkpoints atomically."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(Path(path)) as out:
            try:
                torch.save(checkpoint, out)
            except RuntimeError as error:
                if isinstance(error.__context__, OSError):  # the reason, which torch's message lacks
                    raise error.__context__ from None
                raise


class BestCheckpoint(Checkpoint):
    """Save best.ckpt after each validation whose monitored NLL is the lowest so far.

    Args:
        path: best.ckpt.
        progress: records the NLLs.
    """

    def __init__(self, path: Path, progress: Progress) -> None:
        self.path, self.progress = path, progress

    def on_validation_end(self, trainer: L.Trainer, module) -> None:
        if trainer.state.fn == "fit" and self.progress.history[-1] is self.progress.best:
            trainer.save_checkpoint(self.path)


class LastCheckpoint(Checkpoint):
    """Save last.ckpt at every epoch's end, within an epoch at intervals, and when a signal asks the run to stop.

    Within an epoch it is saved between two optimiser steps, unless validation or the epoch's end comes next.

    Args:
        path: last.ckpt.
        seconds: time between saves within an epoch; 0 saves after each step.
        progress: updated before each save.
        logger: its state is saved too; see RunLogger.saved.
        fingerprint: what decides the run's numbers; see `check_same_run`.
        stop: whether a signal asked the run to stop.
    """

    def __init__(
        self, path: Path, seconds: float, progress: Progress, logger: RunLogger, fingerprint: dict[str, Any], stop: Stop
    ) -> None:
        self.path, self.seconds, self.progress, self.logger = path, seconds, progress, logger
        self.fingerprint, self.stop = fingerprint, stop
        self._saved = time.monotonic()  # unaffected by changes of the system's clock

    def on_train_start(self, trainer: L.Trainer, module) -> None:
        self.stop.waits = True
        # A run that had stopped early trains no further, except up to trainer.min_epochs.
        for stopping in trainer.early_stopping_callbacks:
            trainer.should_stop |= stopping.stopping_reason != EarlyStoppingReason.NOT_STOPPED

    def on_fit_end(self, trainer: L.Trainer, module) -> None:
        self.stop.waits = False
        self.stop.obey()

    def on_train_batch_end(self, trainer: L.Trainer, module, outputs, batch, batch_idx: int) -> None:
        if not _can_resume_after(trainer, batch_idx):
            return
        asked = self.stop.signum is not None
        due = asked or time.monotonic() - self._saved >= self.seconds
        if trainer.world_size > 1:  # all processes save, or none
            due = trainer.strategy.reduce_boolean_decision(due, all=False)
            asked = trainer.strategy.reduce_boolean_decision(asked, all=False)
        if due:
            self._save(trainer, module)
        if asked:
            self.stop.signum = self.stop.signum or int(signal.SIGTERM)
            self.stop.obey()

    def on_validation_batch_start(self, trainer: L.Trainer, module, batch, batch_idx, dataloader_idx=0) -> None:
        if trainer.world_size == 1:  # several cannot agree on it here, so they stop after the next step
            self.stop.obey()

    def on_train_epoch_end(self, trainer: L.Trainer, module) -> None:
        self._save(trainer, module)  # after validation, and after the other callbacks' part in it

    def on_save_checkpoint(self, trainer: L.Trainer, module, checkpoint: dict[str, Any]) -> None:
        checkpoint[FINGERPRINT] = self.fingerprint
        checkpoint |= self.logger.saved()

    def _save(self, trainer: L.Trainer, module) -> None:
        self.progress.read(module)  # raises if a loss was not finite, before its result is saved
        lost = find_nonfinite(module.model.adapters)
        if lost is not None:  # keep the older file
            wrong = f"training diverged: after step {trainer.global_step} {lost} is not finite"
            raise UserError(f"{wrong}; give a lower optim.lr. {self.path} is older and still good")
        trainer.save_checkpoint(self.path)
        self._saved = time.monotonic()


def _can_resume_after(trainer: L.Trainer, batch_idx: int) -> bool:
    """Return whether this batch ended a step and the next follows directly; a resume would skip anything in between."""
    loop = trainer.fit_loop
    return (
        ends_step(trainer, batch_idx)
        and not ends_epoch(trainer, batch_idx)
        and trainer.global_step != trainer.max_steps
        and not loop.epoch_loop._should_check_val_fx(cast(_DataFetcher, loop._data_fetcher))
    )


def find_nonfinite(module: torch.nn.Module) -> str | None:
    """Return the name of the first parameter with an infinite or NaN value; None if there is none."""
    for name, values in module.named_parameters():
        # A sum is finite only if all its terms are, and needs no tensor of the same size. (float64 avoids overflow.)
        if not values.detach().sum(dtype=torch.float64).isfinite():
            return name
    return None
