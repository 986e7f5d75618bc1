"""Evaluate a run on new text: its perplexity, and which task it is likeliest to be of.

Rows whose task the run knows are scored under it, under Θ and under the frozen backbone. Every row, labelled or not,
gets the posterior over tasks, p(d | text) ∝ p(d) · p(text | θ_d)^(1/T), with the run's temperature T.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bora.bayes.levels import Levels
from bora.data.corpus import hash_rows
from bora.data.prompts import whole_texts
from bora.data.select import draw
from bora.errors import UserError
from bora.lib.files import make_output_folder, replace_files
from bora.runs.directory import DOCUMENTS, PER_TASK, RUN_FILES, SUMMARY
from bora.runs.values import hash_text, read_json, versions, write_csv, write_json
from bora.train.authorship import Likelihoods, log_prior, score_tasks
from bora.use.answers import PREFIX, compare_answers, generate_answers, samples_page, score_answers
from bora.use.restore import Restored
from bora.use.sampling import Sampling
from bora.use.score import likeliest, measure_accuracy, measure_sureness, perplexities

log = logging.getLogger(__name__)
ANSWERS, ANSWER_SCORES, ANSWERS_PAGE = "answers.csv", "answer_scores.csv", "answers.html"
FILES = (DOCUMENTS, PER_TASK, ANSWERS, ANSWER_SCORES, ANSWERS_PAGE, "likelihoods.csv", "likelihoods.parquet", SUMMARY)
SEVERAL = "(several)"  # in the place of the unit of a task whose documents have several


@dataclass(frozen=True)
class Ask:
    """How prompts are answered.

    Args:
        sampling: of the answers.
        per_task: at most so many prompts of each task, drawn at random; None for all.
        beside: further runs, by name, whose θ of the same task answers too; such as those at τ = 0 and ∞.
    """

    sampling: Sampling
    per_task: int | None = None
    beside: Mapping[str, Restored] = field(default_factory=dict)

    def check(self, restored: Restored, tasks: Iterable[str]) -> None:
        """
        Raises:
            UserError: a run's documents have no prompts, or a run beside has other ones, or lacks one of the tasks.
        """
        ours = restored.tokens
        if not ours.answers:
            raise UserError("there are no prompts to answer: the run's data.prompt takes no columns")
        for name, other in self.beside.items():
            theirs = other.tokens
            if (theirs.chat, theirs.columns) != (ours.chat, ours.columns):
                raise UserError(f"--beside {name}: its prompts take other columns than the run's")
            if lacking := sorted(set(tasks) - set(other.model.adapters.task_names)):
                raise UserError(f"--beside {name}: that run has no task {lacking[0]}")

    def answers(self, restored: Restored, table: pd.DataFrame) -> pd.DataFrame:
        """Have the prompts of rows answered; see `bora.use.answers.generate_answers`.

        Raises:
            UserError: see there; or no row has a prompt.
        """
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


@dataclass(frozen=True)
class Evaluation:
    """What was found.

    Attributes:
        documents: a row a document: row, task (as labelled), best, posterior (of best), task_posterior (of its own
            task, where the run has it), n_scored, trained_on (whether the run was fitted to the text, or chosen by it;
            empty where that is not known); best and posterior are empty without a token to score. With a level above
            the tasks, party, the likeliest unit too, best_party, and its posterior, party_posterior: see
            `level_posteriors`. The next five leave rows out that were trained on, unless they are asked for.
        per_task, overall: see `perplexities`; None where no row has a task of the run.
        classification: see `measure_accuracy` and `measure_sureness`; None where no row that can be scored has a task
            of the run.
        levels: level → `measure_accuracy` of its units, of the same rows.
        mixture_perplexity: of all rows under Σ_d p(d) p(text | θ_d), a mixture that knows no document's task.
        likelihoods: log p(text | θ_d).
        counts: of rows: read, of the run's tasks, unlabelled, without a token to score, trained_on (None: not known);
            and unknown_tasks, task → rows.
        temperature: T; 1 where the run has none.
        answers, answer_scores: see `generate_answers` and `score_answers` in bora.use.answers, of rows of the run's
            tasks; None where none were asked for.
    """

    documents: pd.DataFrame
    per_task: pd.DataFrame | None
    overall: dict[str, float] | None
    classification: dict[str, float] | None
    levels: dict[str, dict[str, float]]
    mixture_perplexity: float
    likelihoods: Likelihoods
    counts: dict[str, Any]
    temperature: float
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
        restored: a finished run.
        table: columns task (an empty string where it is unknown), text and what prompts take; its index is kept as `row`.
        prior: over tasks, see `log_prior`.
        batch_size: rows in a forward.
        include_trained: report on the rows that the run was trained on too.
        ask: have the prompts answered too.

    Raises:
        UserError: there are labels and none is a task of the run, no row has a token to score, or the run was trained
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
        # Their answers to what they were trained on would be no answers either.
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
    units = level_posteriors(restored.model.adapters.levels, posterior)
    for level, (unit_names, _, of_unit) in units.items():
        documents[f"best_{level}"], documents[f"{level}_posterior"] = likeliest(unit_names, of_unit, scorable)
    levels = {}
    per_task = overall = classification = answers = answer_scores = None
    if (rows := known & reported).any():
        per_task, overall = perplexities(restored, table[rows], batch_size)
        found = measure_accuracy(documents["best"][rows], documents["task"][rows], len(names))
        classification = found | measure_sureness(scores.nats[rows], index[rows], prior_nats, restored.temperature)
        for level, (unit_names, of_task, _) in units.items():
            truth = unit_names[of_task[index[rows]]]
            levels[level] = measure_accuracy(documents[f"best_{level}"][rows], truth, len(unit_names))
        if ask is not None:
            answers = ask.answers(restored, table[rows])
            answer_scores = score_answers(answers)
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
    return Evaluation(
        documents,
        per_task,
        overall,
        classification,
        levels,
        mixture,
        scores,
        counts,
        restored.temperature,
        answers,
        answer_scores,
    )


def find_trained_on(table: pd.DataFrame, lists: Iterable[set[str] | None]) -> np.ndarray:
    """Find the rows whose text is in one of the lists of `RunDirectory.trained_on`, [N]."""
    seen = set().union(*(texts for texts in lists if texts is not None))
    return np.array([hash_text(text) in seen for text in whole_texts(table)], dtype=bool)


def level_posteriors(
    levels: Levels | None, posterior: np.ndarray
) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Add up the posterior of the tasks of each unit, for levels that have one unit a task.

    Of a level that divides a task's documents, such as the year, a text's unit does not follow from its task. Where it
    divides those of a few tasks only, a speaker who changed parties, these tasks count as one more unit, (several).

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


def _mean_scores(scores: pd.DataFrame) -> dict[str, dict[str, dict[str, float]]]:
    """Average scores of answers: model, or "one − other" → score → its mean over tasks, and its 95 % interval."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for row in compare_answers(scores).to_dict("records"):
        who = f"{row['under']} − {row['minus']}" if row["minus"] else row["under"]
        found.setdefault(who, {})[row["score"]] = {key: row[key] for key in ("value", "low", "high")}
    return found


def make_evaluation_folder(out: Path, run: Path, data_sha256: str) -> None:
    """Make the folder for an evaluation's files.

    Args:
        out: the folder.
        run: the run's folder, of which an evaluation there is replaced if it is of the same rows.
        data_sha256: of the rows, see `hash_texts`.

    Raises:
        UserError: nothing can be written there, or it holds a run, whose files have the same names, or an evaluation
            of another run or of other rows.
    """
    if any((out / name).exists() for name in RUN_FILES):
        raise UserError(f"{out} holds a run; give another folder for the evaluation with --out")
    if found := [name for name in FILES if (out / name).exists()]:
        if SUMMARY not in found:  # which an evaluation writes last
            raise UserError(f"{out} holds {', '.join(found)}; remove them, or give another folder with --out")
        earlier = read_json(out / SUMMARY)
        # A run may have been moved, with its evaluations in it.
        same_run = out.resolve().is_relative_to(run.resolve()) or earlier.get("run") == str(run.resolve())
        if not same_run or earlier.get("data_sha256") != data_sha256:
            what = "other rows" if same_run else "another run"
            raise UserError(f"{out} holds an evaluation of {what}; remove it, or give another folder with --out")
    make_output_folder(out)


def write_evaluation(found: Evaluation, names: list[str], about: dict[str, Any], out: Path, form: str | None) -> None:
    """Write an evaluation's files, and then replace an earlier one's by them.

    Args:
        names: the run's tasks.
        about: what was evaluated: the summary's first part.
        out: from `make_evaluation_folder`.
        form: of the table of likelihoods, csv or parquet; None for no such table.
    """
    with replace_files(out, FILES) as new:
        write_csv(new / DOCUMENTS, found.documents)
        if found.per_task is not None:
            write_csv(new / PER_TASK, found.per_task)
        if found.answers is not None and found.answer_scores is not None:
            scores = found.answer_scores
            write_csv(new / ANSWERS, found.answers.rename_axis("row").reset_index())
            write_csv(new / ANSWER_SCORES, scores)
            samples_page(found.answers, scores, new / ANSWERS_PAGE)
        if form == "csv":
            write_csv(new / "likelihoods.csv", tabulate_likelihoods(found, names))
        elif form == "parquet":
            tabulate_likelihoods(found, names).to_parquet(new / "likelihoods.parquet", index=False)
        results = {
            "documents": found.counts,
            "temperature": found.temperature,
            "perplexity": found.overall,
            "mixture_perplexity": found.mixture_perplexity,
            "classification": found.classification,
            "levels": found.levels,
            "answers": None if found.answer_scores is None else _mean_scores(found.answer_scores),
        }
        write_json(new / SUMMARY, about | results | {"versions": versions()})


def tabulate_likelihoods(found: Evaluation, names: list[str]) -> pd.DataFrame:
    """Make a table of a row a document and task: row, task, log_likelihood (nats)."""
    n = len(found.documents)
    return pd.DataFrame(
        {
            "row": found.documents["row"].repeat(len(names)).to_numpy(),
            "task": pd.Categorical.from_codes(np.tile(range(len(names)), n), pd.Index(names)),
            "log_likelihood": found.likelihoods.nats.ravel(),
        }
    )


def hash_texts(table: pd.DataFrame) -> str:
    """Compute the SHA-256 of a table of texts, of its rows' numbers, tasks, texts and what prompts take."""
    return hash_rows(table.index, table["task"], whole_texts(table))
