"""Estimates with 95 % intervals, by a bootstrap over tasks."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats

DRAWS = 10_000
BLOCK = 2**22  # numbers drawn at once
MIN_TASKS = 6  # fewer, n, allow no interval of 95 %: all agree by chance in 2^(1 − n) of samples
LEVEL = 0.95
QUANTILES = (1 - LEVEL) / 2, (1 + LEVEL) / 2


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval; the ends are nan if there is too little data."""

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
        """−1 or 1 if the interval excludes 0, else 0."""
        return int(self.low > 0) - int(self.high < 0)


def bootstrap(statistic: Callable[..., np.ndarray], *samples: np.ndarray) -> Interval:
    """Compute a statistic of the tasks, with an interval from 10,000 draws of tasks (seed 0).

    Its ends are percentiles beyond 2.5 and 97.5, by as much as a t interval for n tasks is wider than one for a known
    variance (Hesterberg 2015, https://doi.org/10.1080/00031305.2015.1089789, "expanded percentile"). Those two are too
    narrow: for a mean of 25 tasks they miss the truth in 7 % of samples. Fewer than MIN_TASKS tasks have no interval.

    Args:
        statistic: function of arrays [..., D] along the last axis.
        samples: arrays [D].
    """
    value, n = float(statistic(*samples)), len(samples[0])
    if n < MIN_TASKS:
        return Interval(value)
    rng, values = np.random.default_rng(0), []
    for size in map(len, np.array_split(np.arange(DRAWS), 1 + DRAWS * n // BLOCK)):
        drawn = rng.integers(0, n, (size, n))
        values.append(statistic(*(sample[drawn] for sample in samples)))
    tail = stats.norm.cdf(math.sqrt(n / (n - 1)) * stats.t.ppf(QUANTILES[0], n - 1))
    low, high = np.nanquantile(np.concatenate(values), (tail, 1 - tail))
    return Interval(value, float(low), float(high))


def weighted_mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Compute a weighted mean along the last axis."""
    return (values * weights).sum(-1) / weights.sum(-1)
