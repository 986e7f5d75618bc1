"""The Lightning Trainer of a run: checkpoints, early stopping, progress, and going on after a stop."""

import logging
import math
import pickle
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig

from bora.config import plain
from bora.errors import InputError, first_line
from bora.model.likelihood import n_scored
from bora.model.module import HierarchicalLoRA
from bora.results.run_directory import RunDirectory
from bora.results.task_lines import TaskLines

log = logging.getLogger(__name__)


class TrainingClock(Callback):
    """Counts scored training tokens, seconds and epochs; says how each epoch went.

    Its counts are part of last.ckpt, so that they go on where an interrupted run left off.
    """

    def __init__(self, monitor: str, patience: int) -> None:
        self.monitor, self.patience = monitor, patience
        self.history: list[float] = []  # the monitored NLL, an epoch each
        self.tokens, self.seconds, self._since = 0, 0.0, 0.0
        self._started, self._before = time.perf_counter(), 0.0

    @property
    def tokens_per_second(self) -> float:
        """Scored training tokens a second, validation's time left out."""
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def wall_seconds(self) -> float:
        """Seconds since the run began; an interruption's own time is not in it."""
        return self._before + time.perf_counter() - self._started

    @property
    def best_epoch(self) -> int:
        """Counted from 1; the first of equals."""
        finite = [math.inf if math.isnan(nll) else nll for nll in self.history]
        return finite.index(min(finite)) + 1

    def state_dict(self) -> dict[str, Any]:
        return {
            "history": self.history,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "wall_seconds": self.wall_seconds,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.history, self.tokens, self.seconds = list(state["history"]), state["tokens"], state["seconds"]
        self._before, self._started = state["wall_seconds"], time.perf_counter()

    def on_train_start(self, trainer, module) -> None:
        # A run that was stopped after its last epoch has nothing left to train.
        if self.history and len(self.history) - self.best_epoch >= self.patience:
            trainer.should_stop = True

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        self._since = time.perf_counter()

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        # Counting the tokens waits for the device, so it comes before the clock is read.
        self.tokens += int(n_scored(batch["labels"]).sum()) * trainer.world_size
        self.seconds += time.perf_counter() - self._since
        module.log("tokens/s", self.tokens_per_second, prog_bar=True, rank_zero_only=True)

    def on_validation_end(self, trainer, module) -> None:
        if trainer.state.fn != "fit":
            return
        metrics = trainer.callback_metrics
        self.history.append(metrics[self.monitor].item())
        if trainer.is_global_zero:
            log.info(
                "epoch %d: validation perplexity %.3f, training loss %.4f nats/token, %.0f tokens/s",
                len(self.history), metrics["val/perplexity"], metrics["train/loss"], self.tokens_per_second,
            )  # fmt: skip


class Checkpoint(ModelCheckpoint):
    """A ModelCheckpoint that knows its files again after the run directory was moved."""

    dirpath: str | Path  # always given

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        def here(path: str) -> str:
            return str(Path(self.dirpath) / Path(path).name) if path else path

        moved = {
            k: here(state_dict[k]) for k in ("best_model_path", "kth_best_model_path", "last_model_path")
        }
        models = {here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **moved, "best_k_models": models, "dirpath": self.dirpath})


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's tensors and plain values, on the CPU.

    Raises:
        InputError: there is no such file, or it is not a checkpoint.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise InputError(f"{path} is not a readable checkpoint: {first_line(error)}") from error


@dataclass(frozen=True)
class Fitter:
    """A Trainer and those of its callbacks that are asked afterwards."""

    trainer: L.Trainer
    clock: TrainingClock
    best: Checkpoint

    def fit(self, model: HierarchicalLoRA, data: L.LightningDataModule, resume_from: Path | None) -> None:
        """Train to the end, and leave the epoch that validation prefers in the model, and its metrics.

        Args:
            resume_from: the last.ckpt of an interrupted run, or None to start.

        Raises:
            InputError: no epoch had a finite validation NLL.
        """
        self.trainer.fit(model, data, ckpt_path=resume_from, weights_only=True)
        score = self.best.best_model_score
        if score is None or not score.isfinite():
            raise InputError(
                f"training diverged: no epoch had a finite validation NLL (tau={model.tau:g}, learning rate "
                f"{model.lr:g}, {model.parameterization}); give a lower optim.lr"
            )
        # Not by ckpt_path=…: that would set the clock back to the best epoch too.
        model.load_factors(load_checkpoint(Path(self.best.best_model_path)))
        self.trainer.validate(model, data, verbose=False)


def build_fitter(cfg: DictConfig, directory: RunDirectory, loggers: list, monitor: str) -> Fitter:
    """The Trainer that the config describes.

    Args:
        monitor: the logged figure that stops training and chooses the epoch; the lower the better.

    Raises:
        InputError: settings that Lightning refuses.
    """
    clock = TrainingClock(monitor, cfg.optim.patience)
    best = Checkpoint(directory.checkpoints, filename="best", monitor=monitor, enable_version_counter=False)
    # save_last would copy the best one: it is written only in an epoch that is a new best.
    last = Checkpoint(directory.checkpoints, filename="last", enable_version_counter=False)
    stop = EarlyStopping(monitor, patience=cfg.optim.patience)
    callbacks: list[Callback] = [clock, stop, TaskLines(cfg.logger.task_lines), best, last]
    options = plain(cfg.trainer)
    if cfg.trainer.max_steps > 0:
        # An epoch ends where training does, so that a run of a few steps is validated too.
        options["limit_train_batches"] = cfg.trainer.max_steps * cfg.trainer.accumulate_grad_batches
    if "strategy" in cfg.trainer:
        options["strategy"] = hydra.utils.instantiate(cfg.trainer.strategy)
    if sys.stdout.isatty():  # where tqdm writes
        callbacks.append(TQDMProgressBar())
    else:  # in a log file a bar is noise; an epoch's line stands there instead
        options["enable_progress_bar"] = False
    try:
        trainer = L.Trainer(
            **options,
            callbacks=callbacks,
            logger=loggers,
            use_distributed_sampler=False,  # bora.data.batches.Batches shares the documents out
            num_sanity_val_steps=0,
            enable_model_summary=False,
        )
    except (MisconfigurationException, TypeError, ValueError) as error:
        raise InputError(f"trainer: Lightning refuses these settings: {error}") from error
    return Fitter(trainer, clock, best)
