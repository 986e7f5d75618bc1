"""The command `bora doctor OVERRIDES`: estimate whether a run will fit, and how long it will take.

    bora doctor model=smollm2_135m data=table data.path=letters.csv tau=100 --measure

It takes the settings of one `bora run`, but does not start a run or download anything.
"""

import argparse
import json
import os
from dataclasses import asdict
from typing import Any

from rich.table import Table

from bora.commands.exits import cli_errors
from bora.config.compose import compose_config
from bora.config.schema import Config
from bora.data.select import describe_dropped
from bora.errors import UserError
from bora.lib.cache import cache_root
from bora.lib.console import duration, plain_console, size
from bora.lib.files import user_path
from bora.lib.names import format_tau

FULL = 0.9  # share of the free memory above which a step may not fit
# Parts of a step's memory (bora.train.cost), in words.
MEMORY = {
    "backbone": "frozen backbone",
    "theta": "θ and Θ",
    "gradients": "their gradients",
    "moments": "AdamW's two moments",
    "averages": "their running averages",
    "rows_of_a_batch": "a batch's rows of θ, and their gradients",
    "logits_of_a_chunk": "logits, a chunk at a time",
}


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bora doctor", description="Will a run fit, and how long will it take?")
    add = parser.add_argument
    add("overrides", nargs="*", metavar="KEY=VALUE", help="as for bora run")
    add("--again", type=user_path, metavar="RUN", help="as for bora run: repeat a run's overrides")
    add("--measure", action="store_true", help="load the model and take 20 training steps, for time and memory")
    add("--json", action="store_true", help="print one JSON object; sizes are in bytes")
    return parser


def examine(cfg: Config, measured: bool) -> dict[str, Any]:
    """Collect what `bora doctor` reports: the config's names, Cost, free memory, Measured, warnings."""
    from bora.lib.machine import device_type, free_memory
    from bora.model.loading import load_backbone
    from bora.train.build import find_start, load_corpus
    from bora.train.cost import count_cost, measure

    corpus_file = cache_root() / "talk_of_norway" / "ton.csv"
    if cfg.data.source == "talk_of_norway" and cfg.data.path is None and not corpus_file.is_file():
        raise UserError(
            f"data=talk_of_norway: {corpus_file} does not exist, and bora doctor downloads nothing; give "
            "data.path=/path/to/ton.csv, or let bora run download it"
        )
    if cfg.init_from is not None:
        find_start(cfg.init_from)
    free = free_memory(device_type(cfg.trainer.accelerator))
    pretrained = load_backbone(cfg.model, cfg.trainer.accelerator, cfg.data.max_tokens, weights=False)
    corpus = load_corpus(cfg, pretrained)
    cost = count_cost(cfg, pretrained, corpus)
    report: dict[str, Any] = {
        "data": cfg.data.name,
        "model": cfg.model.name,
        "dtype": str(pretrained.model.dtype).removeprefix("torch."),
        "tau": cfg.tau,
        **asdict(cost),
        "dropped": corpus.dropped,
        "epochs": cfg.trainer.max_epochs,
        "free_memory": free,
        "measured": asdict(measure(cfg, corpus, cost)) if measured else None,
    }
    return report | {"warnings": warnings_for(report)}


def warnings_for(report: dict[str, Any]) -> list[str]:
    """Describe, a line each, what is likely to go wrong."""
    free = report["free_memory"]
    if free is None:
        return ["trainer.accelerator asks for a GPU, but torch sees none; give trainer=cpu"]
    needed = max(sum(report["memory"].values()), (report["measured"] or {}).get("peak_memory", 0))
    fix = "give fewer tasks, a lower lora.rank, a smaller data.batch_size or model.dtype=bfloat16"
    too_much = f"a step needs {size(needed)} of memory, but only {size(free)} are free; {fix}"
    return [too_much] if needed > FULL * free else []


def show(report: dict[str, Any]) -> None:
    """Print what `examine` collected."""
    r, taken = report, report["measured"]
    tau = ", ".join(map(format_tau, r["tau"] if isinstance(r["tau"], list) else [r["tau"]]))
    table = Table(title=f"{r['data']}, {r['model']}, τ = {tau}", title_justify="left", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    split = ", ".join(f"{r['documents'][s]:,} {s}" for s in ("train", "validation", "test"))
    table.add_row("tasks", f"{r['tasks']:,}")
    table.add_row("documents", f"{split}; {r['truncated_share']:.1%} of the tokens cut off")
    table.add_row("dropped", describe_dropped(r["dropped"]))
    batches = f" of {r['batches']:,} batches" if r["batches"] > r["steps"] else ""
    table.add_row("an epoch", f"{r['scored_tokens']:,} scored tokens, {r['steps']:,} steps{batches}")
    table.add_row("at most", f"{r['epochs']:,} epochs, {r['max_steps']:,} steps")
    table.add_row("frozen", f"{r['frozen_parameters']:,} parameters, {r['dtype']}")
    table.add_row("trained", f"{r['trained_parameters']:,} parameters, P = {r['parameters_per_task']:,} for each task")
    table.add_row("checkpoints", f"{size(r['checkpoint'])} each, best.ckpt and last.ckpt")
    table.add_row("memory of a step", f"{size(sum(r['memory'].values()))}, and activations; of these")
    for part, n_bytes in r["memory"].items():
        table.add_row(f"  {MEMORY[part]}", size(n_bytes))
    table.add_row("memory free", "no GPU" if r["free_memory"] is None else size(r["free_memory"]))
    if taken is None:
        table.add_row("time", "--measure takes 20 steps to find it")
    else:
        table.add_row("memory measured", f"{size(taken['peak_memory'])}, activations and libraries included")
        epoch, validation, step = (duration(taken[f"{of}_seconds"]) for of in ("epoch", "validation", "step"))
        table.add_row("time of an epoch", f"{epoch}: {step} a step, and {validation} to validate")
        table.add_row("time at most", f"{duration(taken['run_seconds'])}, the test included")
        table.add_row("speed", f"{taken['tokens_per_second']:,.0f} scored tokens a second")
    plain_console().print(table)
    for line in r["warnings"]:
        print(f"warning: {line}")


def main() -> None:
    arguments = parser().parse_intermixed_args()
    os.environ["HF_HUB_OFFLINE"] = "1"  # the hub's libraries read it when they are imported, below
    with cli_errors():
        from bora.runs.replay import changed_defaults, replay
        from bora.runs.values import json_safe

        given, run = arguments.overrides, arguments.again
        cfg, _ = compose_config(given if run is None else replay(run, given))
        report = examine(cfg, arguments.measure)
        if run is not None:
            report["warnings"] += [f"--again: {line}" for line in changed_defaults(run, cfg, given)]
        if arguments.json:
            print(json.dumps(json_safe(report), ensure_ascii=False))
        else:
            show(report)
