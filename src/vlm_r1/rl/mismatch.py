"""Do the engine and the trainer still agree about the log-probs of the same tokens? Warnings in words."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from statistics import fmean
from typing import Any

GROWTH = 4.0
"""How many times its early level the difference grows to before that is worth a warning."""
FLOOR = 0.1
"""Growth is not worth one below this share of `rollout.max_mismatch`."""


class MismatchWatch:
    """Warns where the mean difference of log-probs between engine and trainer is above `limit` (nats), or several times
    what it was over the run's first `window` steps.

    Example: `MismatchWatch(0.05).update(step, 0.08)` is a list of sentences, mostly empty.
    """

    def __init__(self, limit: float, *, window: int = 10) -> None:
        self.limit, self.window = limit, window
        self._early: list[float] = []
        self._late: deque[float] = deque(maxlen=window)
        self._warned = 0

    def update(self, step: int, value: float | None) -> list[str]:
        """Take a step's mean (None, NaN: it has none); return the warnings due, at most one in `window` steps."""
        if value is None or not math.isfinite(value):
            return []
        if len(self._early) < self.window:
            self._early.append(value)
        self._late.append(value)
        if self._warned and step - self._warned < self.window:
            return []
        early, late = fmean(self._early), fmean(self._late)
        what = ""
        if value > self.limit:
            what = f"is {value:.3g} nats a token, above rollout.max_mismatch ({self.limit:.3g})"
        elif late > GROWTH * early and late > FLOOR * self.limit:
            what = f"was {early:.3g} nats a token at the start and is {late:.3g} over the last {len(self._late)} steps"
        if not what:
            return []
        self._warned = step
        return [
            f"step {step}: the difference between the engine's log-probs and the trainer's {what}: the answers are "
            "hardly those of the policy that learns from them. Run vlm-r1 check-engine on the recipe; with "
            "rollout.staleness, set it lower or lower optim.lr"
        ]

    def state(self) -> dict[str, Any]:
        """What `restore` needs for an exact resume, as plain JSON values."""
        return {"early": list(self._early), "late": list(self._late), "warned": self._warned}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state()`."""
        self._early, self._warned = list(state["early"]), int(state["warned"])
        self._late = deque(state["late"], maxlen=self.window)
