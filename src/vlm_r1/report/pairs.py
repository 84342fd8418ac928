"""Held-out questions before and after training, joined question by question."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm_r1.errors import CheckpointError
from vlm_r1.runtime.runlog import EVAL_COLUMNS, eval_path
from vlm_r1.runtime.shown import Tell, refuse, shown_rows

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One held-out question with its rows (`EVAL_COLUMNS`) of the two evaluations; one may be None.

    Example: `Pair(before={"iou": 0.25, ...}, after={"iou": 0.75, ...}).gain` is 0.5.
    """

    before: Row | None
    after: Row | None

    @property
    def row(self) -> Row:
        """What does not depend on the evaluation: question, truth, size of the image."""
        return self.after if self.after is not None else self.before or {}

    @property
    def rows(self) -> tuple[Row, ...]:
        """Those there are, the later evaluation's first."""
        return tuple(row for row in (self.after, self.before) if row is not None)

    @property
    def gain(self) -> float | None:
        """The rise in IoU, else in the answer's score, else in correctness; None where one side is not known."""
        found = (difference(self, column) for column in ("iou", "score", "correct"))
        return next((d for d in found if d is not None), None)


def difference(pair: Pair, column: str) -> float | None:
    """After minus before in one column; None where either is not known."""
    if pair.before is None or pair.after is None:
        return None
    old, new = pair.before.get(column), pair.after.get(column)
    return None if old is None or new is None else float(new) - float(old)


def read_pairs(run_dir: Path, tell: Tell = refuse) -> dict[str, list[Pair]]:
    """Split -> its questions, in the order they were asked; empty for a run without held-out rows."""
    return join(read_phase(run_dir, "before", tell), read_phase(run_dir, "after", tell))


def read_phase(run_dir: Path, phase: str, tell: Tell = refuse) -> list[dict[str, Any]]:
    """The held-out questions of one evaluation (`EVAL_COLUMNS`); empty where there are none."""
    path = eval_path(Path(run_dir), phase)
    try:
        return shown_rows(path, EVAL_COLUMNS, tell) if path.is_file() else []
    except CheckpointError as error:
        tell(str(error))
        return []


def join(before: Iterable[Row], after: Iterable[Row]) -> dict[str, list[Pair]]:
    """Split -> pairs; rows belong together where split, sample id and question are equal."""
    old, new = {_key(row): row for row in before}, {_key(row): row for row in after}
    pairs: dict[str, list[Pair]] = {}
    for key in [*old, *(key for key in new if key not in old)]:
        pairs.setdefault(key[0], []).append(Pair(before=old.get(key), after=new.get(key)))
    return pairs


def _key(row: Row) -> tuple[str, Any, Any]:
    return (row["split"] or "", row.get("sample_id"), row.get("question"))
