"""What a run's steps take on this machine: a few of them, really taken."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch

from bora.config import Config
from bora.data.corpus import Corpus
from bora.errors import UserError
from bora.lib.machine import peak_memory, reset_peak_memory
from bora.model.batch import Batch, to_device
from bora.model.loading import load_backbone, on_gpu
from bora.train.cost import Cost
from bora.train.run import build_data, build_model, build_module

MEASURED, UNMEASURED = 20, 2  # batches that are timed, and those before them
LONGEST = 20.0  # seconds after which no further batch is timed


@dataclass(frozen=True)
class Measured:
    """A few steps, really taken.

    Attributes:
        batches: how many were timed.
        batch_seconds: median of a training batch's, its optimiser step included.
        validation_seconds: of the whole validation split.
        epoch_seconds: of training and validation.
        run_seconds: of all epochs and the test, at most.
        peak_memory: bytes at most; on the CPU of the whole process, with its libraries.
    """

    batches: int
    batch_seconds: float
    validation_seconds: float
    epoch_seconds: float
    run_seconds: float
    peak_memory: int


def measure(cfg: Config, corpus: Corpus, cost: Cost) -> Measured:
    """Take a few training batches and validate a few, as the run would, in one process. Test documents are not read.

    Args:
        cfg: checked.
        corpus: its documents.
        cost: what is known of it already.

    Raises:
        UserError: what a run's own start would.
    """
    device = torch.device("cuda" if on_gpu(cfg.trainer.accelerator) else "cpu")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"trainer.accelerator={cfg.trainer.accelerator}: torch sees no GPU to measure on")
    torch.manual_seed(cfg.seed)
    pretrained = load_backbone(cfg.model, cfg.trainer.accelerator, cfg.data.max_tokens)
    data = build_data(cfg, pretrained, corpus)
    model = build_model(cfg, pretrained, corpus.task_names, data).to(device)
    optimiser = build_module(cfg, model).configure_optimizers()
    reset_peak_memory()  # that of loading

    def train(batch: Batch) -> None:
        optimiser.zero_grad()
        model.objective(to_device(batch, device)).loss.backward()
        optimiser.step()

    def validate(batch: Batch) -> None:
        with torch.no_grad():
            model.nll(to_device(batch, device))

    training = iter(data.train_dataloader())
    for batch in islice(training, UNMEASURED):
        train(batch)
    seconds = list(_timed(train, islice(training, MEASURED), device))
    if not seconds:  # the epoch is as short as that
        seconds = list(_timed(train, data.train_dataloader(), device))
    loader = data.val_dataloader()
    validation = list(loader.sampler)
    # They are sorted by length, so that some evenly spread stand for all.
    some = np.unique(np.linspace(0, len(validation) - 1, 5).astype(int))
    mean = float(np.mean(list(_timed(validate, (loader.dataset[validation[i]] for i in some), device))))
    batch_seconds, validation_seconds = float(np.median(seconds)), mean * len(validation)
    # The best epoch is validated once more, and tested with and without its adapters.
    at_the_end = 1 + 2 * cost.documents["test"] / cost.documents["validation"]
    epochs = math.ceil(cost.max_steps / cost.steps)
    return Measured(
        batches=len(seconds),
        batch_seconds=batch_seconds,
        validation_seconds=validation_seconds,
        epoch_seconds=batch_seconds * cost.batches + validation_seconds,
        run_seconds=batch_seconds * cost.max_steps * cost.batches / cost.steps
        + validation_seconds * (epochs + at_the_end),
        peak_memory=peak_memory(device.type),
    )


def _timed(take: Callable[[Batch], None], batches: Iterable[Batch], device: torch.device) -> Iterator[float]:
    """Seconds of each, until LONGEST are over."""
    until = time.perf_counter() + LONGEST
    for batch in batches:
        start = time.perf_counter()
        take(batch)
        if device.type == "cuda":
            torch.cuda.synchronize()
        end = time.perf_counter()
        yield end - start
        if end > until:
            return
