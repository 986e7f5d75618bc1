"""Select the tasks to train, and their documents: a table in, a smaller table out."""

import logging
from collections.abc import Sequence

import numpy as np
import pandas as pd

from bora.data.dates import parse_dates
from bora.data.prompts import whole_texts
from bora.data.task_names import warn_of_look_alikes
from bora.errors import UserError

log = logging.getLogger(__name__)

# Bounds on a speaker's number of documents in the two rules for Talk of Norway (at least, at most).
RULE_BOUNDS = {"paper": (101, None), "reference": (201, 999)}
# The same for a task under the plain orders: enough for three parts.
PLAIN_BOUNDS = (20, None)


def describe_dropped(dropped: dict[str, int]) -> str:
    """Describe what was left out: how many rows for each reason."""
    return ", ".join(f"{n:,} {why}" for why, n in dropped.items() if n) or "none"


def select(
    table: pd.DataFrame,
    selection: str = "largest",
    n_tasks: int | None = None,
    min_documents: int | None = None,
    max_documents: int | None = None,
    documents_per_task: int | Sequence[int] | None = None,
    min_characters: int = 0,
    drop_duplicates: bool = True,
    seed: int = 0,
) -> tuple[pd.DataFrame, list[str], dict[str, int]]:
    """Clean the documents, count them by task, choose the tasks, cap their documents.

    Args:
        table: columns task, text, date and the prompt's; the index is each row's number in the source.
        selection: the order in which tasks are taken: largest (most documents first),
            chronological (first document's date), alphabetical; or a rule of Talk of Norway:
            paper (chronological, over 100 documents), reference (the published code: alphabetical
            by cleaned name, 200 < documents < 1000 counted before short texts are dropped).
        n_tasks: how many tasks to take; None for all.
        min_documents, max_documents: bounds on a task's documents, inclusive; None for the
            rule's own bound (PLAIN_BOUNDS under the plain orders).
        documents_per_task: keep at most this many of each task, drawn at random; None for all. A list
            gives each task its own number, in the order of selection.
        min_characters: keep texts longer than this.
        drop_duplicates: within a task, keep only the first of equal texts with equal prompts.
        seed: seed of the draw for `documents_per_task`.

    Returns:
        The kept rows in the source's order, the task names in the order of selection, and reason → rows left out.

    Raises:
        UserError: a needed date is missing, no task is left, or a list of `documents_per_task` does not match the tasks.
    """
    rule = RULE_BOUNDS.get(selection, PLAIN_BOUNDS)
    min_documents = rule[0] if min_documents is None else min_documents
    max_documents = rule[1] if max_documents is None else max_documents
    dropped: dict[str, int] = {}

    def keep(rows: pd.DataFrame, mask, reason: str) -> pd.DataFrame:
        if not mask.all():
            dropped[reason] = int((~mask).sum())
        return rows[mask]

    def within_bounds(rows: pd.DataFrame) -> pd.DataFrame:
        before, counts = f"; dropped: {describe_dropped(dropped)}" * bool(dropped), rows["task"].value_counts()
        documents = rows["task"].map(counts)
        eligible = documents.ge(min_documents or 0) & documents.le(max_documents or np.inf)
        kept = keep(rows, eligible, "of tasks outside the bounds on documents")
        if kept.empty:
            raise UserError(
                f"no task has between {min_documents or 0} and {max_documents or '∞'} documents (the largest has "
                f"{counts.max() if len(counts) else 0}{before}); change data.min_documents or data.max_documents"
                f"{'' if len(counts) else ', or look at the columns data.task and data.text'}"
            )
        return kept

    # The texts are most of a large table, so they are not copied until the rows are chosen.
    texts = table["text"]
    rows = table.drop(columns="text").assign(task=table["task"].str.strip(), length=texts.str.len())
    rows = keep(rows, rows["task"] != "", "without a task")
    rows = keep(rows, ~(texts.str.isspace() | (texts == ""))[rows.index], "empty")
    if selection == "reference":
        cleaned = rows["task"].str.lower().str.replace(".", "", regex=False)
        rows = within_bounds(rows).assign(task=cleaned)
    else:
        warn_of_look_alikes(rows["task"].unique())
    rows = keep(rows, rows["length"] > min_characters, f"of {min_characters} characters or fewer")
    if drop_duplicates:
        rows = keep(rows, ~_repeated(rows, whole_texts(table)), "repeated within their task")
    if selection != "reference":
        rows = within_bounds(rows)
    if rows.empty:
        raise UserError(f"no document is left (dropped: {describe_dropped(dropped)}); change data.min_characters")
    names = _in_order(rows, selection)
    chosen = names[:n_tasks]
    if n_tasks is not None and len(names) < n_tasks:
        log.warning("data.n_tasks=%d, but only %d tasks qualify: all are taken", n_tasks, len(names))
    rows = keep(rows, rows["task"].isin(chosen), f"of {len(names) - len(chosen)} tasks not chosen (data.n_tasks)")
    if documents_per_task is not None:
        rows = keep(rows, _under_cap(rows, chosen, documents_per_task, seed), "over the cap data.documents_per_task")
    rows = rows.drop(columns="length")
    rows["text"] = _at(texts, rows.index)
    return rows[table.columns], chosen, dropped


def draw(table: pd.DataFrame, per_task: int | None) -> pd.DataFrame:
    """Draw at most `per_task` rows of each task at random, in the table's order; None for all."""
    if per_task is None:
        return table
    drawn = table.sample(frac=1, random_state=0).groupby("task").head(per_task)
    return table[table.index.isin(drawn.index)]


def _under_cap(rows: pd.DataFrame, chosen: list[str], cap: int | Sequence[int], seed: int) -> pd.Series:
    """Draw documents of each task at random, at most `cap`, which may be a list with a number for each task."""
    if isinstance(cap, int):
        caps = dict.fromkeys(chosen, cap)
    elif len(cap) == len(chosen):
        caps = dict(zip(chosen, cap, strict=True))
    else:
        raise UserError(
            f"data.documents_per_task lists {len(cap)} numbers, but there are {len(chosen)} tasks; give one number, or "
            "one for each task"
        )
    shuffled = rows.iloc[np.random.default_rng(seed).permutation(len(rows))]
    place = shuffled.groupby("task").cumcount()
    return (place < shuffled["task"].map(caps)).reindex(rows.index)


def _repeated(rows: pd.DataFrame, texts: pd.Series) -> pd.Series:
    """Find rows that repeat an earlier row's task and text, comparing only texts of equal length."""
    alike = rows.duplicated(["task", "length"], keep=False)
    compared = rows[alike].drop(columns="length").assign(text=_at(texts, rows.index[alike]))
    return compared.duplicated(["task", "text"]).reindex(rows.index, fill_value=False)


def _at(texts: pd.Series, index: pd.Index) -> pd.Series:
    """Take the texts of some rows by a mask, since Arrow would copy the whole column to take them by number."""
    return texts[texts.index.isin(index)]


def _in_order(table: pd.DataFrame, selection: str) -> list[str]:
    """Sort all task names in the order of the selection; ties by name."""
    names = sorted(table["task"].unique())
    if selection in ("alphabetical", "reference"):
        return names
    if selection == "largest":
        counts = table["task"].value_counts()
        return sorted(names, key=lambda name: (-counts[name], name))
    dates = parse_dates(table, missing=True)
    if dates.isna().any():
        log.warning("%d documents without a date do not count in the order of tasks", dates.isna().sum())
    first = dates.groupby(table["task"]).min()
    undated = first.index[first.isna()]
    if len(undated):
        parse_dates(table[table["task"] == undated[0]])  # raises, and names the row
    return sorted(names, key=lambda name: (first[name], name))
