"""A long run's metrics thinned as they come: curves cost the same after ten steps and after a million."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MAX_ROWS = 480
"""Rows kept; above it neighbours are merged, two into one. More than a screen shows."""


ABSENT_IS_ZERO = ("parse/", "format/")
"""Shares that a step logs only where they are above zero."""


class Thinned:
    """Rows of means over runs of consecutive steps, all of one length but the last.

    Example: `thinned = Thinned(); thinned.add({"step": 1, "reward": 0.5}); thinned.rows()`.
    """

    def __init__(self, most_rows: int = MAX_ROWS) -> None:
        self._most, self._length, self._last_step = most_rows, 1, 0
        self._sums: list[dict[str, list[float]]] = []
        self._in_last = 0
        self._absent: set[str] = set()

    def add(self, row: Mapping[str, Any]) -> None:
        """Take in one line of metrics; what is not a number in it is left out."""
        if not self._sums or self._in_last == self._length:
            if len(self._sums) >= self._most:
                self._merge()
            if not self._sums or self._in_last == self._length:
                self._sums.append({})
                self._in_last = 0
        sums = self._sums[-1]
        for name, value in row.items():
            if isinstance(value, int | float):
                pair = sums.setdefault(name, [0.0, 0.0])
                pair[0] += value
                pair[1] += 1
                if name.startswith(ABSENT_IS_ZERO):
                    self._absent.add(name)
        self._in_last += 1
        self._last_step = max(self._last_step, row["step"])

    def rows(self) -> list[dict[str, float]]:
        """The means, and a last row with the last step alone, so that the end of the run is where it is."""
        means = []
        for sums in self._sums:
            row = {name: total / count for name, (total, count) in sums.items()}
            for name in self._absent:
                row[name] = sums.get(name, [0.0])[0] / sums["step"][1]
            means.append(row)
        return [*means, {"step": self._last_step}] if self._length > 1 else means

    def _merge(self) -> None:
        whole = len(self._sums) - len(self._sums) % 2
        merged: list[dict[str, list[float]]] = []
        for left, right in zip(self._sums[:whole:2], self._sums[1:whole:2], strict=True):
            for name, (total, count) in right.items():
                pair = left.setdefault(name, [0.0, 0.0])
                pair[0] += total
                pair[1] += count
            merged.append(left)
        self._in_last = 2 * self._length if whole == len(self._sums) else self._in_last
        self._sums = merged + self._sums[whole:]
        self._length *= 2
