"""The model card, README.md, of an exported adapter or model: what it is, how good, how to load it."""

import json
import math
import shlex
from typing import cast

import pandas as pd
from huggingface_hub import ModelCardData

from bora.lib.names import markdown as escape
from bora.lib.names import one_line
from bora.use.restore import Restored

# What vLLM takes as --max-lora-rank.
VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


def card(restored: Restored, base: str | None, task: str | None, folder: str, merged: bool = False) -> str:
    """README.md of one folder.

    Args:
        restored: the run.
        base: the base model's hub name or folder; None where it is nowhere.
        task: its name; None for the hierarchical mean.
        folder: the folder's name.
        merged: it is a whole model, not an adapter.
    """
    data = ModelCardData(
        base_model=base,
        library_name="transformers" if merged else "peft",
        pipeline_tag="text-generation",
        tags=["bora", "lora"],
    )
    n_tasks = restored.summary["n_tasks"]
    if task is None:
        title = "the hierarchical mean"
        about = f"The mean Θ around which the LoRAs of {n_tasks} tasks were tied, as a LoRA of its own."
    else:
        title = escape(task)
        about = f"A LoRA for one task, trained by BoRA together with those of {n_tasks - 1} others."
    if merged:
        about += " It is merged into its base model: this is a whole model."
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {title}",
        f"{about} Made by `bora export`.",
        _table(_facts(restored, base, task)),
        _how_to_load(folder, base, merged),
    ]
    if not merged:
        parts.append(_vllm(folder, base, restored.model.hyperparameters["rank"]))
    return "\n\n".join(parts) + "\n"


def _facts(restored: Restored, base: str | None, task: str | None) -> dict[str, str]:
    """What the table says, in its order."""
    summary, hparams, per_task = (restored.summary, restored.model.hyperparameters, restored.directory.per_task())
    facts = {"base model": escape(base or f"{summary['model']} (random weights)")}
    if task is not None:
        row = cast(pd.Series, per_task.set_index("task").loc[task])  # a task stands there once
        facts |= {"task": escape(task)} | _documents(row)
        facts |= {
            "validation perplexity": _perplexity(row.val_perplexity),
            "test perplexity": _perplexity(row.test_perplexity),
        }
    else:
        facts |= _documents(per_task.drop(columns="task").sum())
        facts["perplexity"] = "of Θ alone not measured"
    if "test_perplexity" in summary:  # a folder of bora adapt has none
        facts |= {
            "test perplexity, all tasks with their LoRAs": f"{summary['test_perplexity']:.3f}",
            "test perplexity, all tasks, frozen base model": f"{summary['base_test_perplexity']:.3f}",
        }
    facts["τ"] = f"{float(summary['tau']):g}"
    if task is not None:
        facts["distance from the mean"] = f"{row.distance:.4g}"
    facts |= {
        "rank r": str(hparams["rank"]),
        "α": f"{hparams['alpha']:g} (the update is α/r · B A)",
        "base model in training": escape(restored.cfg.model.quantization or summary["dtype"]),
        "corpus": escape(summary["data"]),
        "data_sha256": escape(summary["data_sha256"]),
    }
    for key in ("prompt", "template"):
        text = getattr(restored.cfg.data, key)
        if text is not None and text != "{text}":
            facts[f"data.{key}"] = escape(json.dumps(text, ensure_ascii=False))
    versions = summary["versions"]
    facts["trained with"] = ", ".join(f"{name} {escape(versions[name])}" for name in ("bora", "torch", "transformers"))
    return facts


def _documents(row: pd.Series) -> dict[str, str]:
    return {
        "training documents": f"{row.n_train:.0f} ({row.train_tokens:.0f} scored tokens)",
        "validation documents": f"{row.n_val:.0f}",
        "test documents": f"{row.n_test:.0f} ({row.test_tokens:.0f} scored tokens)",
    }


def _perplexity(value: float) -> str:
    return "not measured, no held-out scored token" if math.isnan(value) else f"{value:.3f}"


def _table(facts: dict[str, str]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts.items())])


def _how_to_load(folder: str, base: str | None, merged: bool) -> str:
    if merged:
        lines = [
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            f"tokenizer = AutoTokenizer.from_pretrained({folder!r})",
            f"model = AutoModelForCausalLM.from_pretrained({folder!r})",
        ]
    else:
        lines = [
            "from peft import PeftModel",
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            f"tokenizer = AutoTokenizer.from_pretrained({base!r})",
            f"base = AutoModelForCausalLM.from_pretrained({base!r})",
            f"model = PeftModel.from_pretrained(base, {folder!r})  # this folder's path",
        ]
    return "\n".join(["## Load it", "", "```python", *lines, "```"])


def _vllm(folder: str, base: str | None, rank: int) -> str:
    enough = next((r for r in VLLM_RANKS if r >= rank), None)
    if enough is None:
        return f"vLLM serves LoRAs up to rank {VLLM_RANKS[-1]}; this one, of rank {rank}, must be merged."
    command = (
        f"vllm serve {shlex.quote(one_line(base or ''))} --enable-lora --max-lora-rank {enough} "
        f"--lora-modules {folder}=./{folder}"
    )
    return "\n".join(
        [
            "## Serve it with vLLM",
            "",
            "From the folder above this one, where vLLM has LoRA for the architecture; more tasks are more "
            "`NAME=PATH` after `--lora-modules`.",
            "",
            "```sh",
            command,
            "```",
        ]
    )
