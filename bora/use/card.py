"""Write README.md, the model card of an exported adapter, model or folder: what it is, how good it is, how to load it."""

import json
import math
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast

import pandas as pd
from huggingface_hub import ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined

from bora.lib.files import write_text_atomically
from bora.lib.names import markdown, one_line
from bora.use.restore import Restored

CARD = "README.md"
VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # values of vLLM's --max-lora-rank

LOAD_ADAPTER = """\
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({base!r})
base = AutoModelForCausalLM.from_pretrained({base!r}, dtype="{dtype}")  # as in training
model = PeftModel.from_pretrained(base, {place})"""

LOAD_MERGED = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({place})
model = AutoModelForCausalLM.from_pretrained({place}, dtype="{dtype}")"""


# The output is Markdown, which lib.names.markdown escapes.
TEMPLATES = Environment(  # noqa: S701
    loader=PackageLoader("bora", "use"), trim_blocks=True, keep_trailing_newline=True, undefined=StrictUndefined
)


def write_index(out: Path, restored: Restored, base: str, tasks: Mapping[str, str | None], repo: str | None) -> None:
    """Write the card of a run's folder of adapters: its tasks, where each is, and how to load one.

    Args:
        base: the base model's hub name or folder.
        tasks: folder → its task; None for the hierarchical mean.
        repo: the folder's name on the hub; None if it is only on this machine.
    """
    summary, perplexity = restored.summary, restored.directory.per_task().set_index("task")["test_perplexity"]
    rows = []
    for folder, task in tasks.items():
        value = perplexity.get(task, math.nan)
        name = "*the hierarchical mean Θ*" if task is None else markdown(task)
        rows.append((folder, name, "" if math.isnan(value) else f"{value:.3f}"))
    place = f'"{repo or "PATH/OF/THIS/FOLDER"}", subfolder="{next(iter(tasks))}"'
    index = TEMPLATES.get_template("index.md.j2").render(
        metadata=_metadata(base, repo).to_yaml(),
        title=markdown(repo.partition("/")[2]) if repo else "LoRAs, one for each task",
        how="fitted to new tasks one by one" if "adapted_from" in summary else "trained together",
        tau=float(summary["tau"]),
        summary=summary,
        local=Path(base).is_absolute(),
        base=markdown(base),
        load=LOAD_ADAPTER.format(base=base, place=place, dtype=summary["dtype"]),
        tasks=rows,
    )
    write_text_atomically(out / CARD, index)


def write_card(
    folder: Path, restored: Restored, base: str | None, task: str | None, repo: str | None, merged: bool = False
) -> None:
    """Write the card of a task's adapter, or of its whole model if `merged`, into its folder; see `write_index`.

    Args:
        base: None for a base model that is neither on the hub nor in a folder.
        task: None for the hierarchical mean.
    """
    place = '"PATH/OF/THIS/FOLDER"'
    if repo:
        place = f'"{repo}"' if merged else f'"{repo}", subfolder="{folder.name}"'
    rank = restored.model.hyperparameters["rank"]
    load = LOAD_MERGED if merged else LOAD_ADAPTER
    card = TEMPLATES.get_template("card.md.j2").render(
        metadata=_metadata(base, repo, merged).to_yaml(),
        title="the hierarchical mean" if task is None else markdown(task),
        about=_about(restored, task) + " It is merged into its base model: this is a whole model." * merged,
        facts=_facts(restored, base, task),
        load=load.format(base=base, place=place, dtype=restored.summary["dtype"]),
        merged=merged,
        repo=repo,
        base=shlex.quote(one_line(base or "")),
        folder=folder.name,
        rank=rank,
        vllm_ranks=VLLM_RANKS,
        max_rank=next((r for r in VLLM_RANKS if r >= rank), None),
    )
    write_text_atomically(folder / CARD, card)


def _about(restored: Restored, task: str | None) -> str:
    """Describe a LoRA in a sentence."""
    n_tasks = restored.summary["n_tasks"]
    if task is None:
        return f"The mean Θ of the prior of {n_tasks} tasks' LoRAs, as a LoRA."
    if task not in restored.model.adapters.task_names:
        return "What one group of tasks has in common, as a LoRA: Θ plus the group's deviation."
    about = "A LoRA for one task, fitted by BoRA "
    if "adapted_from" in restored.summary:
        return about + "to a few documents, with the prior's mean Θ from a run on other tasks."
    return about + ("alone." if n_tasks == 1 else f"together with those of {n_tasks - 1} other tasks.")


def _metadata(base: str | None, repo: str | None, merged: bool = False) -> ModelCardData:
    """Make a card's metadata. The hub refuses a folder as the base model."""
    return ModelCardData(
        base_model=None if repo and base and Path(base).is_absolute() else base,
        library_name="transformers" if merged else "peft",
        pipeline_tag="text-generation",
        tags=["bora", "lora"],
    )


def _facts(restored: Restored, base: str | None, task: str | None) -> Iterator[tuple[str, str]]:
    """Yield the rows of the card's table."""
    summary, hparams = restored.summary, restored.model.hyperparameters
    per_task = restored.directory.per_task().set_index("task")
    is_task = task in per_task.index
    # Names are unique, so .loc returns one row.
    row = cast(pd.Series, per_task.loc[task] if is_task else per_task.sum())
    yield "base model", markdown(base or f"{summary['model']} (random weights)")
    if is_task:
        yield "task", markdown(str(task))
    yield "training documents", f"{row.n_train:.0f} ({row.train_tokens:.0f} scored tokens)"
    yield "validation documents", f"{row.n_val:.0f}"
    yield "test documents", f"{row.n_test:.0f} ({row.test_tokens:.0f} scored tokens)"
    if not is_task:
        yield "perplexity", "not measured for this LoRA"
    else:
        for split, value in (("validation", row.val_perplexity), ("test", row.test_perplexity)):
            measured = "not measured, no held-out scored token" if math.isnan(value) else f"{value:.3f}"
            yield f"{split} perplexity", measured
        yield "distance from the mean", f"{row.distance:.4g}"
    if "test_perplexity" in summary:  # a folder of bora adapt has none
        yield "test perplexity, all tasks with their LoRAs", f"{summary['test_perplexity']:.3f}"
        yield "test perplexity, all tasks, frozen base model", f"{summary['base_test_perplexity']:.3f}"
    yield "τ", f"{float(summary['tau']):g}"
    yield "rank r", str(hparams["rank"])
    yield "α", f"{hparams['alpha']:g} (the update is α/r · B A)"
    yield "base model in training", markdown(restored.cfg.model.quantization or summary["dtype"])
    yield "corpus", markdown(summary["data"])
    yield "data_sha256", markdown(summary["data_sha256"])
    for key in ("prompt", "template"):
        text = getattr(restored.cfg.data, key)
        if text not in (None, "{text}"):
            yield f"data.{key}", markdown(json.dumps(text, ensure_ascii=False))
    if restored.tokens.chat or restored.tokens.chat_template:
        yield "documents", "chats, written by the tokenizer's chat template"
    yield "end-of-text token after each document", "yes" if restored.tokens.append_eos else "no"
    yield "longest document", f"{restored.tokens.max_tokens} tokens"
    libraries = ("bora", "torch", "transformers")
    yield "trained with", ", ".join(f"{name} {markdown(summary['versions'][name])}" for name in libraries)
