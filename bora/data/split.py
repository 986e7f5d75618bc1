"""Split each task's documents into train, validation and test."""

import hashlib

import numpy as np
import pandas as pd

from bora.data.dates import parse_dates
from bora.data.prompts import whole_texts

SPLITS = ("train", "validation", "test")  # in the order in which they are used


def split(
    table: pd.DataFrame, method: str = "random", validation: float = 0.25, test: float = 0.25, seed: int = 0
) -> pd.Series:
    """Assign each document to train, validation or test, task by task.

    Args:
        table: columns task, date; one row for each document.
        method: random; date (the earliest documents train, the latest test); or reference (the
            published code: pandas' sample(frac=0.5, random_state=42), then half of the rest by the
            same call, with its own fractions and seed).
        validation, test: fractions of each task's documents, rounded; at least one document if the task has three.
        seed: seed of the random draw. A task's draw depends only on the seed and its name, so other
            tasks may be added or removed without moving its documents.

    Returns:
        A series of SPLITS on the table's index.

    Raises:
        UserError: see `parse_dates`.
    """
    if method == "date":
        table = table.assign(date=parse_dates(table)).sort_values("date", kind="stable")
    parts = pd.Series("train", index=table.index, name="split")
    for task, rows in table.groupby("task", sort=False):
        if method == "reference":
            train = rows.sample(frac=0.5, random_state=42)
            rest = rows.drop(train.index)
            held = rest.sample(frac=0.5, random_state=42)
            parts[held.index] = "validation"
            parts[rest.drop(held.index).index] = "test"
            continue
        n_test = max(1, round(test * len(rows)))
        n_validation = min(max(1, round(validation * len(rows))), len(rows) - n_test - 1)
        if n_validation < 1:
            n_validation, n_test = 1, len(rows) - 2
        order = rows.index
        if method == "random":
            digest = hashlib.sha256(f"{seed}:{task}".encode()).digest()
            rng = np.random.default_rng(int.from_bytes(digest[:8], "little"))
            order = order[rng.permutation(len(order))]
        parts[order[len(order) - n_test :]] = "test"
        parts[order[len(order) - n_test - n_validation : len(order) - n_test]] = "validation"
    return parts


def leakage(documents: pd.DataFrame) -> dict[str, dict[str, int]]:
    """Count the documents of a split that repeat a text of a split used before it.

    Args:
        documents: columns task, text, split and the prompt's.

    Returns:
        For validation (which repeats training) and test (which repeats training or validation): `within_task`, a text
        of the document's own task, and `in_all`, of any task.
    """
    found = {}
    for i, part in enumerate(SPLITS[1:], start=1):
        here, before = (documents[documents["split"].isin(s)] for s in ([part], SPLITS[:i]))
        texts, texts_before = whole_texts(here), whole_texts(before)
        pairs = pd.MultiIndex.from_arrays([here["task"], texts])
        pairs_before = pd.MultiIndex.from_arrays([before["task"], texts_before])
        found[part] = {
            "within_task": int(pairs.isin(pairs_before).sum()),
            "in_all": int(texts.isin(texts_before).sum()),
        }
    return found
