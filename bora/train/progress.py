"""The progress of training: rows of steps for the logger, a line per epoch for people, and counts for the summary."""

import logging
import math
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

log = logging.getLogger(__name__)


class Progress(Callback):
    """Log steps; count scored training tokens, seconds and epochs.

    A step's figures are those of all its documents: of every process, and of all its accumulated batches. The counts
    are saved in checkpoints, so a resumed run continues them.

    Args:
        monitor: the logged figure that chooses the epoch.
        every: steps between rows.
    """

    def __init__(self, monitor: str, every: int) -> None:
        self.monitor, self.every = monitor, every
        # For each validation: the epoch, counted from 1, and the monitored NLL.
        self.history: list[tuple[int, float]] = []
        self.tokens, self.seconds, self._since = 0, 0.0, 0.0
        self._started, self._before = time.perf_counter(), 0.0
        self._step: list[dict[str, float]] = []  # figures of the current step's batches
        self.loss = math.nan  # nats per token, in the last step

    @property
    def tokens_per_second(self) -> float:
        """Scored training tokens per second, without the time of validation."""
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def wall_seconds(self) -> float:
        """Seconds since the run began, without interruptions."""
        return self._before + time.perf_counter() - self._started

    @property
    def best(self) -> tuple[int, float]:
        """The entry of `history` with the lowest NLL; the first of equals."""
        return min(self.history, key=lambda entry: math.inf if math.isnan(entry[1]) else entry[1])

    @property
    def epochs(self) -> int:
        """The last validated epoch, counted from 1."""
        return self.history[-1][0]

    def state_dict(self) -> dict[str, Any]:
        return {
            "history": self.history,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "wall_seconds": self.wall_seconds,
            "loss": self.loss,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.history = [(epoch, nll) for epoch, nll in state["history"]]
        self.tokens, self.seconds = state["tokens"], state["seconds"]
        self._before, self._started = state["wall_seconds"], time.perf_counter()
        self.loss = state["loss"]

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        self._since = time.perf_counter()

    def on_train_batch_end(self, trainer, module, outputs: Any, batch, batch_idx) -> None:
        # Reading the figures waits for the device, so do it before reading the clock.
        figures = {name: outputs[name].item() for name in ("likelihood", "prior", "nats", "tokens")}
        self.tokens += round(figures["tokens"])
        self.seconds += time.perf_counter() - self._since
        self._step.append(figures)
        if ends_step(trainer, batch_idx):
            self._log_step(trainer, module)

    def _log_step(self, trainer: L.Trainer, module) -> None:
        batches, self._step = self._step, []
        likelihood, prior, nats, tokens = (sum(b[name] for b in batches) for name in batches[0])
        n = len(batches)
        self.loss = (likelihood + prior) / n
        module.log_dict({"loss": self.loss, "tokens/s": self.tokens_per_second}, prog_bar=True, logger=False)
        if trainer.global_step % self.every == 0:
            row = {
                "epoch": trainer.current_epoch,
                "train/loss": self.loss,
                "train/likelihood": likelihood / n,
                "train/prior": prior / n,
                "train/nll": nats / tokens,
                "tokens/s": self.tokens_per_second,
                "lr": trainer.optimizers[0].param_groups[0]["lr"],
                **module.gradient_norms,
            }
            for logger in trainer.loggers:
                logger.log_metrics(row, step=trainer.global_step - 1)  # as Lightning counts

    def on_validation_end(self, trainer, module) -> None:
        if trainer.state.fn != "fit":
            return
        metrics = trainer.callback_metrics
        self.history.append((trainer.current_epoch + 1, metrics[self.monitor].item()))
        if trainer.is_global_zero:
            log.info(
                "epoch %d: validation perplexity %.3f, training loss %.4f nats/token, %.0f tokens/s",
                self.epochs,
                metrics["val/perplexity"],
                self.loss,
                self.tokens_per_second,
            )


def ends_step(trainer: L.Trainer, batch_idx: int) -> bool:
    """Tell whether this batch completes an optimiser step."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0 or ends_epoch(trainer, batch_idx)


def ends_epoch(trainer: L.Trainer, batch_idx: int) -> bool:
    """Tell whether this is the last batch of the epoch."""
    return batch_idx + 1 == trainer.num_training_batches
