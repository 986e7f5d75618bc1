"""Answer a table's prompts: under each document's task, under Θ, under the frozen backbone, and by other runs."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import get_args

import numpy as np
import pandas as pd

from bora.bayes.model import Under
from bora.data.prompts import show_prompt
from bora.data.select import draw
from bora.errors import UserError
from bora.use.answers import PREFIX
from bora.use.generate import Speaker, continue_all, encode_start
from bora.use.restore import Restored
from bora.use.sampling import Sampling

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ask:
    """How to answer prompts.

    Args:
        sampling: how to continue a prompt.
        per_task: at most how many prompts of each task to draw at random; None for all.
        beside: further runs by name, such as those at τ = 0 and ∞, whose θ of the same task answers too.
    """

    sampling: Sampling
    per_task: int | None = None
    beside: Mapping[str, Restored] = field(default_factory=dict)

    def check(self, restored: Restored, tasks: Iterable[str]) -> None:
        """Raise a UserError if documents have no prompts, or a run in `beside` has other prompts or lacks a task."""
        ours = restored.tokens
        if not ours.answers:
            raise UserError("there are no prompts to answer: the run's data.prompt takes no columns")
        for name, other in self.beside.items():
            theirs = other.tokens
            if (theirs.chat, theirs.columns) != (ours.chat, ours.columns):
                raise UserError(f"--beside {name}: its prompts use other columns than the run's")
            if lacking := sorted(set(tasks) - set(other.model.adapters.task_names)):
                raise UserError(f"--beside {name}: that run has no task {lacking[0]}")

    def answers(self, restored: Restored, table: pd.DataFrame) -> pd.DataFrame:
        """Answer the rows' prompts, see `generate_answers`; raise a UserError if no row has one."""
        chat, asked = restored.tokens.chat, restored.tokens.ask(table)
        asks = np.array([bool(prompt) or not chat for prompt, _ in asked], dtype=bool)
        if n := int((~asks).sum()):
            log.warning("%d chats begin with their only answer and have no question; they are skipped", n)
            table = table[asks]
        if table.empty:
            raise UserError("no row has a prompt to answer")
        table = draw(table, self.per_task)
        found = generate_answers(restored, table, self.sampling)
        for name, other in self.beside.items():
            more = generate_answers(other, table, self.sampling, ("task",))
            found[f"{PREFIX}{name}"] = more[f"{PREFIX}task"]
        return found


def generate_answers(
    restored: Restored, table: pd.DataFrame, sampling: Sampling, kinds: Sequence[Under] = get_args(Under)
) -> pd.DataFrame:
    """Answer documents' prompts under each kind of model, in batches of mixed tasks.

    Args:
        restored: a finished run whose documents have prompts.
        table: columns task, text and those that prompts use; every task is one of the run's.
        kinds: who answers: θ_d of the document's task, Θ, or the frozen backbone.

    Returns:
        One row for each document, with the table's index: task, prompt (as a person reads it), response, and a column of
        answers for each kind: under_task, under_mean, under_base.
    """
    asked, new = restored.tokens.ask(table), sampling.max_new_tokens
    speakers = [Speaker(kind, task) for kind in kinds for task in table["task"]]
    each = [encode_start(restored, task, ask, new) for task, (ask, _) in zip(table["task"], asked, strict=True)]
    starts = each * len(kinds)
    order = sorted(range(len(starts)), key=lambda i: len(starts[i]))  # similar lengths together, for little padding
    found = continue_all(restored, [starts[i] for i in order], [speakers[i] for i in order], sampling)
    texts = np.empty(len(starts), dtype=object)
    texts[order] = [text for text, *_ in found]
    prompts, responses = ([show_prompt(prompt) for prompt, _ in asked], [response for _, response in asked])
    about = {"task": table["task"].to_numpy(), "prompt": prompts, "response": responses}
    answers = zip(kinds, texts.reshape(len(kinds), -1), strict=True)
    return pd.DataFrame(about | {PREFIX + kind: column for kind, column in answers}, table.index)
