"""95 % confidence intervals of proportions, of means, and (by the bootstrap) of means over queries."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

RESAMPLES = 1000


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % confidence interval."""

    value: float
    low: float
    high: float

    def __iter__(self) -> Iterator[float]:
        return iter((self.value, self.low, self.high))

    @classmethod
    def of_proportion(cls, count: int, trials: int) -> Interval:
        """Returns the proportion `count` / `trials` with its Wilson score interval (1927)."""
        z, share = 1.959964, count / trials
        middle = (share + z * z / (2 * trials)) / (1 + z * z / trials)
        half = z / (1 + z * z / trials) * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials**2))
        return cls(share, max(0.0, middle - half), min(1.0, middle + half))


def mean_interval(shares: NDArray[np.floating[Any]]) -> tuple[float, float]:
    """Returns (low, high), the 95 % interval of the mean of (n,) proportions, by the normal approximation.

    If all values are equal, the half-width is 3/n, by the rule of three. For a single value, the half-width is 1.
    """
    mean, n = float(shares.mean()), len(shares)
    error = 1.96 * float(shares.std(ddof=1)) / n**0.5 if n > 1 else 1.0
    if error == 0:
        error = 3 / n
    return max(0.0, mean - error), min(1.0, mean + error)


def with_intervals(values: Mapping[str, NDArray[np.float64]], seed: int = 0) -> dict[str, Interval]:
    """Returns the mean of each measure with its percentile bootstrap interval (Efron & Tibshirani 1993, section 13.3).

    values: for each measure, an (nq,) array with a value for each query; NaN values are ignored. The resampled queries
    are the same for all measures.
    """
    names = list(values)
    table = np.stack([values[name] for name in names], 1)  # (nq, number of measures)
    count = len(table)
    if not count:
        return {name: Interval(math.nan, math.nan, math.nan) for name in names}
    known = np.isfinite(table)
    table = np.where(known, table, 0)
    random = np.random.default_rng(seed)
    step = max(1, min(RESAMPLES, (1 << 24) // count))
    means = []
    with np.errstate(invalid="ignore"):
        middle = table.sum(0) / known.sum(0)
        for start in range(0, RESAMPLES, step):
            drawn = random.integers(0, count, (min(step, RESAMPLES - start), count))
            times = np.stack([np.bincount(row, minlength=count) for row in drawn]).astype(np.float64)
            means.append(times @ table / (times @ known))
    sample = np.concatenate(means)
    out = {}
    for column, name in enumerate(names):
        drawn_means = sample[np.isfinite(sample[:, column]), column]
        low, high = np.quantile(drawn_means, (0.025, 0.975)) if len(drawn_means) else (math.nan, math.nan)
        out[name] = Interval(float(middle[column]), float(low), float(high))
    return out
