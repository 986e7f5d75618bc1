"""Write README.md, the model card of an exported adapter, model or folder: what it is, how good, how to load it."""

import json
import math
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast

import pandas as pd
from huggingface_hub import ModelCardData

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


def write_index(out: Path, restored: Restored, base: str, tasks: Mapping[str, str | None], repo: str | None) -> None:
    """Write the card of a folder of adapters: its tasks, where each is, and how to load one.

    Args:
        out: the folder.
        restored: the run.
        base: the base model's hub name or folder.
        tasks: folder → its task; None for the hierarchical mean.
        repo: the folder's name on the hub; None where it is on this machine only.
    """
    summary, perplexity = restored.summary, restored.per_task.set_index("task")["test_perplexity"]
    rows = [
        f"| {'*the hierarchical mean Θ*' if task is None else markdown(task)} | `{folder}` "
        f"| {'' if math.isnan(value := perplexity.get(task, math.nan)) else f'{value:.3f}'} |"
        for folder, task in tasks.items()
    ]
    how = "fitted to new tasks one by one" if "adapted_from" in summary else "trained together"
    lines = [
        f"LoRA adapters {how} by BoRA under a Gaussian prior of precision τ = {float(summary['tau']):g} around the mean "
        "Θ, a folder for each task. Made by `bora export`."
    ]
    if "test_perplexity" in summary:  # a folder of bora adapt has none
        lines.append(
            f"The test perplexity of the run's {summary['n_tasks']} tasks together, by token, is "
            f"{summary['test_perplexity']:.3f} with their LoRAs and {summary['base_test_perplexity']:.3f} with the "
            "frozen base model."
        )
    if Path(base).is_absolute():
        lines.append(
            f"The base model, {markdown(base)}, is a folder of the machine that they were trained on, and not on the hub."
        )
    place = repo or "PATH/OF/THIS/FOLDER"
    text = f"""\
---
{_metadata(base, repo).to_yaml()}
---

# {markdown(repo.partition("/")[2]) if repo else "LoRAs, one a task"}

{" ".join(lines)}

## Load one

```python
{LOAD_ADAPTER.format(base=base, place=f'"{place}", subfolder="{next(iter(tasks))}"', dtype=summary["dtype"])}
```

## Tasks

| task | folder | test perplexity |
|---|---|---:|
{chr(10).join(rows)}
"""
    write_text_atomically(out / CARD, text)


def write_card(
    folder: Path, restored: Restored, base: str | None, task: str | None, repo: str | None, merged: bool = False
) -> None:
    """Write a folder's card.

    Args:
        folder: what it is of.
        restored: the run.
        base: the base model's hub name or folder; None if it is in neither.
        task: its name; None for the hierarchical mean.
        repo: see `write_index`.
        merged: it is a whole model, not an adapter.
    """
    n_tasks = restored.summary["n_tasks"]
    if task is None:
        title = "the hierarchical mean"
        about = f"The mean Θ of the prior of {n_tasks} tasks' LoRAs, as a LoRA of its own."
    elif task not in restored.model.adapters.task_names:
        title = markdown(task)
        about = "What one group of tasks has in common, as a LoRA of its own: Θ and the group's deviation."
    else:
        title = markdown(task)
        about = "A LoRA for one task, fitted by BoRA "
        if "adapted_from" in restored.summary:
            about += "to a few documents, with the prior's mean Θ from a run on other tasks."
        else:
            about += "alone." if n_tasks == 1 else f"together with those of {n_tasks - 1} other tasks."
    if merged:
        about += " It is merged into its base model: this is a whole model."
    place = '"PATH/OF/THIS/FOLDER"'
    if repo:
        place = f'"{repo}"' if merged else f'"{repo}", subfolder="{folder.name}"'
    rows = "\n".join(f"| {name} | {value} |" for name, value in _facts(restored, base, task))
    text = f"""\
---
{_metadata(base, repo, merged).to_yaml()}
---

# {title}

{about} Made by `bora export`.

| | |
|---|---|
{rows}

## Load it

```python
{(LOAD_MERGED if merged else LOAD_ADAPTER).format(base=base, place=place, dtype=restored.summary["dtype"])}
```
"""
    if not merged:
        text += _explain_vllm(folder.name, base, restored.model.hyperparameters["rank"], repo)
    write_text_atomically(folder / CARD, text)


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
    summary, hparams, per_task = restored.summary, restored.model.hyperparameters, restored.per_task.set_index("task")
    is_task = task in per_task.index
    # Names are unique, so .loc gives one row.
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


def _explain_vllm(folder: str, base: str | None, rank: int, repo: str | None) -> str:
    """Say how vLLM serves an adapter."""
    enough = next((r for r in VLLM_RANKS if r >= rank), None)
    if enough is None:
        return f"\nvLLM serves LoRAs up to rank {VLLM_RANKS[-1]}; this one, of rank {rank}, must be merged.\n"
    model, name = shlex.quote(one_line(base or "")), (repo or "").rpartition("/")[2]
    download = f"hf download {repo} --local-dir {name} && cd {name}\n" if repo else ""
    return f"""
## Serve it with vLLM

From the folder above this one, where vLLM has LoRA for the architecture; more tasks are more `NAME=PATH` after
`--lora-modules`.

```sh
{download}vllm serve {model} --enable-lora --max-lora-rank {enough} --lora-modules {folder}=./{folder}
```
"""
