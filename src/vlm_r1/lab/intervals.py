"""The one interval of the lab: over the seeds of training and the held-out questions together.

Runs of several seeds answer the same questions, so the error of their mean has two parts. That of the questions is
the variance of the mean over seeds when the questions are resampled (bootstrap, the same draws for every run, which
pairs whatever is subtracted). That of the seeds is the variance between runs over their number. A percentile
bootstrap over a handful of seeds is too narrow where the seeds are what differs; so the two variances are added and the
interval is Student's, its degrees of freedom after Welch and Satterthwaite. `tests/lab` measure the coverage of both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

LEVEL = 0.95
MANY = 10_000
"""Degrees of freedom from which Student's distribution is the normal one to four digits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean over `seeds` runs with its standard error and the degrees of freedom of that; all in the metric's unit.

    Example: `Estimate(value=0.1, error=0.02, freedom=9.0, seeds=5).interval()`.
    """

    value: float
    error: float | None
    freedom: float
    seeds: int

    def interval(self, level: float = LEVEL) -> tuple[float, float] | None:
        """Low and high of the interval; None for a single run, which says nothing about seeds."""
        if self.error is None:
            return None
        reach = student_quantile(self.freedom, level) * self.error
        return self.value - reach, self.value + reach


def draws(n: int, resamples: int, seed: int) -> np.ndarray:
    """How often each of `n` questions occurs, `(1 + resamples, n)`: first each once, then drawn with replacement."""
    rng = np.random.default_rng([seed, n])
    counts_BN = rng.multinomial(n, np.full(n, 1 / n), size=resamples)
    return np.concatenate([np.ones((1, n), dtype=np.int64), counts_BN])


def estimate(values_SB: np.ndarray) -> Estimate:
    """The mean of `S` runs, each measured on the questions (column 0) and on resampled ones (the other columns).

    For a metric without questions there is one column. The interaction of seeds and questions is in both variances, so
    the interval is a little wide where it is large.
    """
    n_seeds = len(values_SB)
    value = float(values_SB[:, 0].mean())
    if n_seeds < 2:
        return Estimate(value=value, error=None, freedom=math.inf, seeds=n_seeds)
    of_seeds = float(values_SB[:, 0].var(ddof=1)) / n_seeds
    of_questions = float(values_SB[:, 1:].mean(0).var(ddof=1)) if values_SB.shape[1] > 2 else 0.0
    total = of_seeds + of_questions
    freedom = total**2 / (of_seeds**2 / (n_seeds - 1)) if of_seeds > 1e-15 else math.inf
    return Estimate(value=value, error=math.sqrt(total), freedom=freedom, seeds=n_seeds)


@lru_cache(maxsize=4096)
def student_quantile(freedom: float, level: float = LEVEL) -> float:
    """How many standard errors an interval of this level reaches to each side, by numeric integration.

    >>> round(student_quantile(4, 0.95), 3)
    2.776
    """
    freedom = min(freedom, MANY)
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(freedom * math.pi)

    def inside(reach: float) -> float:
        # With x = tan(angle) the whole line becomes an interval, and heavy tails cost nothing.
        angles = np.linspace(0.0, math.atan(reach), 4001)
        x = np.tan(angles)
        density = scale * (1 + x**2 / freedom) ** (-(freedom + 1) / 2) * (1 + x**2)
        return 2 * float(np.trapezoid(density, angles))

    low, high = 0.0, 1.0
    while inside(high) < level:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if inside(middle) < level else (low, middle)
    return (low + high) / 2
