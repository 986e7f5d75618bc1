"""The Lightning Trainer of a run: checkpoints, early stopping, progress, and going on after a stop."""

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import hydra
import lightning as L
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.loops.progress import _ProcessedTracker
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig

from bora.config import batches_limit, plain
from bora.errors import UserError, first_line, raised_in
from bora.lib.stopping import Stop
from bora.runs.directory import RunDirectory
from bora.runs.metrics import MetricsFile
from bora.train.checkpoint import LastCheckpoint, WholeCheckpoints, hold_to, load_own, weights_sha256
from bora.train.module import NonFiniteLoss, TrainingModule
from bora.train.progress import TrainingLog
from bora.train.task_lines import TaskLines

ROUNDING = 1e-3  # by which a validation NLL may be another elsewhere: a run may go on on other hardware
REFUSED = "trainer: Lightning refuses these settings"


class BestCheckpoint(ModelCheckpoint):
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


@dataclass(frozen=True)
class Fitter:
    """A Trainer and those of its callbacks that are asked afterwards."""

    trainer: L.Trainer
    log: TrainingLog
    best: BestCheckpoint
    last: LastCheckpoint

    def fit(self, module: TrainingModule, data: L.LightningDataModule, resume_from: Path | None) -> str:
        """Train to the end, and leave the epoch that validation prefers in the model, and its metrics.

        Args:
            resume_from: the last.ckpt of an interrupted run, or None to start.

        Returns:
            The hash of that epoch's weights; see weights_sha256.

        Raises:
            UserError: training diverged: a loss is not finite, or no epoch had a finite validation NLL; or Lightning
                refuses the settings, which it says of some only when it has the data.
        """
        try:
            self.trainer.fit(module, data, ckpt_path=resume_from, weights_only=True)
        except NonFiniteLoss as error:
            saved = self.last.path if self.last.path.is_file() else "none yet"
            raise UserError(
                f"training diverged: {error}; give a lower optim.lr, or optim.nonfinite=skip. Last good checkpoint: "
                f"{saved}"
            ) from error
        except (MisconfigurationException, ValueError) as error:
            if not raised_in(error).startswith("lightning."):
                raise
            raise UserError(f"{REFUSED}: {first_line(error).strip()}") from error
        # With trainer.max_steps a run that goes on from its end has, to Lightning, its last epoch still to finish.
        epochs = cast(_ProcessedTracker, self.trainer.fit_loop.epoch_progress.current)
        epochs.completed = epochs.processed
        if not self.log.history:
            raise UserError(
                "training ended before any validation (by trainer.max_time or trainer.val_check_interval?), so that "
                "there is no epoch to choose"
            )
        score = self.best.best_model_score
        if score is None or not score.isfinite():
            raise UserError(
                f"training diverged: no epoch had a finite validation NLL (tau={module.model.tau:g}, learning rate "
                f"{module.lr:g}, {module.model.adapters.name}); give a lower optim.lr"
            )
        # Not by ckpt_path=…: that would set the counts back to the best epoch too.
        best = Path(self.best.best_model_path)
        checkpoint = load_own(best)
        hold_to(checkpoint, self.last.fingerprint | module.model.hyperparameters, best)
        module.load_state_dict(checkpoint["state_dict"])
        self.trainer.validate(module, data, verbose=False)
        found = float(self.trainer.callback_metrics[module.monitor])
        if not math.isclose(found, score.item(), rel_tol=ROUNDING):
            raise UserError(
                f"{best} is not of this run's best epoch: its validation NLL is {found:.6g} nats a token, not "
                f"{score.item():.6g}; put it back as it was, or begin anew with resume=never"
            )
        return weights_sha256(checkpoint)


def build_fitter(
    cfg: DictConfig,
    directory: RunDirectory,
    loggers: list[Logger],
    monitor: str,
    fingerprint: dict[str, Any],
    stop: Stop,
) -> Fitter:
    """The Trainer that the config describes.

    Args:
        loggers: metrics.csv first.
        monitor: the logged figure that stops training and chooses the epoch; the lower the better.
        fingerprint, stop: see LastCheckpoint.

    Raises:
        UserError: settings that Lightning refuses.
    """
    metrics = cast(MetricsFile, loggers[0])
    training_log = TrainingLog(monitor, cfg.trainer.log_every_n_steps)
    # Both ask where a validation ends: an epoch need not have one (trainer.max_steps), and they would ask an old one's.
    best = BestCheckpoint(
        directory.checkpoints,
        filename="best",
        monitor=monitor,
        enable_version_counter=False,
        save_on_train_epoch_end=False,
    )
    stopping = EarlyStopping(monitor, patience=cfg.optim.patience, check_on_train_epoch_end=False)
    last = LastCheckpoint(directory.last, 60 * cfg.checkpoint_minutes, metrics, fingerprint, stop)
    lines = TaskLines(cfg.logger.task_lines)
    callbacks: list[Callback] = [training_log, stopping, lines, best, last]
    options = plain(cfg.trainer)
    if cfg.trainer.max_steps > 0:
        # An epoch ends where training does, so that a run of a few steps is validated too.
        batches = cfg.trainer.max_steps * cfg.trainer.accumulate_grad_batches
        options["limit_train_batches"] = min(batches, batches_limit(cfg) or batches)
    if isinstance(cfg.trainer.get("strategy"), DictConfig):
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
            plugins=[WholeCheckpoints()],
            use_distributed_sampler=False,  # bora.data.batches.Batches shares the documents out
            num_sanity_val_steps=0,
            enable_model_summary=False,
        )
    except (MisconfigurationException, TypeError, ValueError) as error:
        raise UserError(f"{REFUSED}: {first_line(error)}") from error
    # Else a run of so many steps that goes on from an epoch's end would end that epoch once more.
    trainer.fit_loop._iteration_based_training = lambda: False  # type: ignore[method-assign]
    return Fitter(trainer, training_log, best, last)
