"""Build a run's corpus: table → tasks → tokens → splits."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from bora.config.schema import Data
from bora.data.columns import level_cells
from bora.data.pieces import Encoded, Truncation
from bora.data.prompts import placeholders, whole_texts
from bora.data.select import describe_dropped, select
from bora.data.split import SPLITS, leakage, split
from bora.data.tokens import Tokens
from bora.errors import UserError

SELECTION = {"selection", "n_tasks", "min_documents", "max_documents", "documents_per_task"}  # settings of `select`
SELECTION |= {"min_characters", "drop_duplicates"}


@dataclass(frozen=True)
class Corpus:
    """A run's documents, tokenised.

    Attributes:
        task_names: the D tasks in the order of selection.
        documents: one row for each document or piece of one: row (the document's number in the table as read), piece
            (from 0), task, split, n_tokens, n_scored, text (the whole document's), and the cells of its prompt.
        encoded: the tokens of each of those rows.
        dropped: reason → rows left out.
        truncation: what was cut off.
        sha256: hash of every document's row, task, split, text, and cells of its prompt and levels.
        levels: column of a level → its cell for each of `documents`.
        leakage: counts of validation and test documents seen before; see `bora.data.split.leakage`.
    """

    task_names: list[str]
    documents: pd.DataFrame
    encoded: list[Encoded]
    dropped: dict[str, int]
    truncation: Truncation
    sha256: str
    levels: dict[str, list[str]]
    leakage: dict[str, dict[str, int]]

    def per_task(self) -> pd.DataFrame:
        """Count documents and scored tokens by task: n_train, n_val, n_test, train_tokens, test_tokens."""
        by = self.documents.groupby(["task", "split"])
        counts, scored = (
            x.unstack(fill_value=0).reindex(index=self.task_names, columns=SPLITS, fill_value=0)
            for x in (by["row"].nunique(), by["n_scored"].sum())
        )
        counts = counts.rename(columns={"train": "n_train", "validation": "n_val", "test": "n_test"})
        return counts.assign(train_tokens=scored["train"], test_tokens=scored["test"]).rename_axis(columns=None)

    def tokens_sha256(self) -> str:
        """Hash every document and its tokens, which depend on the tokenizer."""
        found = hashlib.sha256(self.sha256.encode())
        for document in self.encoded:
            found.update(f"{len(document.ids)} {document.document}\n".encode())
            found.update(document.ids.tobytes() + document.scored.tobytes())
        return found.hexdigest()

    def describe(self) -> str:
        """Describe the corpus in a few lines: its size, and what was dropped, cut off or seen before."""
        counts, n = self.per_task(), self.documents["row"].nunique()
        pieces = f" in {len(self.documents):,} pieces" if n < len(self.documents) else ""
        whole = self.documents[self.documents["piece"] == 0]
        blank = {name: int((whole[name].str.strip() == "").sum()) for name in placeholders(whole)}
        return (
            f"{len(self.task_names)} tasks, {n:,} documents{pieces}: "
            f"{counts.n_train.sum():,} train ({counts.n_train.min()} to {counts.n_train.max()} a task, "
            f"{counts.train_tokens.sum():,} scored tokens), {counts.n_val.sum():,} validation, "
            f"{counts.n_test.sum():,} test\n"
            + "".join(f"empty: {name} of {count:,} documents\n" for name, count in blank.items() if count)
            + f"dropped: {describe_dropped(self.dropped)}\n"
            f"truncated: {self.truncation.describe(self.documents['n_tokens'].sum())}\n"
            f"leakage: {self._describe_leakage()}"
        )

    def _describe_leakage(self) -> str:
        totals = self.documents.groupby("split")["row"].nunique()
        parts = [
            f"{n['in_all']:,} of {totals[part]:,} {part} documents repeat a text of "
            f"{before} ({n['within_task']:,} of their own task)"
            for (part, n), before in zip(self.leakage.items(), ("training", "training or validation"), strict=True)
            if n["in_all"]
        ]
        return ", ".join(parts) or "none"


def hash_rows(numbers: Iterable[int], *texts: Iterable[str]) -> str:
    """Compute the SHA-256 of a table's columns, written as one JSON line [number, text, …] for each row."""
    found = hashlib.sha256()
    for number, *cells in zip(numbers, *texts, strict=True):
        found.update(json.dumps([int(number), *cells]).encode() + b"\n")
    return found.hexdigest()


def build_corpus(table: pd.DataFrame, tokens: Tokens, data: Data) -> Corpus:
    """Select tasks and documents, tokenise them, and split each task's documents.

    Args:
        table: columns task, text, and date if selection or split need it.
        data: the settings of selection and split.

    Raises:
        UserError: see `select` and `split`; or a task has too few documents for three parts.
    """
    table, names, dropped = select(table, **data.model_dump(include=SELECTION), seed=data.split.seed)
    encoded, truncation = tokens.encode(table, cached=True)
    encoded = [e for e in encoded if e.n_scored > 0]
    whose = np.array([e.document for e in encoded], dtype=np.int64)
    kept = np.unique(whose)
    if n_empty := len(table) - len(kept):
        dropped["without a token to score"] = n_empty
    table = table.assign(row=table.index).iloc[kept]
    table = table.assign(split=split(table, **data.split.model_dump()))
    cells = level_cells(table, data.levels).values()
    sha256 = hash_rows(table["row"], table["task"], table["split"], whole_texts(table), *cells)
    documents = table.iloc[np.searchsorted(kept, whose)].reset_index(drop=True)
    documents = documents.assign(
        piece=documents.groupby("row").cumcount(),
        n_tokens=[len(e.ids) for e in encoded],
        n_scored=[e.n_scored for e in encoded],
    )
    levels, seen = level_cells(documents, data.levels), _find_leakage(documents, encoded, tokens)
    corpus = Corpus(names, documents, encoded, dropped, truncation, sha256, levels, seen)
    counts = corpus.per_task()[["n_train", "n_val", "n_test"]]
    short = counts.index[(counts == 0).any(axis=1)]
    if len(short):
        train, validation, test = counts.loc[short[0]]
        raise UserError(
            f"task {short[0]!r} is left with {train} training, {validation} validation and {test} test documents "
            f"(dropped: {describe_dropped(dropped)}), but needs one of each ({len(short)} such task(s)); raise "
            "data.min_documents, or, if no token is left to score, raise data.max_tokens or shorten data.prompt"
        )
    return corpus


def _find_leakage(documents: pd.DataFrame, encoded: list[Encoded], tokens: Tokens) -> dict[str, dict[str, int]]:
    """Count the documents of validation and test whose text, up to max_tokens, was seen before."""
    seen: dict[int, bytes] = {}
    for row, one in zip(documents["row"], encoded, strict=True):
        # Without the prompt, which may name the task; but with a chat's questions.
        ids = one.ids if tokens.chat else one.ids[one.scored]
        seen[row] = seen.get(row, b"") + ids.tobytes()
    first = documents[documents["piece"] == 0]
    return leakage(first.assign(text=[hashlib.sha256(seen[row]).hexdigest() for row in first["row"]]))
