"""The held-out questions of one evaluation, alone or beside those of another, filtered and ordered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vlm_r1.report.evaluations import CompareRow, Evaluated, compare_rows, evaluated
from vlm_r1.report.findings import signed
from vlm_r1.report.pairs import Pair, join
from vlm_r1.view.cards import score_of
from vlm_r1.view.folder import RunFolder
from vlm_r1.view.groups import Group

SHOW = ("All", "Best first", "Worst first", "Gains", "Losses", "Parse failures")
"""Filters of held-out questions; gains and losses are those over the evaluation compared with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """One evaluation: a run and the name under which it keeps it."""

    run: RunFolder
    name: str

    @property
    def label(self) -> str:
        """As the page writes it."""
        return f"{self.run.name}: {self.name}"


def choices(runs: Sequence[RunFolder]) -> list[Chosen]:
    """All evaluations of the runs, in order."""
    return [Chosen(run=run, name=name) for run in runs for name in run.evaluations()]


def pairs_of(new: Chosen, old: Chosen | None) -> dict[str, list[Pair]]:
    """Split -> questions of `new`, each with what `old` answered to it."""
    before = old.run.samples(old.name) if old is not None else []
    found = join(before, new.run.samples(new.name))
    return {split: kept for split, pairs in found.items() if (kept := [pair for pair in pairs if pair.after])}


def select(pairs: Sequence[Pair], show: str) -> list[Pair]:
    """The pairs that a filter of `SHOW` leaves, in its order; those without a score come last."""
    if show in ("Best first", "Worst first"):
        sign = -1 if show == "Best first" else 1
        means = {id(pair): score_of(pair.row)[1] for pair in pairs}
        return sorted(pairs, key=lambda pair: (means[id(pair)] is None, sign * (means[id(pair)] or 0.0)))
    if show in ("Gains", "Losses"):
        sign = -1 if show == "Gains" else 1
        changed = [pair for pair in pairs if sign * (pair.gain or 0.0) < 0]
        return sorted(changed, key=lambda pair: sign * (pair.gain or 0.0))
    if show == "Parse failures":
        return [pair for pair in pairs if (pair.after or {}).get("failure") is not None]
    return list(pairs)


def group(pair: Pair, new: Chosen, old: bool = False) -> Group:
    """One side of a pair as the page shows it, named by the change of its score; `new` has its image."""
    row = (pair.before if old else pair.after) or {}
    name = "" if pair.gain is None else signed(pair.gain)
    return Group(name=name, rows=(row,), find=lambda: new.run.images(new.name).find(pair.rows))


def table(new: Chosen, old: Chosen | None) -> tuple[list[str], list[CompareRow]]:
    """Names and rows of the table of metrics: the older evaluation first. Raises `CheckpointError`."""
    models = [_evaluated(chosen) for chosen in (old, new) if chosen is not None]
    return ([model.name for model in models], compare_rows(models))


def _evaluated(chosen: Chosen) -> Evaluated:
    path = chosen.run.evaluation_table(chosen.name)
    tell = chosen.run.tell(f"outcomes of {path.name}")
    return evaluated(chosen.label, chosen.run.evaluations()[chosen.name], path, tell)
