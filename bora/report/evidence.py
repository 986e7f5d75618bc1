"""What a series says: the τ that validation chooses, paired differences with intervals, the paper's five claims.

Differences between two τ are in nats a token of the test documents, each task against itself, seeds
averaged within the task. Intervals are 95 %: of a difference, by a bootstrap over tasks (they say how far the
tasks at hand speak with one voice); of a mean over seeds, by Student's t.
"""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from bora.report.series import Series

DRAWS = 10_000
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval; the ends are nan where there is too little to say."""

    value: float
    low: float = math.nan
    high: float = math.nan

    def __format__(self, spec: str) -> str:
        text = format(self.value, spec)
        if not math.isnan(self.low):
            text += f" [{format(self.low, spec)}, {format(self.high, spec)}]"
        return text.replace("-", "−")

    @property
    def sign(self) -> int:
        """−1 or 1 where the interval leaves 0 out, else 0."""
        return int(self.low > 0) - int(self.high < 0)


@dataclass(frozen=True)
class Difference:
    """Test NLL at one τ minus that at another, nats a token; negative is better."""

    tau: float
    other: float
    overall: Interval
    by_task: pd.Series  # mean over seeds
    by_seed: pd.DataFrame  # task × seed

    @property
    def n_better(self) -> int:
        return int((self.by_task < 0).sum())

    @property
    def percent(self) -> Interval:
        """Change of perplexity in percent."""
        o = self.overall
        return Interval(*(100 * math.expm1(x) for x in (o.value, o.low, o.high)))

    @property
    def improvement(self) -> pd.Series:
        """By how many percent each task's perplexity is lower."""
        return -100 * np.expm1(self.by_task)


class Evidence:
    """The numbers of one series.

    Runs of the published code's likelihood are judged by its own figure, which is computed on
    validation documents; all others by test documents.
    """

    def __init__(self, series: Series):
        self.series = series
        self.by_batch = all("val_perplexity_by_batch" in run.summary for run in series.runs)

    @property
    def measure(self) -> str:
        """What the tables show, in words."""
        return "validation perplexity as the published code averages it" if self.by_batch else "test perplexity"

    def perplexities(self, tau: float, split: str = "test") -> np.ndarray:
        """[seeds] overall perplexity at τ: of test, or of the validation that chooses (`val`)."""
        return np.array([run.summary[self._column(split)] for run in self.series.at(tau)])

    def _column(self, split: str) -> str:
        return "val_perplexity_by_batch" if self.by_batch else f"{split}_perplexity"

    def validation(self, tau: float) -> float:
        """Mean over seeds of the validation perplexity."""
        return float(self.perplexities(tau, "val").mean())

    @property
    def best_tau(self) -> float:
        """The τ with the lowest mean validation perplexity. Test has no say in it."""
        return min(self.series.taus, key=self.validation)

    @property
    def best_middle_tau(self) -> float | None:
        """The same among 0 < τ < ∞."""
        middle = [t for t in self.series.taus if 0 < t < math.inf]
        return min(middle, key=self.validation, default=None)

    def over_seeds(self, tau: float, split: str = "test") -> Interval:
        """Mean perplexity over seeds with its t interval."""
        values = self.perplexities(tau, split)
        mean = float(values.mean())
        if len(values) < 2:
            return Interval(mean)
        half = stats.t.ppf((1 + LEVEL) / 2, len(values) - 1) * stats.sem(values)
        return Interval(mean, mean - half, mean + half)

    def by_task(self, tau: float, split: str = "test") -> pd.DataFrame:
        """Perplexity, task × seed."""
        return pd.DataFrame({run.seed: run.per_task[self._column(split)] for run in self.series.at(tau)})

    def tasks(self) -> pd.DataFrame:
        """n_train, test_tokens and the like of each task, as the runs have them."""
        return self.series.runs[0].per_task

    def distances(self, tau: float) -> pd.Series:
        """‖θ_d − Θ‖₂ of each task, mean over seeds."""
        return pd.DataFrame({run.seed: run.per_task["distance"] for run in self.series.at(tau)}).mean(axis=1)

    def difference(self, tau: float, other: float) -> Difference | None:
        """τ against another τ over the seeds that both have; None where they share none, as where one has no run."""
        if not {tau, other} <= set(self.series.taus):
            return None
        a, b = self.by_task(tau).apply(np.log), self.by_task(other).apply(np.log)
        seeds = a.columns.intersection(b.columns)
        if seeds.empty or tau == other:
            return None
        by_seed = a[seeds] - b[seeds]
        by_task = by_seed.mean(axis=1)
        weights = self.tasks()["test_tokens"].to_numpy(float)
        if self.by_batch:  # there every task weighs the same
            weights = np.ones_like(weights)
        return Difference(tau, other, bootstrap(by_task.to_numpy(), weights), by_task, by_seed)


def bootstrap(values: np.ndarray, weights: np.ndarray) -> Interval:
    """Weighted mean over tasks, with the percentile interval of 10,000 draws of tasks (seed 0)."""
    mean = float((values * weights).sum() / weights.sum())
    if len(values) < 2:
        return Interval(mean)
    draw = np.random.default_rng(0).integers(0, len(values), (DRAWS, len(values)))
    means = (values[draw] * weights[draw]).sum(1) / weights[draw].sum(1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(mean, float(low), float(high))


def rank_correlation(x: np.ndarray, y: np.ndarray) -> Interval:
    """Spearman's ρ, with the percentile interval of 10,000 draws of tasks (seed 0)."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    if len(x) < 4 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return Interval(math.nan)
    draw = np.random.default_rng(0).integers(0, len(x), (DRAWS, len(x)))

    def rho(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        a, b = (stats.rankdata(v, axis=-1) for v in (a, b))
        a, b = (v - v.mean(axis=-1, keepdims=True) for v in (a, b))
        with np.errstate(invalid="ignore"):
            return (a * b).sum(-1) / np.sqrt((a**2).sum(-1) * (b**2).sum(-1))

    low, high = np.nanquantile(rho(x[draw], y[draw]), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(rho(x, y)), float(low), float(high))


CONFIRMED, REFUTED, UNDECIDED = "confirmed", "refuted", "undecided"


@dataclass(frozen=True)
class Claim:
    """One of the paper's claims, held against a series."""

    claim: str
    verdict: str
    numbers: str


def claims(evidence: Evidence) -> list[Claim]:
    """The paper's five claims (sections 5 and 6), each confirmed, refuted or undecided, with the numbers.

    A claim about an average is decided where its interval leaves 0 out. A claim about every task is
    confirmed if every task is better with every seed, refuted if one is worse with every seed and there
    are at least two, or if the average itself goes the other way.
    """
    middle = evidence.best_middle_tau
    if middle is None or len(evidence.series.taus) < 2:
        return []
    zero, one = (evidence.difference(middle, limit) for limit in (0.0, math.inf))
    found = [_best_in_the_middle(evidence, middle, zero, one)]
    for difference, what in (
        (zero, "every task is better than on its own (τ = 0)"),
        (one, "every task is better than under one model (τ = ∞)"),
    ):
        found.append(_every_task(difference, what))
    sizes = evidence.tasks()["n_train"].to_numpy()
    if np.ptp(sizes) == 0:
        even = f"every task has {sizes[0]:,} training documents"
        claimed = ("tasks with little data gain more over τ = 0", "the distance to Θ grows with the task's data")
        return [*found, *(Claim(claim, UNDECIDED, even) for claim in claimed)]
    gain = rank_correlation(sizes, zero.improvement.to_numpy()) if zero else Interval(math.nan)
    found.append(
        _correlation("tasks with little data gain more over τ = 0", gain, -1, "training size and gain", middle)
    )
    distance = rank_correlation(sizes, evidence.distances(middle).to_numpy())
    found.append(
        _correlation("the distance to Θ grows with the task's data", distance, 1, "training size and distance", middle)
    )
    return found


def _best_in_the_middle(evidence: Evidence, middle: float, zero: Difference | None, one: Difference | None) -> Claim:
    claim = "a middle τ is best overall"
    chosen, name = evidence.best_tau, format_tau
    parts = [f"validation chooses τ = {name(chosen)}"]
    for difference in (zero, one):
        if difference is not None:
            parts.append(
                f"τ = {name(middle)} against τ = {name(difference.other)}: {difference.overall:+.4f} nats a token"
            )
    if zero is None or one is None:
        return Claim(claim, UNDECIDED, "; ".join(parts) + "; both limits, τ = 0 and τ = ∞, are needed")
    signs = {zero.overall.sign, one.overall.sign}
    if signs == {-1} and chosen == middle:
        verdict = CONFIRMED
    elif 1 in signs:
        verdict = REFUTED
    else:
        verdict = UNDECIDED
    return Claim(claim, verdict, "; ".join(parts))


def _every_task(difference: Difference | None, what: str) -> Claim:
    if difference is None:
        return Claim(what, UNDECIDED, "there is no run to compare with")
    n, seeds = len(difference.by_task), difference.by_seed.shape[1]
    always_better = (difference.by_seed < 0).all(axis=1)
    always_worse = (difference.by_seed > 0).all(axis=1)
    numbers = (
        f"{difference.n_better} of {n} tasks better with τ = {format_tau(difference.tau)} "
        f"({seeds} seed{'s' * (seeds > 1)}); perplexity {difference.percent:+.1f} %"
    )
    against, how = always_worse, "worse with every seed"
    if always_better.all():
        verdict = CONFIRMED
    elif difference.overall.sign > 0 or (seeds > 1 and always_worse.any()):
        verdict = REFUTED
    else:
        verdict = UNDECIDED
        against, how = ~always_better, "not better with every seed"
    if against.any():
        worst = difference.by_task[against].sort_values(ascending=False)
        numbers += f"; {how}: {', '.join(map(str, worst.index[:3]))}"
        numbers += f" and {len(worst) - 3} more" * (len(worst) > 3)
    return Claim(what, verdict, numbers)


def _correlation(claim: str, rho: Interval, wanted: int, what: str, tau: float) -> Claim:
    if math.isnan(rho.value):
        return Claim(claim, UNDECIDED, "too few tasks, or nothing to compare with")
    verdict = {wanted: CONFIRMED, -wanted: REFUTED, 0: UNDECIDED}[rho.sign]
    return Claim(claim, verdict, f"Spearman's ρ of {what} {rho:+.2f} at τ = {format_tau(tau)}")


def format_tau(tau: float) -> str:
    """∞, or the number as one writes it: 0, 100, 10⁴."""
    if math.isinf(tau):
        return "∞"
    exponent = math.log10(tau) if tau > 0 else 0.0
    if exponent >= 4 and exponent == int(exponent):
        return "10" + str(int(exponent)).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{tau:g}"
