"""Metrics as sums and counts: processes add theirs up, and only then is divided."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from vlm_r1.models.vision_cache import VisionCache


@dataclass(slots=True)
class Tally:
    """What one process saw of a step. `merged` adds up several; `values` are the metrics.

    Example: two processes with `mean("reward", 3.0, 4)` and `mean("reward", 1.0, 4)` give `{"reward": 0.5}`.
    """

    means: dict[str, tuple[float, float]] = field(default_factory=dict)
    totals: dict[str, float] = field(default_factory=dict)
    maxima: dict[str, float] = field(default_factory=dict)
    minima: dict[str, float] = field(default_factory=dict)

    def mean(self, name: str, total: float, count: float) -> None:
        """Add to a mean: its sum and how many it is of."""
        before = self.means.get(name, (0.0, 0.0))
        self.means[name] = (before[0] + float(total), before[1] + float(count))

    def total(self, name: str, value: float) -> None:
        """Add to a sum."""
        self.totals[name] = self.totals.get(name, 0.0) + float(value)

    def maximum(self, name: str, value: float) -> None:
        """The largest value seen."""
        self.maxima[name] = max(self.maxima.get(name, -math.inf), float(value))

    def minimum(self, name: str, value: float) -> None:
        """The smallest value seen."""
        self.minima[name] = min(self.minima.get(name, math.inf), float(value))

    def add(self, other: Tally) -> None:
        """Take in what another one saw."""
        for name, (total, count) in other.means.items():
            self.mean(name, total, count)
        for name, value in other.totals.items():
            self.total(name, value)
        for name, value in other.maxima.items():
            self.maximum(name, value)
        for name, value in other.minima.items():
            self.minimum(name, value)

    def values(self) -> dict[str, float]:
        """The metrics; a mean of nothing is left out."""
        found = {name: total / count for name, (total, count) in self.means.items() if count}
        return found | self.totals | self.maxima | self.minima


def merged(tallies: list[Tally]) -> Tally:
    """All of them as one, in their order."""
    whole = Tally()
    for tally in tallies:
        whole.add(tally)
    return whole


def cache_tally(cache: VisionCache | None) -> Tally:
    """Hit rate and size (of all processes together) of a cache since it was asked last; empty without one."""
    tally = Tally()
    if cache is not None:
        tally.mean("vision_cache/hit_rate", *cache.take_counts())
        tally.total("vision_cache/mb", cache.size / 2**20)
    return tally


def maxima(values: Mapping[str, float]) -> Tally:
    """Values of which the largest over the processes counts, as seconds do."""
    return Tally(maxima={name: float(value) for name, value in values.items()})
