"""Score answers against the documents' responses, and show them side by side.

An answer's scores, each from 0 to 1:

- exact match, ignoring white space at the ends. If the responses are a few labels, it is the accuracy;
- ROUGE-1 and ROUGE-L: F of the words, and of their longest common subsequence;
- chrF: F₂ of the sequences of 1 to 6 characters, averaged over the lengths that occur in either text.

If every response is a number, MAE and RMSE too. An answer that is not a number counts as the largest error that the
responses' range allows, which also caps all other errors; `no_number` is the share of such answers.
"""

import re
import unicodedata
from itertools import combinations
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader
from torch import Tensor
from torchmetrics.functional.text import chrf_score, rouge_score

from bora.lib.files import write_text_atomically
from bora.lib.names import safe_names
from bora.report.answers import SCORES, WHO
from bora.report.intervals import Interval, bootstrap

PREFIX = "under_"  # begins the name of a column of answers
ALL = "all"
CHRF_ORDER = 6  # as in Popović (2015)
SAMPLES_PER_TASK = 5
# Thai, Lao, Burmese, Khmer, Japanese and Chinese put no spaces between words: each character counts as a word.
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
WORD = re.compile(rf"[{UNSPACED}]|[^\s{UNSPACED}]+")
NUMBER = re.compile(r"[+-]?\d+(\.\d+|,\d{1,2}|,\d{4,})?")  # 1,000 may be one or a thousand
# The page's names of models and scores.
NAMES = WHO | SCORES | {"no_number": "no number"}


def score_answers(answers: pd.DataFrame) -> pd.DataFrame:
    """Score each model's answers, by task and over all tasks.

    Args:
        answers: one row for each prompt: task, response, and a column of answers for each model, such as under_task,
            under_mean and under_base.

    Returns:
        One row for each model and task: under (task, mean, base), task, n (answers), exact_match, rouge1, rougeL, chrf,
        and for numbers no_number, mae, rmse. A task's scores are over its answers; the last row of a model, "all", has
        the plain mean over tasks.
    """
    responses, numbers = answers["response"], answers["response"].map(parse_number)
    tables = []
    for under in _models(answers):
        given = answers[PREFIX + under]
        each = pd.DataFrame(map(score_answer, given, responses), index=answers["task"])
        if numbers.notna().all():
            off = (given.map(parse_number) - numbers).abs()
            each["no_number"] = off.isna().to_numpy(float)
            largest = np.maximum(numbers - numbers.min(), numbers.max() - numbers)
            each["mae"] = off.fillna(np.inf).clip(upper=largest).to_numpy()
            each["rmse"] = each["mae"] ** 2
        groups = each.groupby(level="task", sort=False)
        table = groups.mean()
        if "rmse" in table:
            table["rmse"] **= 0.5
        table.insert(0, "n", groups.size())
        overall = table.mean().to_frame(ALL).T.assign(n=len(answers))
        tables.append(pd.concat([table, overall]).rename_axis("task").reset_index().assign(under=under))
    scores = pd.concat(tables, ignore_index=True)
    return scores[["under", *scores.columns.drop("under")]]


def compare_answers(scores: pd.DataFrame) -> pd.DataFrame:
    """Return each score's mean over tasks, and the paired differences between models, with 95 % intervals.

    The intervals are bootstrapped over tasks, so they show how far these tasks agree.

    Args:
        scores: from `score_answers`.

    Returns:
        One row for each score and each model or pair of models: score, under, minus (the other model; "" for the mean
        itself), value, low, high (nan for a single task).
    """
    by_task = scores.groupby("under", sort=False).head(-1)  # without "all", which is last
    models, rows = by_task["under"].unique(), []
    for score in scores.columns.drop(["under", "task", "n"]):
        wide = by_task.pivot(index="task", columns="under", values=score)
        for under, minus in [*((m, "") for m in models), *combinations(models, 2)]:
            values = wide[under] - wide[minus] if minus else wide[under]
            found = bootstrap(lambda sample: sample.mean(-1), values.to_numpy())
            rows.append((score, under, minus, found.value, found.low, found.high))
    return pd.DataFrame(rows, columns=["score", "under", "minus", "value", "low", "high"])


def score_answer(answer: str, response: str) -> dict[str, float]:
    """Score one answer: exact_match, rouge1, rougeL, chrf."""
    rouge = rouge_score(answer, response, rouge_keys=("rouge1", "rougeL"), normalizer=str, tokenizer=split_words)
    # Without spaces. A length that neither text has would count as a miss even for a correct answer.
    characters = ["".join(text.split()) for text in (answer, response)]
    order = min(CHRF_ORDER, max(map(len, characters)))
    chrf = cast(Tensor, chrf_score(characters[:1], [characters[1:]], order, n_word_order=0)).item() if order else 0.0
    return {
        "exact_match": float(answer.strip() == response.strip()),
        "rouge1": rouge["rouge1_fmeasure"].item(),
        "rougeL": rouge["rougeL_fmeasure"].item(),
        "chrf": chrf,
    }


def split_words(text: str) -> list[str]:
    """Split a text in any script into words of letters, their marks, and digits, ignoring case.

    torchmetrics' own splitting drops all letters except a to z.
    """
    folded = unicodedata.normalize("NFC", text.casefold())
    return WORD.findall("".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in folded))


def parse_number(text: str) -> float:
    """Parse a number with a decimal point or comma; nan for any other text."""
    found = NUMBER.fullmatch(text.strip())
    return float(found[0].replace(",", ".")) if found else np.nan


def samples_page(answers: pd.DataFrame, scores: pd.DataFrame, file: Path) -> None:
    """Write an HTML page with the scores of `score_answers`, and the first answers of each task side by side.

    Besides the columns that `score_answers` reads, `answers` has the column prompt.
    """
    models = _models(answers)
    template = Environment(loader=PackageLoader("bora", "report"), autoescape=True).get_template("answers.html.j2")
    page = template.render(
        n=len(answers),
        models=models,
        pairs=[*combinations(models, 2)],
        metrics=[*scores.columns.drop(["under", "task", "n"])],
        intervals={tuple(row[:3]): Interval(*row[3:]) for row in compare_answers(scores).itertuples(index=False)},
        by_task=scores.groupby("under", sort=False).head(-1).groupby("task", sort=False),
        samples=answers.groupby("task", sort=False).head(SAMPLES_PER_TASK).groupby("task", sort=False),
        names=NAMES,
        ids=safe_names(answers["task"].unique()),
        prefix=PREFIX,
    )
    write_text_atomically(file, page)


def _models(answers: pd.DataFrame) -> list[str]:
    """List the models that answered."""
    return [column.removeprefix(PREFIX) for column in map(str, answers.columns) if column.startswith(PREFIX)]
