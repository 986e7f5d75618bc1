"""Differences between τ, their intervals, and the claims that follow from them."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from bora.report.claims import judge_claims
from bora.report.evidence import rank_correlation
from bora.report.intervals import Interval, bootstrap, weighted_mean
from tests.report.runs import KNOWN, evidence_of, write_run


def test_differences_are_paired_and_weighted_by_tokens(tmp_path, monkeypatch):
    monkeypatch.setattr("bora.report.intervals.MIN_TASKS", 3)
    evidence = evidence_of(*(write_run(tmp_path / f"{t}", t) for t in KNOWN))
    assert (evidence.best_tau, evidence.best_middle_tau) == (100, 100)  # by validation; by test it would be 10
    difference = evidence.difference(100.0, 0.0)
    expected = np.log([14 / 22, 12 / 20, 14.5 / 21.5])
    np.testing.assert_allclose(difference.by_task, expected)
    assert difference.overall.value == pytest.approx(expected.mean())
    assert difference.overall.low == pytest.approx(expected.min())  # a draw of 3 tasks may be one task three times
    assert difference.overall.high == pytest.approx(expected.max())
    assert difference.improvement.tolist() == pytest.approx([100 * 8 / 22, 40, 100 * 7 / 21.5])
    assert evidence.difference(100.0, 100.0) is None


@pytest.mark.parametrize("n", [12, 25, 400])
def test_a_bootstrap_interval_of_a_mean_is_as_wide_as_the_t_interval(n):
    values = np.random.default_rng(1).normal(0.3, 2.0, n)
    interval = bootstrap(weighted_mean, values, np.ones(n))
    low, high = stats.ttest_1samp(values, 0).confidence_interval()
    assert interval.high - interval.low == pytest.approx(high - low, rel=0.04)


def test_weighted_means_and_rank_correlations_equal_their_definitions():
    assert bootstrap(weighted_mean, np.array([1.0, 3.0]), np.array([3.0, 1.0])).value == 1.5
    x, y = map(pd.Series, np.random.default_rng(0).integers(0, 9, (2, 30)))
    assert rank_correlation(x, y).value == pytest.approx(stats.spearmanr(x, y).statistic)
    assert math.isnan(rank_correlation(pd.Series([1, 1, 1, 1]), x[:4]).value)


def test_claims_follow_the_numbers(tmp_path, monkeypatch):
    evidence = evidence_of(*(write_run(tmp_path / f"{t}", t) for t in KNOWN))
    best, *_ = judge_claims(evidence)
    assert (best.verdict, best.numbers.endswith("3 tasks are too few")) == ("undecided", True)
    for module in ("claims", "intervals"):
        monkeypatch.setattr(f"bora.report.{module}.MIN_TASKS", 3)
    verdicts = [c.verdict for c in judge_claims(evidence)]
    assert verdicts == ["confirmed", "confirmed", "confirmed", "undecided", "undecided"]  # no ρ of 3 tasks
    worse = {**KNOWN, math.inf: (1e-3, 10.0, 10.5, {"ann": 10.0, "bo": 11.0, "cy": 10.5})}
    folders = [write_run(tmp_path / f"w{t}", t, known=worse) for t in KNOWN]
    best, alone, one, *_ = judge_claims(evidence_of(*folders))
    assert (best.verdict, alone.verdict, one.verdict) == ("refuted", "confirmed", "refuted")
    assert "validation chooses τ = ∞" in best.numbers
    # One task of three is worse with both seeds, while the average is better: that may be chance.
    mixed = {**KNOWN, math.inf: (1e-3, 15.0, 15.5, {"ann": 15.0, "bo": 11.0, "cy": 15.5})}
    folders = [write_run(tmp_path / f"m{t}{seed}", t, seed, known=mixed) for t in KNOWN for seed in (0, 1)]
    one = judge_claims(evidence_of(*folders))[2]
    assert (one.verdict, "worse with every seed: bo" in one.numbers) == ("undecided", True)
    # The largest τ that was tried is not a single model.
    best, alone, one, *_ = judge_claims(evidence_of(*(tmp_path / f"{t}" for t in KNOWN if t < math.inf)))
    assert best.numbers.endswith("both limits, τ = 0 and τ = ∞, are needed")
    assert alone.verdict == "confirmed"
    assert (one.verdict, one.numbers) == ("undecided", "there is no run to compare with")


def test_the_gain_of_each_task_has_a_t_interval_over_seeds(sweep, tmp_path):
    ends = evidence_of(sweep).difference(100.0, 0.0).improvement_ends
    first, second = math.log(14.0 / 22.0), math.log(14.2 / 22.2)
    half = 12.7062 * abs(first - second) / 2  # t of one degree of freedom; s/√2 is half the distance
    expected = [-100 * math.expm1((first + second) / 2 + sign * half) for sign in (1, -1)]
    assert ends.loc["ann"].tolist() == pytest.approx(expected, rel=1e-4)
    alone = evidence_of(*(write_run(tmp_path / f"{t}", t) for t in KNOWN))
    assert alone.difference(100.0, 0.0).improvement_ends is None


def test_an_interval_is_printed_with_its_ends_and_has_a_sign_unless_it_contains_zero():
    assert f"{Interval(1.0):.1f} {Interval(1.0, 0.5, 2.0):+.1f}" == "1.0 +1.0 [+0.5, +2.0]"
    assert [Interval(1, *ends).sign for ends in ((0.1, 2), (-2, -0.1), (-1, 1))] == [1, -1, 0]
