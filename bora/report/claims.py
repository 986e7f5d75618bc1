"""The paper's five claims (sections 5 and 6), each confirmed, refuted or undecided, with the numbers.

A claim about an average is decided if there are six tasks or more and its interval excludes 0. A claim about every task
is confirmed if every task is better with every seed, and refuted if the average itself goes the other way. A single task
that is worse does not refute it: among many tasks one is worse by chance, and seeds share their test documents.
"""

import math
from dataclasses import dataclass

import pandas as pd

from bora.lib.names import format_tau
from bora.report.evidence import Difference, Evidence, rank_correlation
from bora.report.intervals import MIN_TASKS, Interval

CONFIRMED, REFUTED, UNDECIDED = "confirmed", "refuted", "undecided"
MAX_NAMES = 3  # tasks named as exceptions


@dataclass(frozen=True)
class Claim:
    """A claim, the verdict of a series, and the numbers behind it."""

    claim: str
    verdict: str
    numbers: str


def judge_claims(evidence: Evidence) -> list[Claim]:
    """Judge the claims on a series; return none if it has no 0 < τ < ∞ to compare with another τ."""
    middle = evidence.best_middle_tau
    if middle is None or len(evidence.series.taus) < 2:
        return []
    zero, one = (evidence.difference(middle, limit) for limit in (0.0, math.inf))
    sizes = evidence.tasks()["n_train"]
    gain = None if zero is None else zero.improvement
    distance = evidence.by_task(middle, "distance").mean(axis=1)
    return [
        _judge_middle(evidence, middle, zero, one),
        _judge_every_task("every task is better than on its own (τ = 0)", zero),
        _judge_every_task("every task is better than under one model (τ = ∞)", one),
        _judge_correlation("tasks with little data gain more over τ = 0", "gain", sizes, gain, -1, middle),
        _judge_correlation("the distance to Θ grows with the task's data", "distance", sizes, distance, 1, middle),
    ]


def _judge_middle(evidence: Evidence, middle: float, zero: Difference | None, one: Difference | None) -> Claim:
    claim = "a middle τ is best overall"
    chosen = evidence.best_tau
    parts = [f"validation chooses τ = {format_tau(chosen)}"]
    for difference in (zero, one):
        if difference is not None:
            against = f"τ = {format_tau(middle)} against τ = {format_tau(difference.other)}"
            parts.append(f"{against}: {difference.overall:+.4f} nats a token")
    if zero is None or one is None:
        return Claim(claim, UNDECIDED, "; ".join([*parts, "both limits, τ = 0 and τ = ∞, are needed"]))
    if len(zero.by_task) < MIN_TASKS:
        return Claim(claim, UNDECIDED, "; ".join([*parts, f"{len(zero.by_task)} tasks are too few"]))
    signs = {zero.overall.sign, one.overall.sign}
    confirmed = signs == {-1} and chosen == middle
    return Claim(claim, CONFIRMED if confirmed else REFUTED if 1 in signs else UNDECIDED, "; ".join(parts))


def _judge_every_task(claim: str, difference: Difference | None) -> Claim:
    if difference is None:
        return Claim(claim, UNDECIDED, "there is no run to compare with")
    n, seeds = difference.by_seed.shape
    always_better = (difference.by_seed < 0).all(axis=1)
    always_worse = (difference.by_seed > 0).all(axis=1)
    numbers = (
        f"{(difference.by_task < 0).sum()} of {n} tasks; perplexity {difference.percent:+.1f} %, of a task on average "
        f"{Interval(-difference.improvement.mean()):+.1f} % "
        f"(τ = {format_tau(difference.tau)}, {seeds} seed{'s' * (seeds > 1)})"
    )
    against, how = always_worse, "worse with every seed"
    if always_better.all():
        verdict = CONFIRMED
    else:
        verdict = REFUTED if difference.overall.sign > 0 else UNDECIDED
        if not (seeds > 1 and always_worse.any()):
            against, how = ~always_better, "not better with every seed"
    if against.any():
        worst = difference.by_task[against].sort_values(ascending=False)
        numbers += f"; {how}: {', '.join(map(str, worst.index[:MAX_NAMES]))}"
        numbers += f" and {len(worst) - MAX_NAMES} more" * (len(worst) > MAX_NAMES)
    return Claim(claim, verdict, numbers)


def _judge_correlation(
    claim: str, what: str, sizes: pd.Series, values: pd.Series | None, wanted: int, tau: float
) -> Claim:
    """Judge a claim that `values` go up (wanted = 1) or down (−1) with the tasks' training documents."""
    if sizes.nunique() == 1:
        return Claim(claim, UNDECIDED, f"every task has {sizes.iloc[0]:,} training documents")
    rho = None if values is None else rank_correlation(sizes, values)
    if rho is None or math.isnan(rho.low):
        return Claim(claim, UNDECIDED, "too few tasks, or nothing to compare with")
    verdict = {wanted: CONFIRMED, -wanted: REFUTED, 0: UNDECIDED}[rho.sign]
    return Claim(claim, verdict, f"Spearman's ρ of training size and {what} {rho:+.2f} at τ = {format_tau(tau)}")
