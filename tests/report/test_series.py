"""Runs are sorted into series by their settings; those that learned τ are shown beside a grid, or as their own series."""

import math

import numpy as np
import pandas as pd
import pytest

from bora.report.series import read_runs, series_of
from tests.report.runs import KNOWN, of_level, series_in, with_learned, write_run, write_summary


def test_series_differ_in_settings_and_every_parameterization_has_the_limits(tmp_path):
    for tau in (0.0, 10.0, math.inf):
        write_run(tmp_path / f"n/{tau}", tau)
    write_run(tmp_path / "c/10", 10.0, prior__parameterization="centered")
    write_run(tmp_path / "c/again", 10.0, prior__parameterization="centered")
    write_run(tmp_path / "lr/10", 10.0, optim__lr=0.5)
    runs, problems = read_runs([tmp_path])
    series, left_out = series_of(runs)
    assert problems == []
    found = {s.label: s.taus for s in series}
    assert found == {
        "t · opt_mini · optim.lr=null · prior.parameterization=centered": [0, 10, math.inf],
        "t · opt_mini · optim.lr=null · prior.parameterization=noncentered": [0, 10, math.inf],
        "t · opt_mini · optim.lr=0.5 · prior.parameterization=noncentered": [10],
    }
    assert len(left_out) == 1
    assert "has the same settings, τ and seed" in left_out[0]


def test_series_differ_in_the_dtype_used_and_not_in_the_one_asked_for(tmp_path):
    for tau, asked, taken in ((0.0, "float32", "float32"), (10.0, "auto", "float32"), (100.0, "auto", "bfloat16")):
        write_summary(write_run(tmp_path / f"{tau}", tau, model__dtype=asked), dtype=taken)
    assert {s.label: s.taus for s in series_in(tmp_path)} == {
        "t · opt_mini · model.dtype=float32": [0, 10],
        "t · opt_mini · model.dtype=bfloat16": [100],
    }


@pytest.mark.figures
def test_runs_that_learned_tau_are_beside_the_grid_and_do_not_affect_its_choice(sweep, report, tmp_path):
    for seed, tau in ((0, 33.0), (1, math.inf)):
        with_learned(sweep / f"tau=learn,seed={seed}", tau, seed, shift=-1.0 + 0.2 * seed)
    code, out, _ = report(sweep)
    assert code == 0
    table1 = pd.read_csv(tmp_path / "report/table1.csv")
    assert table1["tau"].tolist() == list(KNOWN)
    learned = pd.read_csv(tmp_path / "report/learned.csv")
    assert learned[["seed", "tau", "tau_low", "c"]].iloc[0].tolist() == [0, 33, 16.5, 0.5]
    assert learned[["seed", "tau", "c"]].iloc[1].tolist() == [1, math.inf, 0]
    # Compared with τ = 100, which validation chooses, seed by seed.
    tasks = {"ann": (12.5, 14.0), "bo": (11.5, 12.0), "cy": (12.0, 14.5)}
    expected = np.mean([[math.log(a + s) - math.log(b + s) for s in (0, 0.2)] for a, b in tasks.values()])
    assert learned["nll_minus_best_given"].iloc[0] == pytest.approx(expected)
    assert "against τ = 100." in (tmp_path / "report/index.html").read_text()
    assert "33 [16.5, 66]" in out


def test_without_a_grid_runs_that_learned_tau_have_their_own_report(report, tmp_path):
    for seed, tau in enumerate((33.0, 20.0, 50.0)):
        with_learned(tmp_path / f"s/{seed}", tau, seed)
    code, out, _ = report("s")
    assert (code, "33 [16.5, 66]" in out) == (0, True)
    table1 = pd.read_csv(tmp_path / "report/table1.csv")  # one setting: the seeds' τ are not compared with each other
    assert table1[["tau", "seeds"]].to_numpy().tolist() == [[33, 3]]
    page = (tmp_path / "report/index.html").read_text()
    assert ("τ = 33 was learned" in page, "τ learned:" in page) == (True, False)
    for limit in (0.0, math.inf):
        write_run(tmp_path / f"s/{limit}", limit)
    (series,) = series_in(tmp_path / "s")
    assert (series.taus, series.only_learned, len(series.learned_beside)) == ([0, math.inf], False, 3)
    for seed in range(3):  # with levels they are not beside the limits but between them
        of_level(tmp_path / f"s/{seed}", 20.0)
    (series,) = series_in(tmp_path / "s")
    assert (series.taus, series.only_learned, series.learned_beside) == ([0, 33, math.inf], True, [])


def test_a_learned_run_of_one_model_is_not_a_run_at_infinity(report, tmp_path):
    for seed, tau in enumerate((math.inf, 202.0)):
        with_learned(tmp_path / f"s/{seed}", tau, seed)
    (series,) = series_in(tmp_path / "s")
    assert (series.taus, series.only_learned, series.learned_beside) == ([202], True, [])
    assert report("s")[0] == 0
    page = (tmp_path / "report/index.html").read_text()
    assert "this is the median over seeds where it is finite" in page
    assert "among those given" not in page
    # In another form, at a given τ: its limits are completed only by runs given τ = ∞.
    for seed, tau in ((0, 10.0), (0, math.inf)):
        write_run(tmp_path / f"s/tau={tau}", tau, seed, prior__parameterization="centered")
    (given,) = (series for series in series_in(tmp_path / "s") if series.taus[0] == 10)
    assert [(run.tau, run.seed) for run in given.runs] == [(10, 0), (math.inf, 0)]


def test_runs_that_learned_tau_of_levels_are_beside_each_series_of_the_grid(report, tmp_path):
    for seed, level in enumerate((19.0, 22.0)):
        folder = of_level(with_learned(tmp_path / f"s/learn{seed}", 33.0, seed, shift=-1.0), level)
        write_summary(folder, learned={"levels": {"party": {"tau": level, "c": 0.5, "c_spread": 0.0}}})
        for tau in (10.0, 100.0):
            of_level(write_run(tmp_path / f"s/{tau},{seed}", tau, seed), 10 * tau)
    found = series_in(tmp_path / "s")
    assert [[run.tau for run in series.runs] for series in found] == [[10, 10], [100, 100]]
    assert [len(series.learned_beside) for series in found] == [2, 2]
    code, _, _ = report("s")
    table = pd.concat([pd.read_csv(file) for file in (tmp_path / "report").rglob("learned.csv")])
    assert (code, table["level"].tolist()) == (0, ["tasks", "party"] * 4)


def test_runs_with_one_tau_for_all_levels_are_a_grid(tmp_path):
    for tau in (10.0, 100.0):
        of_level(write_run(tmp_path / f"s/{tau}", tau), tau)
    assert [series.taus for series in series_in(tmp_path / "s")] == [[10, 100]]
