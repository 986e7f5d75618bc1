"""What a training step costs beside the frozen backbone alone, one LoRA, and a loop over tasks.

    python -m bora.bench model=opt_mini tasks=[1,25,400]

All variants take the same random batches of ragged documents, one step each in turn, in one process;
a second process each measures the peak memory. Rows of the table:
- floor: the frozen backbone, forward and backward to its embeddings, with our loss;
- one_lora: PEFT with a single adapter, its ordinary training step;
- loop_D: one forward for each task in the batch with PEFT's adapters switched in between, and a prior term
  for each task and tensor, as the published code works; always in float32, as there;
- bora_D: this project's step, complete: gather, forward, prior, backward, AdamW;
- compiled_floor, compiled_D: the same with model.compile=true (if `compiled` names a D).
The floor and bora run with the attention that `model.attention` gives, one_lora and the loop with transformers' own.
"""

import copy
import gc
import importlib.util
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import PreTrainedModel

from bora.bayes.adamw import learning_rate
from bora.bayes.model import HierarchicalLoRA
from bora.commands.run import leaving
from bora.config import config_folder, plain
from bora.lib.files import write_whole
from bora.lib.machine import forget_peak, processor
from bora.lib.machine import peak_memory as needed_at_most
from bora.lib.redaction import set_aside
from bora.model.backbone import Backbone
from bora.model.batch import Batch
from bora.model.likelihood import IGNORE, n_scored
from bora.model.loading import load_backbone
from bora.model.lora import Layout, linear_shape
from bora.model.targets import find_targets
from bora.runs.directory import versions

if TYPE_CHECKING:
    from peft import PeftModel

MIB = 2**20


class MaskedBatch(Batch):
    """With the mask of padding, which transformers' own loss asks for."""

    mask: Tensor


Step = Callable[[MaskedBatch], None]


@dataclass(frozen=True)
class Variant:
    """One row of the table.

    Attributes:
        name: floor, one_lora, loop_D or bora_D.
        build: makes its step, given the frozen model (which it may hook or wrap) and the config.
        n_tasks: D.
    """

    name: str
    build: Callable[[PreTrainedModel, DictConfig, int], Step]
    n_tasks: int = 1

    @property
    def is_bora(self) -> bool:
        """Whether its tasks' θ and moments are all that it holds beside the floor."""
        return self.name.startswith("bora_")


def variants(cfg: DictConfig) -> list[Variant]:
    """The table's rows, in order."""
    known = [
        Variant("floor", floor),
        Variant("one_lora", one_lora),
        Variant(f"loop_{cfg.loop_tasks}", loop, cfg.loop_tasks),
        *(Variant(f"bora_{n}", bora, n) for n in cfg.tasks),
    ]
    if cfg.compiled is not None:
        known.append(Variant("compiled_floor", partial(floor, compile=True)))
        known.append(Variant(f"compiled_{cfg.compiled}", partial(bora, compile=True), cfg.compiled))
    return known


def floor(model: PreTrainedModel, cfg: DictConfig, n_tasks: int, compile: bool = False) -> Step:
    backbone = Backbone(model, plain(cfg.lora)["target_modules"], compile=compile)
    # The embeddings' output is where the backward ends; nothing is trained.
    model.get_input_embeddings().register_forward_hook(lambda module, args, output: output.requires_grad_())

    def step(batch: MaskedBatch) -> None:
        nll = backbone.nll(batch, None)
        (nll.sum() / n_scored(batch["labels"]).sum()).backward()

    return step


def peft_model(model: PreTrainedModel, cfg: DictConfig, names: list[str]) -> "PeftModel":
    from peft import LoraConfig, get_peft_model

    model.set_attn_implementation("sdpa")  # as transformers loads it
    targets = plain(cfg.lora)["target_modules"]
    config = LoraConfig(
        r=cfg.lora.rank, lora_alpha=cfg.lora.alpha, target_modules=targets, task_type="CAUSAL_LM"
    )
    wrapped = get_peft_model(model, config, adapter_name=names[0])
    for name in names[1:]:
        wrapped.add_adapter(name, config)
    return wrapped.to(cfg.device)


def one_lora(model: PreTrainedModel, cfg: DictConfig, n_tasks: int) -> Step:
    wrapped = peft_model(model, cfg, ["default"])
    optimiser = torch.optim.AdamW(
        [p for p in wrapped.parameters() if p.requires_grad], lr=1e-4, weight_decay=0.0
    )

    def step(batch: MaskedBatch) -> None:
        optimiser.zero_grad()
        wrapped(
            input_ids=batch["input_ids"], attention_mask=batch["mask"], labels=batch["labels"]
        ).loss.backward()
        optimiser.step()

    return step


def loop(model: PreTrainedModel, cfg: DictConfig, n_tasks: int) -> Step:
    names = [f"task{d}" for d in range(n_tasks)]
    # In float32 of its own, if need be: the other variants share this one's weights.
    model = model if model.dtype == torch.float32 else copy.deepcopy(model).float()
    wrapped = peft_model(model, cfg, [*names, "mean"])
    factors: dict[str, list[Tensor]] = {name: [] for name in [*names, "mean"]}
    for key, parameter in wrapped.named_parameters():
        if "lora_" in key:  # …lora_A.task3.weight
            factors[key.split(".")[-2]].append(parameter.requires_grad_())
    optimiser = torch.optim.AdamW([p for part in factors.values() for p in part], lr=1e-4, weight_decay=0.0)

    def step(batch: MaskedBatch) -> None:
        optimiser.zero_grad()
        energy = torch.zeros((), device=cfg.device)
        for d in batch["task"].unique().tolist():
            rows = batch["task"] == d
            wrapped.set_adapter(names[d])
            loss = wrapped(
                input_ids=batch["input_ids"][rows],
                attention_mask=batch["mask"][rows],
                labels=batch["labels"][rows],
            ).loss
            energy = energy + 100 * loss
        for name in names:
            for theta, mean in zip(factors[name], factors["mean"], strict=True):
                energy = energy + cfg.tau / 2 * (theta - mean).square().sum()
        energy.backward()
        optimiser.step()

    return step


def bora(model: PreTrainedModel, cfg: DictConfig, n_tasks: int, compile: bool = False) -> Step:
    lora, names = plain(cfg.lora), [f"task{d}" for d in range(n_tasks)]
    init_std = lora.pop("init_std")
    hierarchical = HierarchicalLoRA(
        Backbone(model, **lora, compile=compile),
        names,
        [100] * n_tasks,
        100 * n_tasks * cfg.length,
        cfg.tau,
        **plain(cfg.prior),
        init_std=init_std,
    ).to(cfg.device)
    lr = learning_rate(cfg.tau, cfg.prior.parameterization)
    optimiser = hierarchical.optimizer(lr, tuple(cfg.optim.betas), cfg.optim.eps)

    def step(batch: MaskedBatch) -> None:
        optimiser.zero_grad()
        hierarchical.objective(batch).loss.backward()
        optimiser.step()

    return step


def random_batches(cfg: DictConfig, vocabulary: int) -> Iterator[dict[str, Tensor]]:
    """Random tokens in documents of half the length to all of it, padded on the right."""
    rng = np.random.default_rng(cfg.seed)
    while True:
        lengths = torch.from_numpy(rng.integers(cfg.length // 2, cfg.length + 1, cfg.batch_size))
        ids = torch.from_numpy(rng.integers(0, vocabulary, (cfg.batch_size, int(lengths.max()))))
        mask = torch.arange(ids.shape[1]) < lengths[:, None]
        batch = {
            "input_ids": ids,
            "labels": ids.masked_fill(~mask, IGNORE),
            "mask": mask.long(),
            "task": torch.from_numpy(rng.integers(0, 2**31, cfg.batch_size)),
        }
        yield {key: value.to(cfg.device) for key, value in batch.items()}


def of_tasks(batch: dict[str, Tensor], n_tasks: int) -> MaskedBatch:
    """The batch with its documents dealt out to this many tasks, and as one of 1000 of an epoch."""
    return {
        "input_ids": batch["input_ids"],
        "labels": batch["labels"],
        "mask": batch["mask"],
        "task": batch["task"] % n_tasks,
        "batches": 1000,
    }


def copy_of(model: PreTrainedModel) -> PreTrainedModel:
    """The model with modules of its own and the same weights in memory."""
    weights = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, weights)


def adapters_and_state(cfg: DictConfig, model: PreTrainedModel, n_tasks: int) -> int:
    """Bytes of D tasks' θ and AdamW's two moments, in float32."""
    layers = find_targets(model, plain(cfg.lora)["target_modules"])
    layout = Layout({name: linear_shape(layer) for name, layer in layers.items()}, cfg.lora.rank)
    return 3 * 4 * (n_tasks + 1) * layout.n_parameters


def free_memory(cfg: DictConfig) -> int:
    """Bytes on the device."""
    import psutil

    return psutil.virtual_memory().available if cfg.device == "cpu" else torch.cuda.mem_get_info()[0]


def wait(cfg: DictConfig) -> None:
    """Until the device has done what it was asked."""
    if cfg.device != "cpu":
        torch.cuda.synchronize()


def time_steps(
    cfg: DictConfig, model: PreTrainedModel, chosen: list[Variant]
) -> tuple[dict[str, list[float]], list[int]]:
    """Seconds of each timed step, by variant; and the batches' scored tokens. One step of each in turn."""
    steps = {v.name: v.build(copy_of(model), cfg, v.n_tasks) for v in chosen}
    seconds: dict[str, list[float]] = {v.name: [] for v in chosen}
    tokens = []
    batches = random_batches(cfg, model.config.get_text_config().vocab_size)
    gc.collect()
    for turn in range(cfg.warmup + cfg.rounds):
        batch = next(batches)
        if turn >= cfg.warmup:
            tokens.append(int(n_scored(batch["labels"]).sum()))
        for variant in chosen:
            mine = of_tasks(batch, variant.n_tasks)
            wait(cfg)
            start = time.perf_counter()
            steps[variant.name](mine)
            wait(cfg)
            if turn >= cfg.warmup:
                seconds[variant.name].append(time.perf_counter() - start)
    return seconds, tokens


def peak_memory(cfg: DictConfig, model: PreTrainedModel, variant: Variant) -> float:
    """MiB that three steps of one variant need at most; on the CPU the whole process, with its libraries."""
    forget_peak()  # what was needed to get here (imports, loading) does not count
    step = variant.build(model, cfg, variant.n_tasks)
    batches = random_batches(cfg, model.config.get_text_config().vocab_size)
    for _ in range(3):
        step(of_tasks(next(batches), variant.n_tasks))
    return needed_at_most(cfg.device) / MIB


def peak_memory_alone(variant: Variant) -> float:
    """The same, in a process of its own."""
    overrides = [*HydraConfig.get().overrides.task, f"only={variant.name}"]
    done = subprocess.run(
        [sys.executable, "-m", "bora.bench", *overrides], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"measuring the memory of {variant.name} failed: {done.stderr.strip()[-400:]}")
    return float(done.stdout.split()[-1])


def machine(cfg: DictConfig) -> dict[str, str | int]:
    """Where the numbers are from."""
    return {
        "cpu": processor(),
        "threads": torch.get_num_threads(),
        "device": cfg.device if cfg.device == "cpu" else torch.cuda.get_device_name(),
    }


def report(result: dict) -> None:
    """The table, on standard output."""
    cfg = result["settings"]
    table = Table(
        title=f"{cfg['model']['name']}, {cfg['batch_size']} × {cfg['length']}, {result['dtype']}, "
        f"{result['machine']['device']}, {result['machine']['threads']} threads",
        title_justify="left",
    )
    table.add_column("variant")
    for column in ("s/step", "quartiles", "tokens/s", "× floor", "peak MiB", "over floor", "θ + moments"):
        table.add_column(column, justify="right")
    for row in result["variants"]:
        low, high = row["quartiles"]
        cells = [f"{row['seconds']:.3f}", f"{low:.3f} to {high:.3f}", f"{row['tokens_per_second']:,.0f}"]
        cells.append(f"{row['to_floor']:.3f}")
        cells += [f"{row[k]:,.0f}" if k in row else "" for k in ("peak_mib", "over_floor_mib", "state_mib")]
        table.add_row(row["name"], *cells)
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    for name, mib in result["left_out"].items():
        print(f"{name}: left out, its θ and moments need {mib:,.0f} MiB")


@hydra.main(config_path=str(config_folder()), config_name="bench", version_base="1.3")
def job(cfg: DictConfig) -> None:
    """Measure, print, and write the JSON."""
    torch.manual_seed(cfg.seed)
    logging.getLogger("bora").setLevel(logging.WARNING)
    model = load_backbone(cfg.model, cfg.device, cfg.length).model.to(cfg.device).requires_grad_(False)
    known = variants(cfg)
    if cfg.only is not None:
        print(peak_memory(cfg, model, next(v for v in known if v.name == cfg.only)))
        return
    chosen, left_out, free = [], {}, free_memory(cfg)
    for variant in known:
        state = adapters_and_state(cfg, model, variant.n_tasks)
        # All variants live side by side; the rest is for activations.
        if state > 0.8 * free:
            left_out[variant.name] = state / MIB
        else:
            chosen.append(variant)
            free -= state
    seconds, tokens = time_steps(cfg, model, chosen)
    rows: list[dict[str, Any]] = []
    for variant in chosen:
        low, median, high = np.quantile(seconds[variant.name], [0.25, 0.5, 0.75]).tolist()
        ratios = np.array(seconds[variant.name]) / np.array(seconds["floor"])  # on the same batch
        row = {
            "name": variant.name, "n_tasks": variant.n_tasks, "seconds": median, "quartiles": [low, high],
            "tokens_per_second": float(np.median(np.array(tokens) / seconds[variant.name])),
            "to_floor": float(np.median(ratios)),
            "all_seconds": seconds[variant.name],
        }  # fmt: skip
        if cfg.memory:
            row["peak_mib"] = peak_memory_alone(variant)
            row["over_floor_mib"] = row["peak_mib"] - (rows[0] if rows else row)["peak_mib"]
            if variant.is_bora:
                row["state_mib"] = adapters_and_state(cfg, model, variant.n_tasks) / MIB
        rows.append(row)
    result = {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"), "machine": machine(cfg),
        "dtype": str(model.dtype).removeprefix("torch."), "attention": model.config._attn_implementation,
        "scored_tokens": tokens,
        "versions": versions(), "settings": plain(cfg),
        "variants": rows, "left_out": left_out,
    }  # fmt: skip
    report(result)
    out = Path(cfg.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, json.dumps(result, indent=1))
    print(f"written: {out}")


def main() -> None:
    """Run the command line."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    for package in ("peft", "psutil"):
        if importlib.util.find_spec(package) is None:
            print(
                f"bora: bora bench needs its extra: pip install 'bora[bench]' (there is no {package})",
                file=sys.stderr,
            )
            sys.exit(2)
    with leaving():
        set_aside()
        job()


if __name__ == "__main__":
    main()
