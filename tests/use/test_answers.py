"""Scores of answers equal those computed by hand or by a few lines of other code; the page shows any text."""

import re
from collections import Counter
from functools import cache

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bora.report.intervals import bootstrap
from bora.use.answers import compare_answers, parse_number, samples_page, score_answer, score_answers, split_words
from tests.lib.test_escaping import Page

WORDS = st.lists(st.sampled_from("æble øl å Å ß 漢 字 ja nej 1".split()), max_size=8).map(" ".join)


def f(matches: float, given: float, wanted: float, beta: float = 1) -> float:
    """Return F for precision matches / given and recall matches / wanted."""
    return (1 + beta**2) * matches / (given + beta**2 * wanted) if matches else 0.0


def common(a: list, b: list) -> int:
    """Return the length of the longest common subsequence, by its definition."""

    @cache
    def length(i: int, j: int) -> int:
        if i == len(a) or j == len(b):
            return 0
        return 1 + length(i + 1, j + 1) if a[i] == b[j] else max(length(i + 1, j), length(i, j + 1))

    return length(0, 0)


@settings(max_examples=60, deadline=None)
@given(WORDS, WORDS)
def test_scores_equal_their_definitions(answer, response):
    found = score_answer(answer, response)
    a, b = (text.casefold().split() for text in (answer, response))
    assert found["rouge1"] == pytest.approx(f((Counter(a) & Counter(b)).total(), len(a), len(b)), abs=1e-6)
    assert found["rougeL"] == pytest.approx(f(common(a, b), len(a), len(b)), abs=1e-6)
    a, b = (text.replace(" ", "") for text in (answer, response))
    scores = []
    for n in range(1, min(6, max(len(a), len(b))) + 1):
        grams = [Counter(text[i : i + n] for i in range(len(text) - n + 1)) for text in (a, b)]
        scores.append(f((grams[0] & grams[1]).total(), grams[0].total(), grams[1].total(), beta=2))
    assert found["chrf"] == pytest.approx(np.mean(scores) if scores else 0, abs=1e-6)
    assert found["exact_match"] == (answer == response)


def test_a_correct_answer_has_full_scores_in_any_script():
    for text in ("ja", "Nej!", "Må jeg få øl?", "правда", "हिन्दी भाषा", "是的", "ใช่", "4,5", " spaced\n"):
        assert set(score_answer(text, text.strip()).values()) == {1.0}, text
    assert set(score_answer("", "ja").values()) == {0.0}
    assert score_answer("på", "pø")["rouge1"] == 0  # torchmetrics' own splitting, p and p, would give 1
    assert score_answer("pa\u030a", "på")["rouge1"] == 1  # å as two characters
    assert split_words("Don't – «Straße», 東京は 3_000") == ["don", "t", "strasse", "東", "京", "は", "3", "000"]
    assert split_words("हिन्दी") == ["हिन्दी"]


COLUMNS = ["task", "prompt", "response", "under_task", "under_base"]
ROWS = [("a", "one", "1", "2", "good"), ("a", "two", "4,5", " 4.5 ", "4.5 of 5"), ("b", "three", "3", "3", "1")]
RATINGS = pd.DataFrame(ROWS, columns=COLUMNS)


def test_ratings_are_judged_as_numbers():
    scores = score_answers(RATINGS).set_index(["under", "task"])
    assert scores["n"].to_dict() == {(u, t): n for u in ("task", "base") for t, n in (("a", 2), ("b", 1), ("all", 3))}
    # Responses range from 1 to 4.5, so an answer without a number is 3.5 off both 1 and 4.5.
    assert scores.loc["task", "mae"].tolist() == [0.5, 0, 0.25]
    assert scores.loc["task", "rmse"].tolist() == pytest.approx([0.5**0.5, 0, 0.5**0.5 / 2])
    assert scores.loc["base", "mae"].tolist() == [3.5, 2, 2.75]
    assert scores.loc["base", "no_number"].tolist() == [1, 0, 0.5]
    assert scores.loc["task", "exact_match"].tolist() == [0, 1, 0.5]  # 4.5 and 4,5 are different texts
    assert "mae" not in score_answers(RATINGS.assign(response=["1", "4", "three"]))
    assert [parse_number(t) for t in ("-3", "+0,5", " 7\n")] == [-3, 0.5, 7]
    assert np.isnan([parse_number(t) for t in ("", "nan", "1e5", "4 stars", "1.2.3", "1,000")]).all()
    # A number beyond the range of responses is as wrong as no number.
    beyond = pd.DataFrame({"task": "a", "response": ["1", "5"], "under_task": ["12345678901", "none"]})
    assert score_answers(beyond)[["mae", "no_number"]].to_numpy().tolist() == [[4, 0.5]] * 2


def test_models_are_compared_task_by_task():
    tasks = [f"t{i}" for i in range(6)] + ["all"]  # a task may have any name, even "all"
    right = [1, 1, 0, 1, 0, 1, 1], [0, 1, 0, 0, 0, 1, 0]
    given = {f"under_{m}": np.where(r, "ja", "nej") for m, r in zip(("task", "base"), right, strict=True)}
    answers = pd.DataFrame({"task": tasks, "response": "ja", **given})
    found = compare_answers(score_answers(answers)).set_index(["score", "under", "minus"]).loc["exact_match"]
    assert found.loc[("task", ""), "value"] == pytest.approx(5 / 7)
    # The rows are in the order of the tasks' names.
    order = np.argsort(tasks)
    expected = bootstrap(lambda x: x.mean(-1), (np.array(right[0]) - right[1])[order].astype(float))
    assert found.loc[("task", "base")].tolist() == [expected.value, expected.low, expected.high]
    assert 0 <= expected.low < expected.value == pytest.approx(3 / 7)


def test_the_page_shows_every_text_literally(tmp_path):
    odd = "<script>alert(\"x\")</script> & {{ 1 }} 'æøå' \u202e"
    answers = RATINGS.assign(task=["<b>a", "<b>a", "b"], prompt=odd, under_task=["", f"{odd} two\nlines", "3"])
    scores = score_answers(answers)
    samples_page(answers, scores, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text("utf-8")
    page = Page(text)
    assert page.text.count(odd) == 3 + 1
    assert f"{odd} two\nlines" in page.text
    assert not {tag for tag, _ in page.elements} & {"script", "b"}
    for target in re.findall(r'href="#([^"]+)"', text):
        assert f'id="{target}"' in text
    mae = scores.set_index(["under", "task"]).loc[("base", "all"), "mae"]
    assert f"{mae:.3f}" in page.text
