"""The folder of an evaluation: its tables, its summary, and when it may replace an earlier one."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bora.data.corpus import hash_rows
from bora.data.prompts import whole_texts
from bora.errors import UserError
from bora.lib.files import make_output_folder, replace_files
from bora.runs.directory import DOCUMENTS, PER_TASK, RUN_FILES, SUMMARY
from bora.runs.values import read_json, versions, write_csv, write_json
from bora.use.answers import compare_answers, samples_page
from bora.use.evaluate import Evaluation

ANSWERS, ANSWER_SCORES, ANSWERS_PAGE = "answers.csv", "answer_scores.csv", "answers.html"
FILES = (DOCUMENTS, PER_TASK, ANSWERS, ANSWER_SCORES, ANSWERS_PAGE, "likelihoods.csv", "likelihoods.parquet", SUMMARY)


def make_evaluation_folder(out: Path, run: Path, data_sha256: str) -> None:
    """Make the folder for an evaluation's files. An earlier evaluation of the same run and rows there will be replaced.

    Args:
        data_sha256: hash of the rows, see `hash_texts`.

    Raises:
        UserError: nothing can be written there, or it holds a run, an unfinished evaluation, or an evaluation of another
            run or other rows.
    """
    if any((out / name).exists() for name in RUN_FILES):
        raise UserError(f"{out} holds a run; give another folder for the evaluation with --out")
    if found := [name for name in FILES if (out / name).exists()]:
        if SUMMARY not in found:  # an evaluation writes it last
            raise UserError(f"{out} holds {', '.join(found)}; remove them, or give another folder with --out")
        earlier = read_json(out / SUMMARY)
        # A run may have been moved together with its evaluations.
        same_run = out.resolve().is_relative_to(run.resolve()) or earlier.get("run") == str(run.resolve())
        if not same_run or earlier.get("data_sha256") != data_sha256:
            what = "other rows" if same_run else "another run"
            raise UserError(f"{out} holds an evaluation of {what}; remove it, or give another folder with --out")
    make_output_folder(out)


def write_evaluation(found: Evaluation, names: list[str], about: dict[str, Any], out: Path, form: str | None) -> None:
    """Write an evaluation's files, then replace those of an earlier one.

    Args:
        names: the run's tasks.
        about: what was evaluated, the summary's first part.
        out: from `make_evaluation_folder`.
        form: file format of the table of likelihoods, csv or parquet; None for no such table.
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
    """Make a table with one row for each document and task: row, task, log_likelihood (nats)."""
    n = len(found.documents)
    return pd.DataFrame(
        {
            "row": found.documents["row"].repeat(len(names)).to_numpy(),
            "task": pd.Categorical.from_codes(np.tile(range(len(names)), n), pd.Index(names)),
            "log_likelihood": found.likelihoods.nats.ravel(),
        }
    )


def hash_texts(table: pd.DataFrame) -> str:
    """Compute the SHA-256 of a table of texts: of row numbers, tasks, texts and the columns that prompts use."""
    return hash_rows(table.index, table["task"], whole_texts(table))


def _mean_scores(scores: pd.DataFrame) -> dict[str, dict[str, dict[str, float]]]:
    """Average answers' scores: model, or "one − other" → score → its mean over tasks, with a 95 % interval."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for row in compare_answers(scores).to_dict("records"):
        who = f"{row['under']} − {row['minus']}" if row["minus"] else row["under"]
        found.setdefault(who, {})[row["score"]] = {key: row[key] for key in ("value", "low", "high")}
    return found
