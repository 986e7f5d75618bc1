"""Learning curves: the validations during training, of whole runs and of each task."""

import math

import pandas as pd
import pytest

from bora.report.curves import curves_by_task, learning_curves
from bora.report.evidence import Evidence
from bora.runs.directory import RunDirectory
from tests.report.runs import evidence_of, with_learned


def test_learning_curves_show_the_validations_during_training_and_mark_the_kept_epoch(sweep, tmp_path):
    with_learned(sweep / "tau=learn,seed=0", 33.0, 0)
    series = evidence_of(sweep).series
    curves = [(run, RunDirectory(run.folder).validations()) for run in (*series.runs, *series.learned_beside)]
    figure = learning_curves(Evidence(series), curves)
    curve, kept = figure.axes[0].lines[:2]  # for τ = 0, seed 0
    assert curve.get_xydata().tolist() == [[1, 29], [2, 23], [3, 20], [4, 21]]
    assert kept.get_xydata().tolist() == [[3, 20]]
    assert len(figure.axes[0].lines) == 2 * 9
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ["τ = 0", "τ = 10", "τ = 100", "τ = ∞", "τ learned"]
    given = [(run, table) for run, table in curves if run.learned is None]
    assert not learning_curves(Evidence(series), given).axes[0].texts
    with_c = [(run, table.assign(**{"val/c": [math.nan, 1, 0.5, 0.5][: len(table)]})) for run, table in curves]
    shown = learning_curves(Evidence(series), with_c).axes[0].texts
    assert [text.get_text() for text in shown] == ["c = 1", "c = 0.5"]
    assert learning_curves(Evidence(series), []) is None


@pytest.mark.figures
def test_a_damaged_metrics_file_is_reported_and_the_other_runs_are_drawn(sweep, report, tmp_path):
    (sweep / "tau=0,seed=0/metrics.csv").write_text("")
    code, _, err = report(sweep)
    assert (code, err.count("the learning curves lack a run: ")) == (0, 1)
    assert (tmp_path / "report/figure9.png").is_file()


def test_a_tasks_curve_shows_its_validations_relative_to_the_lowest(sweep):
    perplexities = {"ann": (20, 10, 15), "bo": (8, 12, 16), "cy": (1, 1, 1)}
    rows = [(v, v, task, p) for task, found in perplexities.items() for v, p in enumerate(found, 1)]
    runs = {run.tau: run for run in evidence_of(sweep).series.runs if run.seed == 0}
    by_task = pd.DataFrame(rows, columns=["validation", "epoch", "task", "val_perplexity"])
    RunDirectory(runs[100].folder).write_by_task(by_task)
    figure = curves_by_task(evidence_of(sweep), [(runs[100], RunDirectory(runs[100].folder).by_task())])
    shown = {ax.get_title("left"): ax.lines for ax in figure.axes}
    assert shown["ann"][0].get_xydata().tolist() == [[1, 2], [2, 1], [3, 1.5]]
    assert shown["bo"][0].get_xydata().tolist() == [[1, 1], [2, 1.5], [3, 2]]
    assert shown["ann"][1].get_xydata().tolist() == [[2, 1]]
    assert curves_by_task(evidence_of(sweep), []) is None
