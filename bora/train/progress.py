"""The progress of training: rows for the logger, a bar and printed lines for people, counts for the summary."""

import logging
import math
import time
from typing import Any, NamedTuple, cast

import lightning as L
from lightning.pytorch.callbacks import Callback
from tqdm import tqdm

from bora.errors import UserError
from bora.lib.console import LINE_SECONDS, close_bar, is_watched, open_bar, short_count, tell
from bora.train.module import BatchFigures, TrainingModule

log = logging.getLogger(__name__)

READ_SECONDS = 1.0  # between reads from a device that may still be computing


class Validation(NamedTuple):
    """When a validation took place, and its result.

    Attributes:
        epoch: counted from 1.
        nll: the monitored NLL.
        step: optimiser steps before it.
    """

    epoch: int
    nll: float
    step: int


class Progress(Callback):
    """Log steps, print a line for each epoch, and count scored training tokens, seconds and epochs.

    A step's figures cover all its documents, in every process and every accumulated batch. The counts are saved in
    checkpoints, so a resumed run continues them.

    Args:
        monitor: the logged figure that chooses the epoch.
        every: steps between logged rows.
    """

    def __init__(self, monitor: str, every: int) -> None:
        self.monitor, self.every = monitor, every
        self.history: list[Validation] = []
        self.tokens, self.seconds = 0, 0.0
        self._logged = 0, 0.0  # tokens and seconds at the last row
        self._since: float | None = None  # when the first batch not yet read began
        self._read_at = 0.0
        self._started, self._before = time.perf_counter(), 0.0
        self._step: list[BatchFigures] = []  # batches of the last step that was read
        # Sums over the epoch's batches so far, except those whose likelihood is not finite.
        self.epoch_nats, self.epoch_tokens = 0.0, 0.0
        self._told = time.monotonic()  # when the last line was printed

    @property
    def tokens_per_second(self) -> float:
        """Scored training tokens per second over the whole run, not counting the time of validating and saving."""
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def wall_seconds(self) -> float:
        """Seconds since the run began, not counting interruptions."""
        return self._before + time.perf_counter() - self._started

    @property
    def best(self) -> Validation:
        """The entry of `history` with the lowest NLL, the first if several are equal."""
        return min(self.history, key=lambda entry: math.inf if math.isnan(entry.nll) else entry.nll)

    @property
    def epochs(self) -> int:
        """The last validated epoch, counted from 1."""
        return self.history[-1].epoch

    def state_dict(self) -> dict[str, Any]:
        return {
            "history": [tuple(entry) for entry in self.history],  # plain, for weights_only
            "tokens": self.tokens,
            "seconds": self.seconds,
            "wall_seconds": self.wall_seconds,
            "epoch_nats": self.epoch_nats,
            "epoch_tokens": self.epoch_tokens,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.history = [Validation(*entry) for entry in state["history"]]
        self.tokens, self.seconds = self._logged = state["tokens"], state["seconds"]
        self._before, self._started = state["wall_seconds"], time.perf_counter()
        self.epoch_nats, self.epoch_tokens = state["epoch_nats"], state["epoch_tokens"]

    def on_train_start(self, trainer: L.Trainer, module) -> None:
        if module.warmup_steps >= trainer.estimated_stepping_batches:
            log.warning(
                "optim.warmup_steps=%d: the run has at most %d steps, so the learning rate never reaches optim.lr=%g",
                module.warmup_steps,
                trainer.estimated_stepping_batches,
                module.lr,
            )
        if trainer.check_val_every_n_epoch is None:
            at_most = trainer.estimated_stepping_batches * trainer.accumulate_grad_batches
            batches = min(trainer.num_training_batches * cast(int, trainer.max_epochs), at_most)
            if trainer.val_check_interval > batches:
                raise UserError(
                    f"trainer.val_check_interval={trainer.val_check_interval}: the run has {batches} batches, so it "
                    f"would never validate, and have no epoch to keep; give at most {batches}"
                )

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        if self._since is None:
            self._since = time.perf_counter()

    def on_train_batch_end(self, trainer, module, outputs: Any, batch, batch_idx) -> None:
        if not ends_step(trainer, batch_idx):
            return
        logged = trainer.global_step % self.every == 0
        # If steps are slow, read after every one: it costs nothing there, and finds a loss that is not finite at once.
        # Several processes must find it in the same step, so they read only when they log.
        if logged or (trainer.world_size == 1 and time.perf_counter() - self._read_at > READ_SECONDS):
            self.read(module)
            self._since = self._read_at
        if logged:
            self._log_step(trainer, module)
        if not is_watched() and time.monotonic() - self._told > LINE_SECONDS:
            self._tell(trainer, f"step {trainer.global_step:,} of at most {trainer.estimated_stepping_batches:,}")

    def read(self, module: TrainingModule) -> None:
        """Count the batches not yet read. The time from now until the next batch does not count as training.

        Raises:
            NonFiniteLoss: see TrainingModule.read_figures.
        """
        for figures in module.read_figures():
            self.tokens += round(figures.tokens)
            if math.isfinite(figures.nats):
                self.epoch_nats += figures.nats
                self.epoch_tokens += figures.tokens
            if self._step and self._step[-1].step != figures.step:
                self._step = []
            self._step.append(figures)
        self._read_at = time.perf_counter()  # reading waits for the device, so the clock is read after it
        if self._since is not None:
            self.seconds += self._read_at - self._since
        self._since = None

    def _log_step(self, trainer: L.Trainer, module) -> None:
        _, likelihood, prior, nats, tokens = (sum(figures) for figures in zip(*self._step, strict=True))
        n = len(self._step)
        row = {
            "epoch": trainer.current_epoch,
            "train/loss": (likelihood + prior) / n,
            "train/likelihood": likelihood / n,
            "train/prior": prior / n,
            "train/nll": nats / tokens,
            "tokens/s": self._speed_since_last_row(),
            "lr": module.lr_now,
            **module.gradient_norms,
        }
        for logger in trainer.loggers:
            logger.log_metrics(row, step=trainer.global_step - 1)  # counted from 0, as in Lightning

    def _speed_since_last_row(self) -> float:
        tokens, seconds = self.tokens - self._logged[0], self.seconds - self._logged[1]
        self._logged = self.tokens, self.seconds
        return tokens / seconds if seconds else 0.0

    def on_validation_start(self, trainer: L.Trainer, module) -> None:
        self.read(module)

    def on_train_epoch_end(self, trainer: L.Trainer, module) -> None:
        self.read(module)  # an epoch may end without a validation
        self.epoch_nats, self.epoch_tokens = 0.0, 0.0

    def on_validation_end(self, trainer, module) -> None:
        if trainer.state.fn != "fit":
            return
        metrics = trainer.callback_metrics
        nll = metrics[self.monitor].item()
        self.history.append(Validation(trainer.current_epoch + 1, nll, trainer.global_step))
        best = ", best" * (self.history[-1] is self.best)
        self._tell(trainer, f"validation {metrics['val/nll']:.3f} (ppl {metrics['val/perplexity']:.2f}{best})")

    def _tell(self, trainer: L.Trainer, result: str) -> None:
        """Print a line about the epoch so far, with its mean NLL in nats a scored token."""
        self._told = time.monotonic()
        nll = self.epoch_nats / self.epoch_tokens if self.epoch_tokens else math.nan
        speed = short_count(self.tokens_per_second)
        tell(f"{name_epoch(trainer)}: train NLL {nll:.3f}, {result}, {speed} tokens/s")


class Bar(Callback):
    """Draw a progress bar for training, and one for each later loop over documents.

    Args:
        progress: counts the tokens per second; it must come before this in the list of callbacks.
    """

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.bar: tqdm | None = None

    def on_train_start(self, trainer: L.Trainer, module) -> None:
        # An upper bound, since training may stop early.
        steps, done = trainer.estimated_stepping_batches, trainer.global_step
        self.bar = open_bar(steps, name_epoch(trainer), done, left="at most {remaining} left")

    def on_train_batch_end(self, trainer: L.Trainer, module, outputs, batch, batch_idx: int) -> None:
        assert self.bar is not None
        self.bar.set_description_str(name_epoch(trainer), refresh=False)
        self.bar.set_postfix_str(f"{short_count(self.progress.tokens_per_second)} tokens/s", refresh=False)
        self.bar.update(trainer.global_step - self.bar.n)

    def on_validation_start(self, trainer: L.Trainer, module) -> None:
        if trainer.state.fn != "fit":
            self.bar = open_bar(sum(trainer.num_val_batches), "best epoch")

    def on_validation_batch_end(self, trainer: L.Trainer, module, outputs, batch, batch_idx, loader=0) -> None:
        assert self.bar is not None
        if trainer.state.fn == "fit":
            self.bar.set_description_str(f"validation {batch_idx + 1}/{sum(trainer.num_val_batches)}")
        else:
            self.bar.update()

    def on_test_start(self, trainer: L.Trainer, module) -> None:
        self.bar = open_bar(sum(trainer.num_test_batches), "test")

    def on_test_batch_end(self, trainer: L.Trainer, module, outputs, batch, batch_idx, loader=0) -> None:
        assert self.bar is not None
        self.bar.update()

    def on_exception(self, trainer: L.Trainer, module, exception: BaseException) -> None:
        self.teardown(trainer, module, "")

    def teardown(self, trainer: L.Trainer, module, stage: str) -> None:
        if self.bar is not None:
            close_bar(self.bar)


def name_epoch(trainer: L.Trainer) -> str:
    """Name the current epoch and the last possible one: epoch 2/4."""
    return (
        f"epoch {trainer.current_epoch + 1}/{math.ceil(trainer.estimated_stepping_batches / steps_an_epoch(trainer))}"
    )


def steps_an_epoch(trainer: L.Trainer) -> int:
    """Return the number of optimiser steps in an epoch."""
    return math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)


def ends_step(trainer: L.Trainer, batch_idx: int) -> bool:
    """Return whether this batch completes an optimiser step."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0 or ends_epoch(trainer, batch_idx)


def ends_epoch(trainer: L.Trainer, batch_idx: int) -> bool:
    """Return whether this is the last batch of the epoch."""
    return batch_idx + 1 == trainer.num_training_batches
