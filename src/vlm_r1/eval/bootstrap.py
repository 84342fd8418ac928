"""Confidence intervals of any metric: the 95 % percentile bootstrap over questions (Efron 1979), seeded."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Statistic = Callable[[np.ndarray], dict[str, float]]
"""Metrics of `N` questions of which the i-th occurs `counts_N[i]` times; a metric that is not defined is left out."""

Interval = tuple[float, float]

RESAMPLES = 1000
LEVELS = (2.5, 97.5)


def intervals(statistic: Statistic, n: int, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Interval]:
    """Metric -> its interval over resampled questions; empty for fewer than two questions or no resamples."""
    return _percentiles(statistic, n, resamples, seed)


def paired_intervals(
    first: Statistic, second: Statistic, n: int, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Interval]:
    """Metric -> the interval of second minus first, both measured on the same resampled questions.

    The two statistics are about the same `n` questions in the same order.
    """

    def difference(counts_N: np.ndarray) -> dict[str, float]:
        old, new = first(counts_N), second(counts_N)
        return {name: new[name] - old[name] for name in old if name in new}

    return _percentiles(difference, n, resamples, seed)


def _percentiles(statistic: Statistic, n: int, resamples: int, seed: int) -> dict[str, Interval]:
    if n < 2 or not resamples:
        return {}
    rng = np.random.default_rng(seed)
    drawn: dict[str, list[float]] = {}
    for _ in range(resamples):
        counts_N = np.bincount(rng.integers(0, n, n), minlength=n)
        for name, value in statistic(counts_N).items():
            drawn.setdefault(name, []).append(value)
    found = {}
    for name, values in drawn.items():
        low, high = np.percentile(values, LEVELS)
        found[name] = (float(low), float(high))
    return found
