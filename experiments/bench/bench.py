"""What a training step costs beside the frozen backbone alone, one LoRA, and a loop over tasks.

    python experiments/bench/bench.py model=opt_mini 'tasks=[1,25,400]'

Arguments are the settings of `Settings` below, and bora's own model=…, model.*, lora.*, prior.*, optim.*, tau and seed.

All variants take the same random batches of ragged documents, one step each in turn, in one process; a second process
each measures the peak memory. Rows of the table:
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
import json
import logging
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple, cast

import numpy as np
import psutil
import torch
from omegaconf import OmegaConf
from peft import LoraConfig, PeftModel, get_peft_model
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import PreTrainedModel

from bora.bayes.adamw import learning_rate
from bora.bayes.model import HierarchicalLoRA
from bora.config.compose import compose_config
from bora.lib.machine import peak_memory as process_peak
from bora.lib.machine import reset_peak_memory, wait
from bora.model.backbone import Backbone
from bora.model.batch import Batch, find_places
from bora.model.likelihood import IGNORE, n_scored, scored_places
from bora.model.loading import load_backbone
from bora.model.lora import Layout, linear_shape
from bora.model.targets import find_targets
from bora.runs.values import versions

MIB = 2**20


def processor() -> str:
    """Return the processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


@dataclass
class Settings:
    """What is measured; each is set on the command line as NAME=VALUE."""

    tasks: list[int] = field(default_factory=lambda: [1, 25, 400, 2500, 10000])  # D of the rows bora_D
    loop_tasks: int | None = 25  # D of the row loop_D; null for none
    compiled: int | None = None  # D of a row with model.compile=true, and its floor; takes minutes
    batch_size: int = 16  # documents in a batch
    length: int = 128  # tokens of the longest document; each has between half of it and all of it
    rounds: int = 7  # timed steps of each variant, one of each in turn
    warmup: int = 2  # untimed steps of each before them
    device: str = "cpu"  # cpu | cuda
    memory: bool = True  # measure peak memory too, each variant in a process of its own
    only: str | None = None  # a variant's name: print its peak memory alone, MiB
    out: str = "outputs/bench.jsonl"  # gets a line of JSON: machine, arguments, every single time


def read_settings(arguments: list[str]) -> SimpleNamespace:
    """Read the command line: Settings, and of bora's config tau, seed, model, lora, prior and optim."""
    names = {f.name for f in fields(Settings)}
    own = [word for word in arguments if word.partition("=")[0] in names]
    others = [word for word in arguments if word not in own]
    if not any(word.startswith("model=") for word in others):
        others.append("model=smollm2_135m")
    settings = OmegaConf.to_object(OmegaConf.merge(Settings, OmegaConf.from_dotlist(own)))
    config, _ = compose_config(others)
    chosen = {key: getattr(config, key) for key in ("tau", "seed", "model", "lora", "prior", "optim")}
    return SimpleNamespace(**asdict(settings), **chosen, arguments=arguments)


class MaskedBatch(Batch):
    """A batch with the mask of padding, which transformers' own loss asks for."""

    mask: Tensor


Step = Callable[[MaskedBatch], None]


class Variant(NamedTuple):
    """A row of the table: `build` makes its step, given the frozen model (which it may hook or wrap), cfg and D."""

    name: str
    build: Callable[[PreTrainedModel, SimpleNamespace, int], Step]
    n_tasks: int = 1


def variants(cfg: SimpleNamespace) -> list[Variant]:
    """List the table's rows, in order."""
    rows = [
        Variant("floor", floor),
        Variant("one_lora", one_lora),
        *(Variant(f"loop_{n}", loop, n) for n in [cfg.loop_tasks] if n is not None),
        *(Variant(f"bora_{n}", bora, n) for n in cfg.tasks),
    ]
    if cfg.compiled is not None:
        rows.append(Variant("compiled_floor", partial(floor, compile=True)))
        rows.append(Variant(f"compiled_{cfg.compiled}", partial(bora, compile=True), cfg.compiled))
    return rows


def floor(model: PreTrainedModel, cfg: SimpleNamespace, n_tasks: int, compile: bool = False) -> Step:
    backbone = Backbone(model, cfg.lora.target_modules, compile=compile)
    # The embeddings' output is where the backward ends; nothing is trained.
    model.get_input_embeddings().register_forward_hook(lambda module, args, output: output.requires_grad_())

    def step(batch: MaskedBatch) -> None:
        nll = backbone.nll(batch, None)
        (nll.sum() / n_scored(batch["labels"]).sum()).backward()

    return step


def peft_model(model: PreTrainedModel, cfg: SimpleNamespace, names: list[str]) -> PeftModel:
    model.set_attn_implementation("sdpa")  # as transformers loads it
    config = LoraConfig(
        r=cfg.lora.rank, lora_alpha=cfg.lora.alpha, target_modules=cfg.lora.target_modules, task_type="CAUSAL_LM"
    )
    wrapped = get_peft_model(model, config, adapter_name=names[0])
    for name in names[1:]:
        wrapped.add_adapter(name, config)
    return wrapped.to(cfg.device)


def one_lora(model: PreTrainedModel, cfg: SimpleNamespace, n_tasks: int) -> Step:
    wrapped = peft_model(model, cfg, ["default"])
    optimiser = torch.optim.AdamW([p for p in wrapped.parameters() if p.requires_grad], lr=1e-4, weight_decay=0.0)

    def step(batch: MaskedBatch) -> None:
        optimiser.zero_grad()
        wrapped(input_ids=batch["input_ids"], attention_mask=batch["mask"], labels=batch["labels"]).loss.backward()
        optimiser.step()

    return step


def loop(model: PreTrainedModel, cfg: SimpleNamespace, n_tasks: int) -> Step:
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
                input_ids=batch["input_ids"][rows], attention_mask=batch["mask"][rows], labels=batch["labels"][rows]
            ).loss
            energy = energy + 100 * loss
        for name in names:
            for theta, mean in zip(factors[name], factors["mean"], strict=True):
                energy = energy + cfg.tau / 2 * (theta - mean).square().sum()
        energy.backward()
        optimiser.step()

    return step


def hierarchical(model: PreTrainedModel, cfg: SimpleNamespace, n_tasks: int, compile: bool = False) -> HierarchicalLoRA:
    lora, names = cfg.lora, [f"task{d}" for d in range(n_tasks)]
    return HierarchicalLoRA(
        Backbone(
            model, lora.target_modules, lora.rank, lora.effective_alpha, compile, cuda_graphs=cfg.model.cuda_graphs
        ),
        names,
        [100] * n_tasks,
        100 * n_tasks * cfg.length,
        cfg.tau,
        **cfg.prior.model_dump(),
        init_std=lora.init_std,
    ).to(cfg.device)


def bora(model: PreTrainedModel, cfg: SimpleNamespace, n_tasks: int, compile: bool = False) -> Step:
    trained = hierarchical(model, cfg, n_tasks, compile)
    lr = learning_rate(cfg.tau, cfg.prior.parameterization)
    optimiser = trained.optimizer(lr, tuple(cfg.optim.betas), cfg.optim.eps)

    def step(batch: MaskedBatch) -> None:
        optimiser.zero_grad()
        trained.objective(batch).loss.backward()
        optimiser.step()

    return step


def random_batches(cfg: SimpleNamespace, vocabulary: int) -> Iterator[dict[str, Tensor]]:
    """Yield random tokens in documents of half the length to all of it, padded on the right."""
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
        yield batch


def of_tasks(batch: dict[str, Tensor], n_tasks: int, device: str = "cpu") -> MaskedBatch:
    """Deal the batch's documents out to this many tasks, as one of an epoch's 1000 batches, as the loader makes them."""
    task = batch["task"] % n_tasks
    present, place = find_places(task)
    found = {"task": task, "present": present, "place": place, "scored": scored_places(batch["labels"])}
    moved = {key: value.to(device) for key, value in (batch | found).items()}
    return cast(MaskedBatch, moved | {"batches": 1000})


def copy_of(model: PreTrainedModel) -> PreTrainedModel:
    """Copy the model: modules of its own, the same weights in memory."""
    weights = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, weights)


def adapters_and_state(cfg: SimpleNamespace, model: PreTrainedModel, n_tasks: int) -> int:
    """Count the bytes of D tasks' θ and AdamW's two moments, in float32."""
    layers = find_targets(model, cfg.lora.target_modules)
    layout = Layout({name: linear_shape(layer) for name, layer in layers.items()}, cfg.lora.rank)
    return 3 * 4 * (n_tasks + 1) * layout.n_parameters


def free_memory(cfg: SimpleNamespace) -> int:
    """Measure the free bytes on the device."""
    return psutil.virtual_memory().available if cfg.device == "cpu" else torch.cuda.mem_get_info()[0]


def time_steps(
    cfg: SimpleNamespace, model: PreTrainedModel, chosen: list[Variant]
) -> tuple[dict[str, list[float]], list[int]]:
    """Time one step of each variant in turn: seconds by variant, and the batches' scored tokens."""
    steps = {v.name: v.build(copy_of(model), cfg, v.n_tasks) for v in chosen}
    seconds: dict[str, list[float]] = {v.name: [] for v in chosen}
    tokens, device = [], torch.device(cfg.device)
    batches = random_batches(cfg, model.config.get_text_config().vocab_size)
    gc.collect()
    for turn in range(cfg.warmup + cfg.rounds):
        batch = next(batches)
        if turn >= cfg.warmup:
            tokens.append(int(n_scored(batch["labels"]).sum()))
        for variant in chosen:
            mine = of_tasks(batch, variant.n_tasks, cfg.device)
            wait(device)
            start = time.perf_counter()
            steps[variant.name](mine)
            wait(device)
            if turn >= cfg.warmup:
                seconds[variant.name].append(time.perf_counter() - start)
    return seconds, tokens


def peak_memory(cfg: SimpleNamespace, model: PreTrainedModel, variant: Variant) -> float:
    """Measure the peak of three steps of one variant, MiB; on the CPU of the whole process, with its libraries."""
    reset_peak_memory()  # what was needed to get here (imports, loading) does not count
    step = variant.build(model, cfg, variant.n_tasks)
    batches = random_batches(cfg, model.config.get_text_config().vocab_size)
    for _ in range(3):
        step(of_tasks(next(batches), variant.n_tasks, cfg.device))
    return process_peak(cfg.device) / MIB


def peak_memory_alone(cfg: SimpleNamespace, variant: Variant) -> float:
    """Measure the peak in a process of its own, MiB."""
    command = [sys.executable, __file__, *cfg.arguments, f"only={variant.name}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"measuring the memory of {variant.name} failed: {done.stderr.strip()[-400:]}")
    return float(done.stdout.split()[-1])


def report(cfg: SimpleNamespace, result: dict) -> None:
    """Print the table."""
    table = Table(
        title=f"{cfg.model.name}, {cfg.batch_size} × {cfg.length}, {result['dtype']}, "
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


def choose(cfg: SimpleNamespace, model: PreTrainedModel) -> tuple[list[Variant], dict[str, float]]:
    """Choose the variants whose θ and moments fit the memory together; of the others, the MiB that they need."""
    chosen, left_out, free = [], {}, free_memory(cfg)
    for variant in variants(cfg):
        state = adapters_and_state(cfg, model, variant.n_tasks)
        if state > 0.8 * free:  # the rest is for activations
            left_out[variant.name] = state / MIB
        else:
            chosen.append(variant)
            free -= state
    return chosen, left_out


def summarise(
    cfg: SimpleNamespace,
    model: PreTrainedModel,
    chosen: list[Variant],
    seconds: dict[str, list[float]],
    tokens: list[int],
) -> list[dict]:
    """Build the table's rows; with `memory`, measure each variant's peak."""
    rows: list[dict] = []
    for variant in chosen:
        low, median, high = np.quantile(seconds[variant.name], [0.25, 0.5, 0.75]).tolist()
        ratios = np.array(seconds[variant.name]) / np.array(seconds["floor"])  # on the same batch
        row = {
            "name": variant.name,
            "n_tasks": variant.n_tasks,
            "seconds": median,
            "quartiles": [low, high],
            "tokens_per_second": float(np.median(np.array(tokens) / seconds[variant.name])),
            "to_floor": float(np.median(ratios)),
            "all_seconds": seconds[variant.name],
        }
        if cfg.memory:
            row["peak_mib"] = peak_memory_alone(cfg, variant)
            row["over_floor_mib"] = row["peak_mib"] - (rows[0] if rows else row)["peak_mib"]
            if variant.name.startswith("bora_"):  # θ and moments are all that it holds beside the floor
                row["state_mib"] = adapters_and_state(cfg, model, variant.n_tasks) / MIB
        rows.append(row)
    return rows


def main() -> None:
    """Measure, print the table, and append a line of JSON to the file `out`."""
    cfg = read_settings(sys.argv[1:])
    torch.manual_seed(cfg.seed)
    model = load_backbone(cfg.model, cfg.device, cfg.length).model.to(cfg.device).requires_grad_(False)
    if cfg.only is not None:
        print(peak_memory(cfg, model, next(v for v in variants(cfg) if v.name == cfg.only)))
        return
    chosen, left_out = choose(cfg, model)
    seconds, tokens = time_steps(cfg, model, chosen)
    result = {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "machine": {
            "cpu": processor(),
            "threads": torch.get_num_threads(),
            "device": cfg.device if cfg.device == "cpu" else torch.cuda.get_device_name(),
        },
        "arguments": cfg.arguments,
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": model.config._attn_implementation,
        "scored_tokens": tokens,
        "versions": versions(),
        "variants": summarise(cfg, model, chosen, seconds, tokens),
        "left_out": left_out,
    }
    report(cfg, result)
    out = Path(cfg.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("a", encoding="utf-8") as file:
        file.write(json.dumps(result) + "\n")
    print(f"written: {out}")


if __name__ == "__main__":
    logging.getLogger("bora").setLevel(logging.WARNING)
    main()
