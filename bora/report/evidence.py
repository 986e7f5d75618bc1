"""The numbers of a series: the τ that validation chooses, and paired differences with intervals.

Differences between two τ are in nats a token of the test documents, paired by task, with seeds averaged within a task.
Intervals are 95 %: for a difference by a bootstrap over tasks, which shows how far these tasks agree; for a mean over
seeds by Student's t.
"""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from bora.report.intervals import QUANTILES, Interval, bootstrap, weighted_mean
from bora.report.series import Series


@dataclass(frozen=True)
class Difference:
    """Test NLL at one τ minus that at another, nats a token; negative is better.

    Attributes:
        by_task: [D] means over seeds.
        by_seed: [D, seeds] the differences with each seed.
    """

    tau: float
    other: float
    overall: Interval
    by_task: pd.Series
    by_seed: pd.DataFrame

    @property
    def percent(self) -> Interval:
        """The change of perplexity in percent."""
        o = self.overall
        return Interval(*(100 * math.expm1(x) for x in (o.value, o.low, o.high)))

    @property
    def improvement(self) -> pd.Series:
        """By how many percent each task's perplexity is lower."""
        return -100 * np.expm1(self.by_task)

    @property
    def improvement_ends(self) -> pd.DataFrame | None:
        """The low and high end of `improvement`, by a t interval over seeds; None with one seed."""
        n = self.by_seed.shape[1]
        if n < 2:
            return None
        half = stats.t.ppf(QUANTILES[1], n - 1) * self.by_seed.sem(axis=1)
        lower, higher = self.by_task + half, self.by_task - half  # a higher NLL is a lower gain
        return pd.DataFrame({"low": -100 * np.expm1(lower), "high": -100 * np.expm1(higher)})


class Evidence:
    """The numbers of one series.

    Runs with the published code's likelihood are judged by that code's own figure, which is computed on validation
    documents; all others are judged on test documents.
    """

    def __init__(self, series: Series):
        self.series = series
        self.by_batch = all("val_perplexity_by_batch" in run.summary for run in series.runs)

    @property
    def measure(self) -> str:
        """The name of what the tables show."""
        return "validation perplexity as the published code averages it" if self.by_batch else "test perplexity"

    def _column(self, split: str) -> str:
        return "val_perplexity_by_batch" if self.by_batch else f"{split}_perplexity"

    def perplexities(self, tau: float, split: str = "test") -> np.ndarray:
        """Return the overall perplexity at τ, [seeds]; `split` is test, or val, which chooses τ."""
        return np.array([run.summary[self._column(split)] for run in self.series.at(tau)])

    def _validation(self, tau: float) -> float:
        return float(self.perplexities(tau, "val").mean())

    @property
    def best_tau(self) -> float:
        """The τ with the lowest mean validation perplexity; test documents are not used."""
        return min(self.series.taus, key=self._validation)

    @property
    def best_middle_tau(self) -> float | None:
        """The same among 0 < τ < ∞; None if the series has none."""
        return min((t for t in self.series.taus if 0 < t < math.inf), key=self._validation, default=None)

    def over_seeds(self, tau: float, split: str = "test") -> Interval:
        """Average the perplexity over seeds, with a t interval."""
        values = self.perplexities(tau, split)
        mean = float(values.mean())
        if len(values) < 2:
            return Interval(mean)
        half = stats.t.ppf(QUANTILES[1], len(values) - 1) * stats.sem(values)
        return Interval(mean, mean - half, mean + half)

    def by_task(self, tau: float, column: str | None = None) -> pd.DataFrame:
        """Return a column of per_task.csv, the perplexity if none is named, [D, seeds]."""
        return pd.DataFrame({run.seed: run.per_task[column or self._column("test")] for run in self.series.at(tau)})

    def task_means(self, column: str | None = None) -> pd.DataFrame:
        """Return `by_task` averaged over seeds, [D, τ]."""
        return pd.DataFrame({tau: self.by_task(tau, column).mean(axis=1) for tau in self.series.taus})

    def tasks(self) -> pd.DataFrame:
        """Return each task's n_train, test_tokens and so on, which all runs share."""
        return self.series.runs[0].per_task

    def difference(self, tau: float, other: float) -> Difference | None:
        """Compare τ with another τ over the seeds that both have; None if they share none."""
        if tau == other or not {tau, other} <= set(self.series.taus):
            return None
        return self._compare(tau, self.by_task(tau), other)

    def learned_difference(self) -> Difference | None:
        """Compare the runs that learned τ with the given τ that is best on validation; None without either."""
        if not self.series.learned_beside:
            return None
        columns = {run.seed: run.per_task[self._column("test")] for run in self.series.learned_beside}
        return self._compare(math.nan, pd.DataFrame(columns), self.best_tau)

    def _compare(self, tau: float, perplexities: pd.DataFrame, other: float) -> Difference | None:
        """Compare perplexities [D, seeds] with those at τ = `other`."""
        a, b = perplexities.apply(np.log), self.by_task(other).apply(np.log)
        seeds = a.columns.intersection(b.columns)
        if seeds.empty:
            return None
        by_seed = a[seeds] - b[seeds]
        by_task = by_seed.mean(axis=1)
        weights = self.tasks()["test_tokens"].to_numpy(float)
        if self.by_batch:  # in which every task has the same weight
            weights = np.ones_like(weights)
        return Difference(tau, other, bootstrap(weighted_mean, by_task.to_numpy(), weights), by_task, by_seed)


def spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Compute Spearman's ρ along the last axis; nan if one of them is constant."""
    x, y = (stats.rankdata(v, axis=-1) - (v.shape[-1] + 1) / 2 for v in (x, y))
    with np.errstate(invalid="ignore"):
        return (x * y).sum(-1) / np.sqrt((x**2).sum(-1) * (y**2).sum(-1))


def rank_correlation(x: pd.Series, y: pd.Series) -> Interval:
    """Compute Spearman's ρ of two values of each task, with its bootstrap interval; nan if there is too little data."""
    if len(x) < 4 or x.nunique() == 1 or y.nunique() == 1:
        return Interval(math.nan)
    return bootstrap(spearman, x.to_numpy(float), y.to_numpy(float))


def place_taus(taus: list[float]) -> list[float]:
    """Place each τ on an axis: log₁₀ τ, with the limits 0 and ∞ one decade outside the finite values."""
    logs = [math.log10(tau) for tau in taus if 0 < tau < math.inf] or [0.0]
    limits = {0.0: min(logs) - 1, math.inf: max(logs) + 1}
    return [limits[tau] if tau in limits else math.log10(tau) for tau in taus]
