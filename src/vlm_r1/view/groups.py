"""The groups of a step: which there are, what is said of them, and how they are filtered and ordered."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlm_r1.report.held_out import HeldOutImages
from vlm_r1.view.cards import Row, score_of

SHOW = ("All", "Best first", "Worst first", "Parse failures", "Zero variance", "Warnings")
"""Filters of the answers of a step. The last three also choose among the steps."""

EQUAL = 1e-9
"""Scores of a group that differ by no more are equal: the group teaches nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The answers to one question at one moment; `name` says which group or which moment it is.

    `find` has the image where no row holds it.

    Example: `Group(name="group 1", rows=({"reward": 0.5, "question": "the red circle", ...},)).mean`.
    """

    name: str
    rows: tuple[Row, ...]
    find: Callable[[], bytes] | None = None

    @property
    def question(self) -> str:
        """What was asked."""
        return self.rows[0].get("question") or ""

    @property
    def key(self) -> tuple[str, str]:
        """What the same question has at another moment: (sample id, question)."""
        return (self.rows[0].get("sample_id") or "", self.question)

    def image(self) -> bytes:
        """The encoded image: of one of the rows, else what is found. Raises `DataError` where there is none."""
        stored = next((row["image"] for row in self.rows if row.get("image") is not None), None)
        if stored is not None:
            return stored
        return self.find() if self.find is not None else HeldOutImages(()).find(self.rows)

    @property
    def scores(self) -> list[float]:
        """The scores of the answers that have one."""
        return [value for _, value in map(score_of, self.rows) if value is not None]

    @property
    def mean(self) -> float | None:
        """The mean score."""
        return sum(self.scores) / len(self.scores) if self.scores else None

    @property
    def unreadable(self) -> int:
        """How many answers could not be read."""
        return sum(row.get("failure") is not None for row in self.rows)

    @property
    def flat(self) -> bool:
        """Whether several scores are all equal."""
        return len(self.scores) > 1 and max(self.scores) - min(self.scores) <= EQUAL


def groups_of(rows: Sequence[Row]) -> list[Group]:
    """The groups of a rollout table, in the order of their numbers."""
    found: dict[int, list[Row]] = {}
    for row in rows:
        found.setdefault(row["group"] or 0, []).append(row)
    return [Group(name=f"group {number + 1}", rows=tuple(found[number])) for number in sorted(found)]


def select(groups: Sequence[Group], show: str) -> list[Group]:
    """The groups that a filter of `SHOW` leaves, in its order; groups without a score come last."""
    if show in ("Best first", "Worst first"):
        sign = -1 if show == "Best first" else 1
        return sorted(groups, key=lambda group: (group.mean is None, sign * (group.mean or 0.0)))
    if show == "Parse failures":
        return sorted((group for group in groups if group.unreadable), key=lambda group: -group.unreadable)
    if show == "Zero variance":
        return [group for group in groups if group.flat]
    return list(groups)


def select_steps(steps: Sequence[int], metrics: Sequence[Mapping[str, Any]], show: str) -> list[int]:
    """The steps with rollouts that a filter leaves, by what the metrics say; a step without metrics stays."""
    column = {"Parse failures": "parse/failed", "Zero variance": "frac_reward_zero_std", "Warnings": "warnings"}.get(
        show
    )
    if column is None:
        return list(steps)
    dull = {row["step"] for row in metrics if not row.get(column)}
    return [step for step in steps if step not in dull]


def nearest_step(steps: Sequence[int], wanted: int) -> int | None:
    """The step nearest to the wanted one, the earlier of two; None where there are none."""
    return min(steps, key=lambda step: (abs(step - wanted), step), default=None)
