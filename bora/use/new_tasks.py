"""New tasks for a finished run: encode their documents as the run does, and build their model under its prior."""

import math
from collections.abc import Sequence
from typing import NamedTuple, cast

import pandas as pd
import torch

from bora.bayes.forms import NonCentered
from bora.bayes.levels import Levels, describe_unknown
from bora.bayes.model import HierarchicalLoRA
from bora.data.columns import level_cells
from bora.data.pieces import Encoded, Truncation
from bora.data.prompts import whole_texts
from bora.data.select import describe_dropped
from bora.errors import UserError
from bora.use.restore import Restored


class NewDocuments(NamedTuple):
    """Documents of new tasks.

    Attributes:
        encoded: each document's tokens, or those of each of its pieces.
        tasks: the task of each, by name.
        texts: the text of each, with the columns that its prompt uses.
        levels: column → the cell of each, for those of the run's levels that the table has.
        unknown: a line for each level with unknown units.
        truncation: what data.max_tokens cut off.
        dropped: reason → number of documents left out.
    """

    encoded: list[Encoded]
    tasks: list[str]
    texts: list[str]
    levels: dict[str, list[str]]
    unknown: list[str]
    truncation: Truncation
    dropped: dict[str, int]

    def describe(self) -> str:
        """Describe the documents as a run describes its own."""
        whose = {e.document: task for e, task in zip(self.encoded, self.tasks, strict=True)}
        counts, scored = pd.Series(whose).value_counts(), sum(e.n_scored for e in self.encoded)
        return (
            f"{len(counts)} tasks, {len(whose):,} documents "
            f"({counts.min()} to {counts.max()} a task, {scored:,} scored tokens)\n"
            f"dropped: {describe_dropped(self.dropped)}\n"
            f"truncated: {self.truncation.describe(sum(len(e.ids) for e in self.encoded))}"
            + "".join(f"\n{line}" for line in self.unknown)
        )


def encode_documents(restored: Restored, table: pd.DataFrame) -> NewDocuments:
    """Encode a table as the run encoded its own, leaving out repeats and rows without a task or a token to score.

    Args:
        table: columns task ('' if there is none), text, those that prompts use, and those of the levels that are known.

    Raises:
        UserError: a task, or the whole table, has no document left.
    """
    named = table[table["task"] != ""]
    n_named = len(named)
    if restored.cfg.data.drop_duplicates:
        named = named[~named.assign(text=whole_texts(named)).duplicated(["task", "text"])]
    encoded, truncation = restored.tokens.encode(named)
    tasks, texts = named["task"].tolist(), whole_texts(named).tolist()
    kept = [(e, tasks[e.document], texts[e.document]) for e in encoded if e.n_scored > 0]
    if not kept:
        raise UserError("no document has a task and a token to score")
    if lost := sorted(set(named["task"]) - {name for _, name, *_ in kept}):
        raise UserError(f"task {lost[0]!r} has no document with a token to score; remove its rows")
    n_kept = len({e.document for e, *_ in kept})
    dropped = {
        "without a task": len(table) - n_named,
        "repeated within their task": n_named - len(named),
        "without a token to score": len(named) - n_kept,
    }
    documents, names, own = (list(column) for column in zip(*kept, strict=True))
    levels, unknown = {}, []
    if (known := restored.model.adapters.levels) is not None:
        for column, cells in level_cells(named, known.columns).items():
            levels[column] = [cells[e.document] for e in documents]
        unknown = describe_unknown(known, levels)
    return NewDocuments(documents, names, own, levels, unknown, truncation, dropped)


def new_tasks(
    restored: Restored,
    names: Sequence[str],
    task_documents: Sequence[int],
    n_tokens: int,
    tau: float,
    levels: Levels | None = None,
) -> HierarchicalLoRA:
    """Build a model of new tasks on a run's backbone: Θ is fixed at the run's, and every θ_new starts there.

    With levels the run's units are fixed too, and a task starts at Θ plus its units' deviations. If a unit is new, the
    prior includes that unit's variance: N(Θ, 1/τ + 1/τ_level).

    Args:
        names: names of the new tasks.
        task_documents: N_d, training documents of each.
        n_tokens: scored tokens of all of these documents.
        tau: precision of the prior, 0 < τ < ∞.
        levels: levels of the new tasks, see `place_new`.

    Raises:
        UserError: τ is out of range.
    """
    if not 0 < tau < math.inf:
        raise UserError(f"a new task needs 0 < τ < ∞, not {tau}: at 0 it has no prior, at ∞ it is Θ; give --tau")
    old = restored.model
    model = HierarchicalLoRA(
        old.backbone,
        names,
        task_documents,
        n_tokens,
        tau,
        penalty=old.penalty,
        likelihood=old.likelihood,
        levels=levels,
    )
    model.to(old.device)
    model.adapters.start_at(old.adapters.mean)
    model.adapters.mean.requires_grad_(False)
    if levels is not None:
        _take_units(model, old)
    return model


@torch.no_grad()
def _take_units(model: HierarchicalLoRA, old: HierarchicalLoRA) -> None:
    """Copy a run's units, which are then held fixed, and widen the prior of tasks whose units are new."""
    mine, theirs = cast(NonCentered, model.adapters), cast(NonCentered, old.adapters)
    assert mine.levels is not None
    assert theirs.levels is not None
    mine.holds_units = True
    for level, units in enumerate(theirs.levels.units):
        begin, other = mine.levels.first_row(level, mine.n_tasks), theirs.levels.first_row(level, theirs.n_tasks)
        mine.stored[begin : begin + len(units)] = theirs.stored[other : other + len(units)]
        for task, units_of_task in enumerate(mine.levels.of_task):
            if units_of_task[level] == len(units):  # (other)
                model.row_taus[task] = 1 / (1 / model.row_taus[task] + 1 / mine.levels.taus[level])
