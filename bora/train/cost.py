"""Count what a run costs from its config and documents, or measure it in a few steps.

Counts of parameters, documents, tokens and steps are exact, as are the bytes of θ, Θ and their moments; a checkpoint's
size is right to about 1 %. Activations are not counted: they grow with data.batch_size · data.max_tokens, slower with
model.gradient_checkpointing, and `measure` includes them in the peak memory.
"""

import math
import time
from dataclasses import dataclass
from itertools import chain, islice, repeat
from typing import Any

import numpy as np
import torch

from bora.bayes.forms import Staged, choose_form
from bora.config.schema import Config
from bora.data.batches import Batches
from bora.data.corpus import Corpus
from bora.data.split import SPLITS
from bora.lib.machine import device_type, peak_memory, reset_peak_memory, wait
from bora.model.batch import to_device
from bora.model.likelihood import chunk_elements
from bora.model.loading import load_backbone
from bora.model.lora import Layout, linear_shape
from bora.model.pretrained import Pretrained
from bora.model.quantization import BLOCK, plain_layers
from bora.model.targets import named_targets
from bora.train.build import build_data, build_model, build_module, require_hardware
from bora.train.stages import MAX_SCALES, N_REFINED

FLOAT_BYTES = 4  # float32: θ, Θ, their gradients and moments, whatever the backbone's dtype
WARMUP_STEPS = {"cpu": 2, "cuda": 20}  # on a GPU a shape is recorded the second time it occurs
MEASURED_STEPS, MEASURED_VALIDATIONS = 20, 5


@dataclass(frozen=True)
class Cost:
    """The counted cost of a run.

    Attributes:
        tasks: D.
        documents: number of documents in each split.
        scored_tokens: scored tokens of the training documents.
        truncated_share: share of all documents' tokens that data.max_tokens cuts off.
        batches, steps: batches and steps of an epoch; a step takes trainer.accumulate_grad_batches batches.
        max_steps: upper bound of the whole run's steps.
        frozen_parameters: number of the backbone's parameters.
        parameters_per_task: P.
        trained_parameters: number of all θ_d's and Θ's parameters.
        memory: bytes in use in a training step, by part, without activations.
        checkpoint: bytes of last.ckpt, and of best.ckpt.
    """

    tasks: int
    documents: dict[str, int]
    scored_tokens: int
    truncated_share: float
    batches: int
    steps: int
    max_steps: int
    frozen_parameters: int
    parameters_per_task: int
    trained_parameters: int
    memory: dict[str, int]
    checkpoint: int


def count_cost(cfg: Config, pretrained: Pretrained, corpus: Corpus) -> Cost:
    """Count what the config's run costs.

    Args:
        pretrained: the backbone; its shape is enough, from `load_backbone(…, weights=False)`.

    Raises:
        UserError: lora.target_modules names no layers, or layers that cannot have a LoRA; or there are fewer training
            documents than a step needs.
    """
    model = pretrained.model
    layers = named_targets(model, cfg.lora.target_modules)
    layout = Layout({name: linear_shape(layer) for name, layer in layers.items()}, cfg.lora.rank)
    form = choose_form(cfg.task_tau, cfg.prior.parameterization)
    units = sum(len(set(cells)) for cells in corpus.levels.values())
    rows = len(corpus.task_names) + units if "stored" in form.suffixes else 0  # rows of the matrix
    trained = (rows + 1) * layout.n_parameters
    train = corpus.documents[corpus.documents["split"] == "train"]
    accumulate = cfg.trainer.accumulate_grad_batches
    n_processes = (1 if cfg.trainer.devices == "auto" else cfg.trainer.devices) * cfg.trainer.num_nodes
    sampler = Batches(train["n_tokens"].tolist(), cfg.data.batch_size, accumulate=accumulate, n_processes=n_processes)
    sampler.check_trainable()
    batches = min(len(sampler), cfg.trainer.limit_train_batches or len(sampler))
    steps = -(-batches // accumulate)
    max_steps = steps * cfg.trainer.max_epochs
    cut = corpus.truncation.tokens
    # Besides θ, Θ, two moments, the averages, and RowwiseAdamW's step count of each row, a checkpoint holds about
    # 160 bytes of names for each tensor and 8 kB of Lightning's state.
    tensors = 2 * len(layers) * (2 if rows else 1)
    return Cost(
        tasks=len(corpus.task_names),
        documents={split: corpus.documents.query("split == @split")["row"].nunique() for split in SPLITS},
        scored_tokens=int(train["n_scored"].sum()),
        truncated_share=cut / (cut + int(corpus.documents["n_tokens"].sum())),
        batches=batches,
        steps=steps,
        max_steps=min(max_steps, cfg.trainer.max_steps) if cfg.trainer.max_steps > 0 else max_steps,
        frozen_parameters=sum(p.numel() for p in model.parameters()),
        parameters_per_task=layout.n_parameters,
        trained_parameters=trained,
        memory=_count_memory(cfg, model, layout.n_parameters, rows),
        checkpoint=FLOAT_BYTES * ((3 + cfg.optim.average) * trained + rows) + 160 * tensors + 8000,
    )


def _count_memory(cfg: Config, model: Any, P: int, rows: int) -> dict[str, int]:
    """Count the bytes of a training step by part.

    Args:
        P: length of θ_d.
        rows: number of rows of the matrix.
    """
    documents = cfg.data.batch_size
    # The dense estimator of the prior gives every task a gradient in every step.
    with_gradient = rows if cfg.prior.estimator == "dense" else min(documents * (1 + len(cfg.data.levels)), rows)
    vocabulary = model.config.get_text_config().vocab_size
    gpu = device_type(cfg.trainer.accelerator) == "cuda" and torch.cuda.is_available()
    chunk = chunk_elements(torch.device("cuda" if gpu else "cpu"))
    shared = 2 * model.dtype.itemsize * P  # θ in the backbone's dtype, and its gradient
    recorded = 1 << (documents - 1).bit_length() if gpu and cfg.records_steps else 0
    return {
        "backbone": _count_backbone(model, cfg.model.quantization),
        "theta": FLOAT_BYTES * (rows + 1) * P,
        "gradients": FLOAT_BYTES * (with_gradient + 1) * P,
        "moments": 2 * FLOAT_BYTES * (rows + 1) * P,
        **({"averages": FLOAT_BYTES * (rows + 1) * P} if cfg.optim.average else {}),
        # A row for each document; at τ = ∞ all documents share one. CUDA graphs have copies.
        "rows_of_a_batch": shared * (documents + recorded if rows else 1 + bool(recorded)),
        "logits_of_a_chunk": FLOAT_BYTES * min(chunk, documents * cfg.data.max_tokens * vocabulary),
    }


def _count_backbone(model: Any, quantization: str | None) -> int:
    """Count the bytes of the frozen model, leaving out int8's scales, of which there is one for each output."""
    total = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    if quantization is not None:
        weights = [layer.weight for layer in plain_layers(model).values()]
        # nf4 has a float32 scale for each block.
        bytes_each = {"int8": 1.0, "nf4": 1 / 2 + FLOAT_BYTES / BLOCK}[quantization]
        total += int(sum(w.numel() * bytes_each - w.nbytes for w in weights))
    return total


@dataclass(frozen=True)
class Measured:
    """A run's times and memory, estimated from a few of its steps.

    Attributes:
        step_seconds: mean time of a training step.
        tokens_per_second: scored training tokens per second.
        validation_seconds: time of one validation, estimated from a few of its batches.
        epoch_seconds: time to train for an epoch and validate once.
        run_seconds: upper bound of the time of all epochs and the test.
        peak_memory: bytes on the GPU; on the CPU, those of the whole process with its libraries.
    """

    step_seconds: float
    tokens_per_second: float
    validation_seconds: float
    epoch_seconds: float
    run_seconds: float
    peak_memory: int


def measure(cfg: Config, corpus: Corpus, cost: Cost) -> Measured:
    """Take a few training steps in this process, and validate a few batches. Test documents are not read.

    Args:
        cost: from `count_cost`.

    Raises:
        UserError: this machine lacks what the run needs, or the model cannot be loaded.
    """
    require_hardware(cfg)
    device = torch.device(device_type(cfg.trainer.accelerator))
    torch.manual_seed(cfg.seed)
    pretrained = load_backbone(cfg.model, cfg.trainer.accelerator, cfg.data.max_tokens)
    data = build_data(cfg, pretrained, corpus)
    model = build_model(cfg, pretrained, corpus.task_names, data).to(device)
    if isinstance(model.adapters, Staged):  # its second stage takes longer, and more memory
        model.adapters.deviates, model.adapters.holds_mean = True, False
    module = build_module(cfg, model)
    optimizer = module.build_optimizer()
    reset_peak_memory()  # loading may need more than training
    batches = chain.from_iterable(repeat(data.train_dataloader()))  # an epoch may have fewer steps

    def train() -> int:
        """Take one step; return its scored tokens."""
        optimizer.zero_grad()
        tokens = 0
        for batch in islice(batches, cfg.trainer.accumulate_grad_batches):
            tokens += len(batch["scored"])
            model.objective(to_device(batch, device)).loss.backward()
        optimizer.step()
        return tokens

    for _ in range(WARMUP_STEPS[device.type]):
        train()
    wait(device)
    start = time.perf_counter()
    tokens = sum(train() for _ in range(MEASURED_STEPS))
    wait(device)
    seconds = time.perf_counter() - start
    step_seconds = seconds / MEASURED_STEPS
    loader = data.val_dataloader()
    validation = list(loader.sampler)
    # The batches are sorted by length, so a few evenly spaced ones represent all.
    few = np.linspace(0, len(validation) - 1, min(MEASURED_VALIDATIONS, len(validation))).astype(int)
    start = time.perf_counter()
    with torch.no_grad():
        for i in few:
            model.nll(to_device(loader.dataset[validation[i]], device)).sum().item()
    validation_seconds = (time.perf_counter() - start) / len(few) * len(validation)
    return Measured(
        step_seconds=step_seconds,
        tokens_per_second=tokens / seconds,
        validation_seconds=validation_seconds,
        epoch_seconds=step_seconds * cost.steps + validation_seconds,
        run_seconds=step_seconds * cost.max_steps + validation_seconds * _count_passes(cfg, cost),
        peak_memory=peak_memory(device.type),
    )


def _count_passes(cfg: Config, cost: Cost) -> float:
    """Count a run's evaluations, at most, in units of a pass over the validation documents."""
    # At the end the best epoch is validated again, and tested: under θ_d, Θ, no LoRA, and θ_d without each deviation.
    validations = _count_validations(cfg, cost) + 1
    levels = len(cfg.data.levels)
    if cfg.tau == "learn":
        searches = 1 + (levels + 1 if levels else 0)
        validations = MAX_SCALES * validations + N_REFINED * searches
    tests = 3 + (1 + levels if levels else 0) if cost.trained_parameters > cost.parameters_per_task else 2
    return validations + tests * cost.documents["test"] / cost.documents["validation"]


def _count_validations(cfg: Config, cost: Cost) -> int:
    """Count the validations during training, at most."""
    epochs, every = math.ceil(cost.max_steps / cost.steps), cfg.trainer.val_check_interval
    if every is None:
        return epochs
    if isinstance(every, int):
        return min(cost.batches * epochs, cost.max_steps * cfg.trainer.accumulate_grad_batches) // every
    return epochs * (cost.batches // max(1, int(cost.batches * every)))
