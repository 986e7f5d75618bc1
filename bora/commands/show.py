"""What `bora doctor` prints."""

import math
from typing import Any

from rich.table import Table

from bora.lib.console import duration, plain_console, size
from bora.model.loading import FAST

# bora.train.cost's names of what memory is of, in words.
MEMORY = {
    "backbone": "frozen backbone",
    "theta": "θ and Θ",
    "gradients": "their gradients",
    "moments": "AdamW's two moments",
    "rows_of_a_batch": "a batch's rows of θ, and their gradient",
    "logits_of_a_chunk": "logits, a chunk at a time",
}
NAMED = ("bora", "torch", "lightning", "transformers", "wandb")  # versions that are shown; --json has all


def _print(title: str, rows: list[tuple[str, str]]) -> None:
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, value)
    plain_console().print(table)


def show_machine(machine: dict[str, Any]) -> None:
    """This machine, as bora.commands.doctor.machine has it."""
    versions, speed = machine["versions"], machine["bfloat16_speed"]
    memory = machine["memory"]
    rows = [
        ("versions", ", ".join(f"{name} {versions[name]}" for name in NAMED)),
        ("Python", f"{versions['python']} on {machine['platform']}"),
        (
            "processor",
            f"{machine['processor']}, {machine['cores']} cores, threads that torch uses: {machine['threads']}",
        ),
        (
            "its bfloat16",
            f"{speed:.2g} × as fast as float32; model.dtype=auto takes {'it' if speed >= FAST else 'float32'} on it",
        ),
        (
            "memory",
            f"{size(memory['total'])}, of which {size(memory['free'])} are free",
        ),
    ]
    for gpu in machine["gpus"]:
        kind = "with bfloat16" if gpu["bfloat16"] else "without bfloat16"
        rows.append(
            (
                "GPU",
                f"{gpu['name']}, {size(gpu['memory'])}, of which {size(gpu['free'])} are free; {kind}",
            )
        )
    if not machine["gpus"]:
        rows.append(("GPU", "none that torch sees"))
    rows += [(f"disk for {d['of']}", f"{size(d['free'])} free at {d['folder']}") for d in machine["disk"]]
    _print("this machine", rows)


def show_cost(cost: dict[str, Any]) -> None:
    """What a run costs, as bora.commands.doctor.examine has it."""
    documents, tau = cost["documents"], "∞" if math.isinf(cost["tau"]) else f"{cost['tau']:g}"
    rows = [
        (
            "backbone",
            f"{cost['backbone_parameters']:,} parameters, {cost['dtype']}, {cost['attention']} attention",
        ),
        (
            "trained",
            f"{cost['trainable_parameters']:,} parameters: P = {cost['params_per_task']:,} a task, D = "
            f"{cost['n_tasks']} tasks{' sharing Θ' if cost['parameterization'] == 'shared' else ' and Θ'}",
        ),
        ("parameters in all", f"{cost['parameters']:,}"),
        ("documents", ", ".join(f"{n:,} {split}" for split, n in documents.items())),
        (
            "an epoch",
            f"{cost['scored_tokens']:,} scored tokens, {cost['steps']:,} steps"
            + (f" of {cost['batches'] // cost['steps']} batches" if cost["batches"] > cost["steps"] else ""),
        ),
        ("at most", f"{cost['epochs']:,} epochs, {cost['max_steps']:,} steps"),
        ("checkpoints", f"{size(cost['checkpoint'])} each, best.ckpt and last.ckpt"),
        (
            "memory of a step",
            f"{size(cost['memory_in_all'])} and activations, which are not counted; of these",
        ),
    ]
    rows += [(f"  {MEMORY[of]}", size(n)) for of, n in cost["memory"].items()]
    taken = cost["measured"]
    if taken is None:
        rows.append(("time", "not measured; --measure takes a few steps"))
    else:
        rows += [
            (
                "time of an epoch",
                f"{duration(taken['epoch_seconds'])}, of which {duration(taken['validation_seconds'])} to validate "
                f"({duration(taken['batch_seconds'])} a batch, the median of {taken['batches']})",
            ),
            ("time at most", f"{duration(taken['run_seconds'])}, the test included"),
            ("memory measured", f"{size(taken['peak_memory'])}, activations and libraries included"),
        ]
    _print(f"{cost['data']}, {cost['model']}, τ = {tau}", rows)
