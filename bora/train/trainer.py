"""The Lightning Trainer of a run: checkpoints, early stopping, progress, resuming."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import lightning as L
from lightning.pytorch.callbacks import Callback, EarlyStopping
from lightning.pytorch.loops.progress import _ProcessedTracker
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from bora.config.schema import Config
from bora.errors import UserError, first_line, raised_in
from bora.lib.machine import device_type, find_launch
from bora.lib.stopping import Stop
from bora.runs.checkpoints import check_same_run, load_own
from bora.runs.directory import RunDirectory
from bora.train.checkpoint import AtomicCheckpoints, BestCheckpoint, LastCheckpoint
from bora.train.dashboard import Dashboard
from bora.train.loggers import RunLogger
from bora.train.module import NonFiniteLoss, TrainingModule
from bora.train.progress import Bar, Progress
from bora.train.sharding import ShardedBackbone
from bora.train.stages import Stages

ROUNDING = 1e-3  # relative tolerance of the best validation NLL: a run may be resumed on other hardware
REFUSED = "trainer: Lightning refuses these settings"


# trainer.strategy → arguments of Lightning's Trainer. The frozen backbone's buffers are equal on all processes already.
STRATEGIES: dict[str, Callable[[], dict[str, Any]]] = {
    "auto": dict,
    "ddp": lambda: {"strategy": DDPStrategy(broadcast_buffers=False)},
    # torch's sharding cannot switch between torch.inference_mode, in validation, and training.
    "fsdp": lambda: {"strategy": ShardedBackbone(broadcast_buffers=False), "inference_mode": False},
}


@dataclass(frozen=True)
class Fitter:
    """A Trainer, and those of its callbacks that are read after training."""

    trainer: L.Trainer
    progress: Progress
    best: BestCheckpoint
    last: LastCheckpoint
    stages: Stages | None  # with tau=learn
    dashboard: Dashboard

    def fit(
        self, module: TrainingModule, data: L.LightningDataModule, resume_from: Path | None
    ) -> dict[str, Any] | None:
        """Train to the end, then load the epoch that validation prefers, and compute its metrics.

        Args:
            resume_from: the last.ckpt of an interrupted run, or None to start.

        Returns:
            What was learned with tau=learn, see Stages.conclude; else None.

        Raises:
            UserError: training diverged (a loss is not finite, or no epoch had a finite validation NLL) or ended before
                any validation; best.ckpt is not this run's; or Lightning refuses the settings, some of which it checks
                only with the data.
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
        # For Lightning a run resumed at trainer.max_steps has an unfinished epoch; mark it finished.
        epochs = cast(_ProcessedTracker, self.trainer.fit_loop.epoch_progress.current)
        epochs.completed = epochs.processed
        if not self.progress.history:
            raise UserError(
                "training ended before any validation (by trainer.max_time or trainer.val_check_interval?), so "
                "there is no epoch to keep"
            )
        score = self.progress.best.nll
        if not math.isfinite(score):
            raise UserError(
                f"training diverged: no epoch had a finite validation NLL (tau={module.model.tau:g}, learning rate "
                f"{module.lr:g}, {module.model.adapters.name}); give a lower optim.lr"
            )
        # Not by ckpt_path=…, which would also reset the counts to the best epoch's.
        checkpoint = load_own(self.best.path)
        check_same_run(checkpoint, self.last.fingerprint, self.best.path)
        if self.stages is None:
            module.load_state_dict(checkpoint["state_dict"])
            self._validate(module, data, score)
            return None
        module.model.adapters.start_from(checkpoint["state_dict"])
        learned = self.stages.conclude(self.trainer, module, lambda: self._validate(module, data))
        self._validate(module, data)
        return learned

    def _validate(self, module: TrainingModule, data: L.LightningDataModule, score: float | None = None) -> None:
        """Compute the model's perplexities on the validation documents.

        Args:
            score: the expected NLL, nats a token; None for any.

        Raises:
            UserError: the NLL is another.
        """
        self.trainer.validate(module, data, verbose=False)
        found = float(self.trainer.callback_metrics[module.monitor])
        if score is not None and not math.isclose(found, score, rel_tol=ROUNDING):
            raise UserError(
                f"{self.best.path} does not match this run: its validation NLL is {found:.6g} nats a token, the log says "
                f"{score:.6g}. Restore the file, or restart with resume=never"
            )


def build_fitter(
    cfg: Config,
    directory: RunDirectory,
    logger: RunLogger,
    monitor: str,
    fingerprint: dict[str, Any],
    stop: Stop,
    *more: Callback,
) -> Fitter:
    """Build the Trainer that the config describes.

    Args:
        logger: metrics.csv and the tracker.
        monitor: the logged figure that stops training and chooses the epoch; lower is better.
        fingerprint, stop: see LastCheckpoint.
        more: further callbacks.

    Raises:
        UserError: Lightning refuses the settings.
    """
    progress = Progress(monitor, cfg.trainer.log_every_n_steps)
    best = BestCheckpoint(directory.best, progress)
    stages = Stages(directory.best, progress, cfg.optim.patience) if cfg.tau == "learn" else None
    # Checked after validations: an epoch may end without one (trainer.max_steps), and would be judged by an older one.
    stopping = stages or EarlyStopping(monitor, patience=cfg.optim.patience, check_on_train_epoch_end=False)
    last = LastCheckpoint(directory.last, 60 * cfg.checkpoint_minutes, progress, logger, fingerprint, stop)
    dashboard = Dashboard(logger, cfg.logger.task_lines)
    callbacks: list[Callback] = [progress, Bar(progress), stopping, dashboard, best, last, *more]
    settings = cfg.trainer.model_dump(exclude={"extra", "strategy"}) | {"gradient_clip_val": cfg.optim.clip}
    options = {k: v for k, v in settings.items() if v is not None} | STRATEGIES[cfg.trainer.strategy]()
    if isinstance(cfg.trainer.val_check_interval, int):
        options["check_val_every_n_epoch"] = None  # otherwise Lightning counts from each epoch's start
    options["accelerator"] = device_type(cfg.trainer.accelerator)
    options |= cfg.trainer.extra
    if cfg.trainer.max_steps > 0:
        # End the epoch with training, so that a run of a few steps is validated too.
        batches = cfg.trainer.max_steps * cfg.trainer.accumulate_grad_batches
        options["limit_train_batches"] = min(batches, cfg.trainer.limit_train_batches or batches)
    plugins: list[Any] = [AtomicCheckpoints()]
    launch = find_launch()
    if launch is not None and launch.by == "srun" and launch.processes == 1:
        plugins.append(LightningEnvironment())  # SLURM's would require the batch script's --ntasks to be the run's
    try:
        trainer = L.Trainer(
            **options,
            callbacks=callbacks,
            logger=logger,
            plugins=plugins,
            use_distributed_sampler=False,  # bora.data.batches.Batches distributes the documents
            num_sanity_val_steps=0,
            enable_model_summary=False,
            enable_progress_bar=False,  # Bar shows the whole run
        )
    except (MisconfigurationException, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise UserError(f"{REFUSED}: {first_line(error)}") from error
    # Keep the run's own handlers. Lightning's would forward a SIGTERM while the processes are communicating.
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    # Otherwise a run with trainer.max_steps that resumes at an epoch's end would end that epoch twice.
    trainer.fit_loop._iteration_based_training = lambda: False  # type: ignore[method-assign]
    return Fitter(trainer, progress, best, last, stages, dashboard)
