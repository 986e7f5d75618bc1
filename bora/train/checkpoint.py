"""last.ckpt: from where a run goes on that was stopped, wherever it was, to the very numbers of one that was not."""

import logging
import pickle
import signal
import time
import zipfile
from pathlib import Path
from typing import Any, BinaryIO, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.loops.fetchers import _DataFetcher
from lightning.pytorch.plugins.io import TorchCheckpointIO

from bora.errors import UserError, first_line
from bora.lib.files import ordinary, whole
from bora.lib.stopping import SIGNALS, Stop
from bora.model.loading import tensors_sha256
from bora.runs.directory import DAMAGED, SUMMARY, RunDirectory
from bora.runs.metrics import MetricsFile
from bora.train.progress import ends_epoch, ends_step

log = logging.getLogger(__name__)

FINGERPRINT = "fingerprint"  # in a checkpoint: what its run is of
SETTINGS = "settings"  # in the fingerprint: the config; see run_directory.settings
WEIGHTS = "weights_sha256"  # in the summary: of best.ckpt's


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's tensors and plain values, on the CPU. Nothing in it is run.

    Raises:
        UserError: there is no such file, or it is not a checkpoint.
    """
    try:
        with zipfile.ZipFile(ordinary(path)) as records:
            damaged = records.testzip()  # their checksums, which torch does not look at
        if damaged is not None:
            raise zipfile.BadZipFile(f"{damaged} was changed")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:  # whose own words advise to run what is in it
        raise UserError(
            f"{path} is not a readable checkpoint: it holds more than tensors and plain values, which could run anything"
        ) from error
    except (OSError, RuntimeError, zipfile.BadZipFile, KeyError) as error:
        raise UserError(f"{path} is not a readable checkpoint: {first_line(error)}") from error
    for key in ("hyper_parameters", "state_dict"):
        if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get(key), dict):
            raise UserError(f"{path} is not a run's checkpoint: it has no {key}")
    return checkpoint


def load_own(path: Path) -> dict[str, Any]:
    """The same, of the run that goes on.

    Raises:
        UserError: as `load_checkpoint`.
    """
    try:
        return load_checkpoint(path)
    except UserError as error:
        raise UserError(f"{error}; begin anew with resume=never") from error


class WholeCheckpoints(TorchCheckpointIO):
    """Checkpoints are written whole or not at all."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with whole(Path(path)) as out:
            file = _Told(out)
            try:
                torch.save(checkpoint, cast(BinaryIO, file))
            except RuntimeError:
                if file.error is not None:
                    raise file.error from None
                raise


class _Told:
    """A file that remembers why it could not be written: torch says only where its writer then stood."""

    def __init__(self, out: BinaryIO) -> None:
        self.out = out
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self.out.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.out.flush()


class LastCheckpoint(Checkpoint):
    """Saves last.ckpt at every epoch's end, within an epoch every so many seconds, and when the run is asked to stop.

    Within an epoch it is saved between two optimiser steps, but not where validation or the epoch's end comes first.

    Args:
        path: last.ckpt.
        seconds: between saves within an epoch; 0 for after each step.
        metrics: metrics.csv, of which a run that goes on keeps what is there now; see MetricsFile.saved.
        fingerprint: the settings, and hashes of what the run is of, beside the hyperparameters that Lightning keeps;
            see `hold_to`.
        stop: whether the run was asked to stop.
    """

    def __init__(
        self, path: Path, seconds: float, metrics: MetricsFile, fingerprint: dict[str, Any], stop: Stop
    ) -> None:
        self.path, self.seconds, self.metrics = path, seconds, metrics
        self.fingerprint, self.stop = fingerprint, stop
        self._saved = time.monotonic()  # a clock that nobody sets

    def on_train_start(self, trainer: L.Trainer, module) -> None:
        # Lightning has put a handler of its own before ours, which would stop without saving.
        if signal.getsignal(SIGNALS[-1]) is self.stop:
            for signum in SIGNALS:
                signal.signal(signum, self.stop)
        self.stop.waits = True
        # A run that ended early has nothing left to train, or as much as trainer.min_epochs asks for.
        for stopping in trainer.early_stopping_callbacks:
            trainer.should_stop |= stopping.stopping_reason != EarlyStoppingReason.NOT_STOPPED

    def on_fit_end(self, trainer: L.Trainer, module) -> None:
        self.stop.waits = False
        self.stop.obey()

    def on_train_batch_end(self, trainer: L.Trainer, module, outputs, batch, batch_idx: int) -> None:
        if not _goes_on_from(trainer, batch_idx):
            return
        asked = self.stop.signum is not None
        due = asked or time.monotonic() - self._saved >= self.seconds
        if trainer.world_size > 1:  # they save together, or not
            due = trainer.strategy.reduce_boolean_decision(due, all=False)
            asked = trainer.strategy.reduce_boolean_decision(asked, all=False)
        if due:
            self._save(trainer, module)
        if asked:
            self.stop.signum = self.stop.signum or int(signal.SIGTERM)
            self.stop.obey()

    def on_validation_batch_start(
        self, trainer: L.Trainer, module, batch, batch_idx, dataloader_idx=0
    ) -> None:
        if trainer.world_size == 1:  # several could not agree on it here: they stop after the next step
            self.stop.obey()

    def on_train_epoch_end(self, trainer: L.Trainer, module) -> None:
        self._save(trainer, module)  # after validation, and what the other callbacks make of it

    def on_save_checkpoint(self, trainer: L.Trainer, module, checkpoint: dict[str, Any]) -> None:
        checkpoint[FINGERPRINT] = self.fingerprint
        if trainer.is_global_zero:
            checkpoint |= self.metrics.saved()

    def _save(self, trainer: L.Trainer, module) -> None:
        lost = not_finite(module.model.adapters)
        if lost is not None:  # the file that is there stays
            raise UserError(
                f"training diverged: after step {trainer.global_step} not all of {lost} is finite; give a lower "
                f"optim.lr. {self.path} is of before"
            )
        trainer.save_checkpoint(self.path)
        self._saved = time.monotonic()


def _goes_on_from(trainer: L.Trainer, batch_idx: int) -> bool:
    """Whether this batch ended a step, and the next one follows at once: Lightning would leave out what came between."""
    loop = trainer.fit_loop
    return (
        ends_step(trainer, batch_idx)
        and not ends_epoch(trainer, batch_idx)
        and trainer.global_step != trainer.max_steps
        and not loop.epoch_loop._should_check_val_fx(cast(_DataFetcher, loop._data_fetcher))
    )


def not_finite(module: torch.nn.Module) -> str | None:
    """The first parameter that has a value that is infinite or undefined, by name; None if there is none."""
    for name, values in module.named_parameters():
        # A sum is finite only if everything in it is; it needs no tensor of the same size. (Float64: no overflow.)
        if not values.detach().sum(dtype=torch.float64).isfinite():
            return name
    return None


def hold_to(checkpoint: dict[str, Any], fingerprint: dict[str, Any], path: Path) -> None:
    """Refuse to go on from another run's checkpoint.

    Args:
        checkpoint: last.ckpt, loaded.
        fingerprint: of the run that would go on: plain values by what they are of, its hyperparameters among them.
        path: of the checkpoint.

    Raises:
        UserError: it is of other data, another backbone, tasks, rank or the like.
    """
    theirs = checkpoint["hyper_parameters"] | checkpoint.get(FINGERPRINT, {})
    differing = [what for what, ours in fingerprint.items() if what != SETTINGS and theirs.get(what) != ours]
    # What the hyperparameters have is named by them. Checkpoints of before have no settings.
    settings, their_settings = fingerprint[SETTINGS], theirs.get(SETTINGS, {})
    differing = differing or [key for key, value in their_settings.items() if settings.get(key) != value]
    if differing:
        raise UserError(
            f"{path} is of a run with another {' and another '.join(differing)}; give what that run had, choose "
            "another folder, or begin anew with resume=never"
        )


def weights_sha256(checkpoint: dict[str, Any]) -> str:
    """Of a checkpoint's weights: their names, shapes, dtypes and values."""
    return tensors_sha256(sorted(checkpoint["state_dict"].items()))


def load_best(directory: RunDirectory) -> dict[str, Any]:
    """best.ckpt of a finished run, held to its summary.

    Raises:
        UserError: it is not a readable checkpoint, or not this run's.
    """
    path = directory.checkpoints / "best.ckpt"
    checkpoint = load_checkpoint(path)
    known = directory.summary().get(WEIGHTS)  # which runs of before do not have
    if known is not None and known != weights_sha256(checkpoint):
        raise UserError(f"{path} is not the one of which {directory.path / SUMMARY} tells; {DAMAGED}")
    return checkpoint
