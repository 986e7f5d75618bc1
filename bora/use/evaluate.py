"""Evaluate a run on new text: its perplexity, and its likeliest task.

Rows whose task the run knows are scored under that task, under Θ and under the frozen backbone. Every row, labelled or
not, gets the posterior over tasks, p(d | text) ∝ p(d) · p(text | θ_d)^(1/T), with the run's temperature T.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from bora.bayes.levels import Levels
from bora.data.prompts import whole_texts
from bora.errors import UserError
from bora.runs.values import hash_text
from bora.train.authorship import Likelihoods, log_prior, score_tasks
from bora.use.answers import score_answers
from bora.use.ask import Ask
from bora.use.restore import Restored
from bora.use.score import likeliest, measure_accuracy, measure_sureness, perplexities

SEVERAL = "(several)"  # the unit of tasks whose documents belong to several


@dataclass
class Evaluation:
    """The results of an evaluation.

    Attributes:
        documents: one row for each document: row, task (as labelled), best, posterior (of best), task_posterior (of its
            own task, if the run has it), n_scored, trained_on (whether the run was fitted to the text, or chosen by it;
            empty if unknown); best and posterior are empty without a token to score. With a level above the tasks, such
            as party, also the likeliest unit, best_party, and its posterior, party_posterior: see `level_posteriors`.
        mixture_perplexity: perplexity of all rows under Σ_d p(d) p(text | θ_d), a mixture that does not know their tasks.
            Like the attributes after `temperature` it leaves out rows that were trained on, unless they are asked for.
        likelihoods: log p(text | θ_d).
        counts: numbers of rows: read, of the run's tasks, unlabelled, without a token to score, trained_on (None if
            unknown); and unknown_tasks, task → rows.
        temperature: T; 1 if the run has none.
        per_task, overall: see `perplexities`; None if no row has a task of the run.
        classification: see `measure_accuracy` and `measure_sureness`; None if no row that can be scored has a task
            of the run.
        levels: level → `measure_accuracy` of its units, on the same rows.
        answers, answer_scores: see `generate_answers` and `score_answers`, for rows of the run's tasks; None if none
            were asked for.
    """

    documents: pd.DataFrame
    mixture_perplexity: float
    likelihoods: Likelihoods
    counts: dict[str, Any]
    temperature: float
    per_task: pd.DataFrame | None = None
    overall: dict[str, float] | None = None
    classification: dict[str, float] | None = None
    levels: dict[str, dict[str, float]] = field(default_factory=dict)
    answers: pd.DataFrame | None = None
    answer_scores: pd.DataFrame | None = None


def evaluate(
    restored: Restored,
    table: pd.DataFrame,
    prior: str = "uniform",
    batch_size: int = 32,
    include_trained: bool = False,
    ask: Ask | None = None,
) -> Evaluation:
    """Score new text under a run's models.

    Args:
        table: columns task (an empty string if unknown), text and those that prompts use; its index is kept as `row`.
        prior: prior over tasks, see `log_prior`.
        batch_size: rows in a forward pass.
        include_trained: report also on rows that the run was trained on.
        ask: how to answer the rows' prompts too; None not to.

    Raises:
        UserError: rows are labelled but none with a task of the run, no row has a token to score, or the run was trained
            on all of them.
    """
    names = restored.model.adapters.task_names
    index = pd.Index(names).get_indexer(pd.Index(table["task"]))  # [N], −1 for a task that the run does not have
    known, labelled = index >= 0, (table["task"] != "").to_numpy()
    unknown = table["task"][labelled & ~known].value_counts()
    if labelled.any() and not known.any():
        raise UserError(
            f"no row belongs to a task of the run (the table has {unknown.index[0][:40]!r}, the run {names[0]!r}, …); "
            "name the column of tasks with --task"
        )
    lists = [restored.directory.trained_on()]
    if ask is not None:
        ask.check(restored, table["task"][known])
        # Answers to texts that another run was trained on would mean nothing either.
        lists += [other.directory.trained_on() for other in ask.beside.values()]
    trained_on, all_known = find_trained_on(table, lists), None not in lists
    if trained_on.all() and not include_trained:
        raise UserError("the run was trained on every one of these texts; give others, or --include-trained")
    scores = score_tasks(restored.model, restored.tokens, table, batch_size)
    scorable = scores.n_scored > 0
    reported = scorable & (include_trained | ~trained_on)
    if not scorable.any():
        raise UserError("no row has a text with a token to score; name the column of texts with --text")
    if not reported.any():
        raise UserError("the run was trained on every text with a token to score; give others, or --include-trained")
    prior_nats = log_prior(restored.model.task_documents.cpu().numpy(), prior)
    posterior = np.exp(scores.posterior(prior_nats, restored.temperature)[0])
    units = level_posteriors(restored.model.adapters.levels, posterior)
    best, probability = likeliest(names, posterior, scorable)
    documents = pd.DataFrame(
        {
            "row": table.index,
            "task": table["task"].to_numpy(),
            "best": best,
            "posterior": probability,
            "task_posterior": np.where(known & scorable, posterior[np.arange(len(table)), index], np.nan),
            "n_scored": scores.n_scored,
            "trained_on": trained_on if all_known else np.where(trained_on, "True", ""),
        }
    )
    for level, (unit_names, _, of_unit) in units.items():
        documents[f"best_{level}"], documents[f"{level}_posterior"] = likeliest(unit_names, of_unit, scorable)
    counts = {
        "rows": len(table),
        "of_the_runs_tasks": int(known.sum()),
        "unlabelled": int((~labelled).sum()),
        "without_a_token_to_score": int((~scorable).sum()),
        "trained_on": int(trained_on.sum()) if all_known else None,
        "unknown_tasks": {str(task): int(n) for task, n in unknown.items()},
    }
    evidence = scores.posterior(prior_nats)[1][reported]  # a likelihood, so T = 1
    mixture = float(np.exp(-evidence.sum() / scores.n_scored[reported].sum()))
    found = Evaluation(documents, mixture, scores, counts, restored.temperature)
    if (rows := known & reported).any():
        found.per_task, found.overall = perplexities(restored, table[rows], batch_size)
        accuracy = measure_accuracy(documents["best"][rows], documents["task"][rows], len(names))
        sureness = measure_sureness(scores.nats[rows], index[rows], prior_nats, restored.temperature)
        found.classification = accuracy | sureness
        for level, (unit_names, of_task, _) in units.items():
            truth = unit_names[of_task[index[rows]]]
            found.levels[level] = measure_accuracy(documents[f"best_{level}"][rows], truth, len(unit_names))
        if ask is not None:
            found.answers = ask.answers(restored, table[rows])
            found.answer_scores = score_answers(found.answers)
    return found


def find_trained_on(table: pd.DataFrame, lists: Iterable[set[str] | None]) -> np.ndarray:
    """Find the rows whose text is in one of the lists of `RunDirectory.trained_on`, [N]."""
    seen = set().union(*(texts for texts in lists if texts is not None))
    return np.array([hash_text(text) in seen for text in whole_texts(table)], dtype=bool)


def level_posteriors(
    levels: Levels | None, posterior: np.ndarray
) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Sum the tasks' posteriors over each unit, for levels with one unit for each task.

    For a level that divides tasks' documents, such as the year, a text's unit does not follow from its task. If it
    divides fewer than half of the tasks, such as speakers who changed parties, these tasks count as one more unit,
    (several).

    Args:
        posterior: p(d | text), [N, D].

    Returns:
        Level → the units' names, [U]; the unit of each task, [D] < U; and p(unit | text), [N, U].
    """
    found = {}
    if levels is not None:
        for level, (column, units) in enumerate(zip(levels.columns, levels.units, strict=True)):
            of_task = np.array([row[level] for row in levels.of_task])
            several = of_task < 0
            if several.mean() < 0.5:
                names = [*units, SEVERAL] if several.any() else units
                of_task = np.where(several, len(units), of_task)
                found[column] = np.array(names, dtype=object), of_task, posterior @ np.eye(len(names))[of_task]
    return found
