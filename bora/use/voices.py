"""Show how each task of a run speaks: its most characteristic tokens, and how all tasks continue one prompt.

The gain of a task is by how many nats a token its documents are likelier under θ_d than under Θ. An item w of the
vocabulary contributes to it, with N_d the task's scored tokens::

    contribution of w = 1/N_d Σ_{places of w} [log p(w | before, θ_d) − log p(w | before, Θ)]

so all contributions of a task add up to its gain. An item is characteristic if it is frequent in the task and occurs
where the other tasks would not expect it. This is like keyness in corpus linguistics, but compares each place in its own
context. A rare item cannot have a large contribution by its log-ratio alone.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from bora.data.prompts import show_prompt
from bora.data.select import draw
from bora.errors import UserError
from bora.lib.files import make_output_folder, replace_files
from bora.model.backbone import Backbone
from bora.model.batch import Batch, find_places
from bora.model.likelihood import token_nll
from bora.report.voices import CONTINUATIONS, FOLDER, TOKENS
from bora.runs.directory import SUMMARY
from bora.runs.values import versions, write_csv, write_json
from bora.use.generate import generate
from bora.use.restore import Restored

MAX_NEW_TOKENS, REPETITION_PENALTY = 32, 1.2  # without the penalty small models repeat themselves
SIGNS = str.maketrans({" ": "␣", "\n": "↵", "\t": "⇥"})


def require_voices(summary: dict[str, Any]) -> None:
    """Raise a UserError if all tasks of a run are Θ, according to its summary."""
    if np.isinf(summary["tau"]):
        raise UserError("at tau=inf all tasks are Θ, so none has a voice of its own; give a run with a finite tau")


def find_voices(
    restored: Restored,
    table: pd.DataFrame,
    tasks: Sequence[str],
    prompt: Any = None,
    documents: int | None = None,
    batch_size: int = 32,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Find tasks' tokens, see `characteristic_tokens`, and continue one prompt under Θ and the tasks.

    Args:
        table: from `bora.runs.corpus.split_documents`.
        tasks: names of the tasks.
        prompt: see `continue_prompt`; None for the start of the first task's first document.
        documents: at most how many documents of each task to draw at random; None for all.
        batch_size: rows in a forward pass.
    """
    if prompt is None:
        prompt = restored.tokens.example(table[table["task"] == restored.model.adapters.task_names[0]].head(1))
    options = {"batch_size": batch_size, "max_new_tokens": max_new_tokens, "repetition_penalty": REPETITION_PENALTY}
    said = continue_prompt(restored, tasks, prompt, **options)
    drawn = draw(table[table["task"].isin(tasks)], documents)
    return characteristic_tokens(restored, drawn, batch_size), said


@torch.no_grad()
def characteristic_tokens(restored: Restored, table: pd.DataFrame, batch_size: int = 32) -> pd.DataFrame:
    """Compute what each item of the vocabulary contributes to the gain of each task.

    Args:
        table: documents, columns task, text and those that prompts use.
        batch_size: documents in a forward pass.

    Returns:
        One row for each task and item: task, in the run's order; token, as `show_token` writes it; id; count, its places;
        documents, how many have it; log_ratio, the mean over its places, nats; contribution, nats a token, the largest
        first.
    """
    model, names = restored.model, restored.model.adapters.task_names
    documents, _ = restored.documents(table)
    whose, found = np.array([piece.document for piece in documents.documents]), []
    for some, batch in documents.by_length(batch_size, model.device, "tokens"):
        theta = model.adapters.shrunk_rows(find_places(batch["task"]), model.backbone.dtype)
        ratio = _nll(model.backbone, batch, model.adapters.mean) - _nll(model.backbone, batch, theta)
        row = (batch["scored"] // batch["labels"].shape[1]).cpu()
        ids = batch["labels"].flatten()[batch["scored"]].cpu()
        columns = {"task": batch["task"].cpu()[row], "id": ids, "document": whose[some][row], "ratio": ratio.cpu()}
        found.append(pd.DataFrame({name: np.asarray(values) for name, values in columns.items()}))
    places = pd.concat(found).astype({"ratio": float})
    how = {"count": ("ratio", "size"), "documents": ("document", "nunique"), "log_ratio": ("ratio", "mean")}
    items = places.groupby(["task", "id"]).agg(**how).reset_index()
    items["contribution"] = items["log_ratio"] * items["count"] / items.groupby("task")["count"].transform("sum")
    items = items.sort_values(["task", "contribution"], ascending=[True, False], kind="stable", ignore_index=True)
    tokens = {i: show_token(restored, i) for i in items["id"].unique().tolist()}
    items["task"] = items["task"].map(dict(enumerate(names)))
    items.insert(1, "token", items["id"].map(tokens))
    return items


def _nll(backbone: Backbone, batch: Batch, theta: Tensor) -> Tensor:
    """Return −log p of each scored token, [S] nats; θ is [R, P], or [P] for all rows."""
    with backbone.routed(theta):
        hidden = backbone.hidden(batch["input_ids"])
    at = batch["scored"]
    return token_nll(hidden.flatten(0, 1)[at - 1], batch["labels"].flatten()[at], backbone.head)


def show_token(restored: Restored, token: int) -> str:
    """Write a token with visible white space: ␣the, ↵␣×8; escape unprintable characters."""
    one, two = (str(restored.tokenizer.decode([token] * n, clean_up_tokenization_spaces=False)) for n in (1, 2))
    text = two.removeprefix(one)  # alone, some tokenizers drop a word's space
    signs = re.sub(r"([␣⇥])\1{2,}", lambda run: f"{run[1]}×{len(run[0])}", text.translate(SIGNS))
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in signs)


def continue_prompt(restored: Restored, tasks: Sequence[str], prompt: Any, **options: Any) -> pd.DataFrame:
    """Continue one prompt under tasks and, unless data.prompt names the task, under Θ.

    Args:
        prompt: a prompt for `bora.use.generate.generate`.
        options: see `bora.use.sampling.Sampling`.

    Returns:
        One row for each speaker: task, prompt, text; Θ is last.
    """
    mean = not restored.tokens.names_task
    answers = generate(restored, tasks, [prompt], mean=mean, **options)
    rows = [(str(answer.speaker), show_prompt(prompt), answer.text) for answer in answers]
    return pd.DataFrame(rows, columns=["task", "prompt", "text"])


def write_voices(tokens: pd.DataFrame, continuations: pd.DataFrame, run: Path, about: dict[str, Any]) -> Path:
    """Write the results of `find_voices` to the run's folder `voices`, replacing earlier ones, summary.json last.

    Args:
        about: what was asked, the summary's first part.

    Returns:
        The folder.
    """
    out = run / FOLDER
    make_output_folder(out)
    with replace_files(out, (TOKENS, CONTINUATIONS, SUMMARY)) as new:
        write_csv(new / TOKENS, tokens)
        write_csv(new / CONTINUATIONS, continuations)
        write_json(new / SUMMARY, about | {"versions": versions()})
    return out
