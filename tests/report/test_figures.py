"""Figures: who wrote a text and how sure the model is, names under the pointer, any number of tasks."""

import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bora.report import figures
from bora.report.authors import find_guesses
from bora.report.drawing import MAX_AXIS_NAMES
from bora.runs.values import write_json
from tests.report.runs import KNOWN, evidence_of, write_run


def write_guesses(run: Path) -> None:
    """Write an evaluation of five documents; the run was trained on the fourth, and the fifth has no task."""
    rows = [("ann", "ann", 0.95), ("ann", "bo", 0.55), ("bo", "bo", 0.92), ("cy", "cy", 0.9), ("", "cy", 0.9)]
    documents = pd.DataFrame(rows, columns=["task", "best", "posterior"]).assign(n_scored=3)
    folder = run / "evaluation/new"
    folder.mkdir(parents=True)
    documents.assign(trained_on=[False, False, False, True, False]).to_csv(folder / "documents.csv", index=False)
    classification = {"n": 3, "accuracy": 2 / 3, "low": 0.208, "high": 0.939, "chance": 1 / 3}
    classification["calibration_error_at_1"] = 0.25
    about = {"prior": "uniform", "include_trained": False, "temperature": 0.5}
    write_json(folder / "summary.json", about | {"classification": classification})


@pytest.mark.figures
def test_authorship_is_shown_by_task_and_by_the_models_certainty(sweep, report, tmp_path):
    write_guesses(sweep / "tau=100,seed=1")
    guesses = find_guesses(evidence_of(sweep))
    shares = guesses.confusion(["cy", "ann", "bo"])
    np.testing.assert_array_equal(shares, [[math.nan] * 3, [0, 0.5, 0.5], [0, 0, 1]])
    bins = guesses.reliability()
    assert bins.index.tolist() == [6, 10]
    assert bins["probability"].tolist() == pytest.approx([0.55, 0.935])
    assert bins[["accuracy", "n"]].to_numpy().tolist() == [[0, 1], [1, 2]]
    assert report(sweep)[0] == 0
    page = (tmp_path / "report/index.html").read_text("utf-8")
    assert "new: 3 documents under tau=100,seed=1" in page
    assert "66.7 % [20.8, 93.9] (95 % Wilson interval), by chance for 33 %. A grey row is a task" in page
    ece = (abs(0.05 + 0.08) + 0.55) / 3  # two in the last bin and one in the sixth
    figure = figures.authorship(evidence_of(sweep), guesses, None)
    assert figure.axes[1].get_title() == f"How sure and how right: ECE {ece:.3f}"


@pytest.mark.processes  # many tasks take long to draw
@pytest.mark.figures
def test_a_tasks_name_shows_under_the_pointer_unless_there_are_too_many(sweep, report, tmp_path, monkeypatch):
    assert report(sweep)[0] == 0
    page = (tmp_path / "report/index.html").read_text("utf-8")
    # A line in figure 2, two points in 3, one each in 4 and 5, a bar and a point in 7, a bar and three points in 8.
    titles = re.findall("<g><title>(.*?)</title>", page)
    assert {name: titles.count(name) for name in titles} == dict.fromkeys(["ann", "bo", "cy"], 11)
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    monkeypatch.setattr("bora.report.drawing.MAX_HOVER_NAMES", 2)
    assert report(sweep)[0] == 0
    assert "<g><title>" not in (tmp_path / "report/index.html").read_text("utf-8")


@pytest.mark.processes  # many tasks take long to draw
@pytest.mark.figures
@pytest.mark.parametrize("n_tasks", [1, MAX_AXIS_NAMES + 1])
def test_any_number_of_tasks_can_be_drawn(n_tasks, tmp_path, report):
    rng = np.random.default_rng(0)
    names = [f"a task with quite a long name, number {i} & $x_{i}$" for i in range(n_tasks)]
    for tau, (lr, val, test, _) in KNOWN.items():
        tasks = {name: float(rng.uniform(5, 400)) for name in names}
        write_run(tmp_path / f"s/{tau}", tau, known={tau: (lr, val, test, tasks)})
    assert report("s")[0] == 0
    assert len(pd.read_csv(tmp_path / "report/table2.csv")) == n_tasks
    assert len(list((tmp_path / "report").glob("figure*.png"))) == 8
