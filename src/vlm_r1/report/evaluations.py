"""Evaluations of several models read from their files, and compared metric by metric on the same questions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vlm_r1.errors import CheckpointError, ConfigError, nearest
from vlm_r1.eval.bootstrap import Statistic, paired_intervals
from vlm_r1.eval.outcomes import Outcome, outcome_of_row
from vlm_r1.eval.suites import SUITES, build_statistic
from vlm_r1.report.findings import shared_metrics
from vlm_r1.runtime.runlog import read_samples

_COLUMNS = ["split", "source", "sample_id", "task", "question", "failure", "true_boxes", "pred_boxes"]
_COLUMNS += ["iou", "score", "correct", "well_formed", "n_tokens"]
_FORM = ("well_formed", "mean_length")


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """One evaluation of one model: split -> metric -> value, and its outcomes by split where the rows were kept.

    Example: `Evaluated(name="tiny", metrics={"val": {"n": 2, "mean_iou": 0.5}}, outcomes={})`.
    """

    name: str
    metrics: Mapping[str, Mapping[str, Any]]
    outcomes: Mapping[str, Sequence[Outcome]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A value with its interval, and its difference from the first model's; None where not known."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None

    @property
    def sure(self) -> bool:
        """Whether the interval of the difference excludes 0 (by more than rounding)."""
        if self.difference_low is None or self.difference_high is None:
            return False
        return self.difference_low > 1e-9 or self.difference_high < -1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareRow:
    """One metric of one split, a cell for each model."""

    split: str
    metric: str
    n: int | None
    cells: tuple[Cell, ...]


def load_evaluations(item: str) -> list[Evaluated]:
    """The evaluations behind an argument: a file of `vlm-r1 eval --out`, or a run folder (or its eval.json).

    A run holds one evaluation a phase; `runs/x:after` takes one of them. Raises `CheckpointError` for a file that is
    missing or not an evaluation, `ConfigError` for an unknown phase.
    """
    path, wanted = Path(item), None
    if not path.exists() and ":" in item:
        head, _, wanted = item.rpartition(":")
        path = Path(head)
    file = path / "eval.json" if path.is_dir() else path
    if not file.is_file():
        raise CheckpointError(f"{item}: there is no {file}; give a file of vlm-r1 eval --out, or a run folder")
    try:
        content = json.loads(file.read_bytes())
        nested = [isinstance(v, dict) and all(isinstance(w, dict) for w in v.values()) for v in content.values()]
    except (ValueError, AttributeError) as error:
        raise CheckpointError(f"{file}: not an evaluation ({error}); write it again with vlm-r1 eval --out") from None
    if not content or not all(isinstance(value, dict) for value in content.values()):
        raise CheckpointError(f"{file}: not an evaluation (split -> metric -> value); write it with vlm-r1 eval --out")
    if not all(nested):
        if wanted is not None:
            raise ConfigError(f"{item}: {file} holds one evaluation without phases; leave out :{wanted}")
        return [
            _evaluated(file.stem if file.stem != "eval" else file.parent.name, content, file.with_suffix(".parquet"))
        ]
    if wanted is not None and wanted not in content:
        raise ConfigError(f'{item}: {file} has no phase "{wanted}": {nearest(wanted, content)}')
    run = file.parent
    return [
        _evaluated(f"{run.name} {phase}", metrics, run / f"eval-{phase}.parquet")
        for phase, metrics in content.items()
        if wanted in (None, phase)
    ]


def compare_rows(models: Sequence[Evaluated]) -> list[CompareRow]:
    """One row for each metric of each split that any model has, without those that only describe form."""
    names = list(dict.fromkeys(name for m in models for name in shared_metrics([(m.metrics, m.metrics)])))
    splits = list(dict.fromkeys(split for split, _ in names))
    paired = {
        (place, split): _paired(models[0], model, split)
        for split in splits
        for place, model in enumerate(models[1:], start=1)
    }
    rows = []
    for split, metric in sorted(names, key=lambda name: splits.index(name[0])):
        if metric in _FORM or metric.startswith("failures/"):
            continue
        bounds = [paired.get((place, split), {}).get(metric) for place in range(len(models))]
        base = models[0].metrics.get(split, {}).get(metric)
        n = next((m.metrics[split]["n"] for m in models if m.metrics.get(split, {}).get("n") is not None), None)
        cells = tuple(
            _cell(m.metrics.get(split, {}), metric, base if i else None, bounds[i]) for i, m in enumerate(models)
        )
        rows.append(CompareRow(split=split, metric=metric, n=None if n is None else int(n), cells=cells))
    return rows


def _evaluated(name: str, metrics: Mapping[str, Any], table: Path) -> Evaluated:
    outcomes: dict[str, list[Outcome]] = {}
    for row in read_samples(table, _COLUMNS) if table.is_file() else ():
        outcomes.setdefault(row["split"] or "", []).append(outcome_of_row(row))
    return Evaluated(name=name, metrics=metrics, outcomes=outcomes)


def _cell(values: Mapping[str, Any], metric: str, base: float | None, bounds: tuple[float, float] | None) -> Cell:
    value = values.get(metric)
    if value is None:
        return Cell()
    known = base is not None
    return Cell(
        value=value,
        low=values.get(f"{metric}/low"),
        high=values.get(f"{metric}/high"),
        difference=value - base if base is not None else None,
        difference_low=bounds[0] if bounds and known else None,
        difference_high=bounds[1] if bounds and known else None,
    )


def _paired(first: Evaluated, second: Evaluated, split: str) -> dict[str, tuple[float, float]]:
    """Metric -> interval of the difference; empty unless both evaluations asked the same questions of this split."""
    ours, theirs = ({(o.sample_id, o.question): o for o in m.outcomes.get(split, ())} for m in (first, second))
    if not ours or ours.keys() != theirs.keys() or len(ours) < len(first.outcomes[split]):
        return {}
    old, new = (_statistic([found[key] for key in ours]) for found in (ours, theirs))
    everything = np.ones(len(ours), dtype=np.int64)
    told = [
        # A metric that the rows do not reproduce was measured in another way: its interval would mislead.
        {name for name, value in part(everything).items() if abs(m.metrics[split].get(name, np.inf) - value) < 5e-4}
        for part, m in ((old, first), (new, second))
    ]
    return {name: bounds for name, bounds in paired_intervals(old, new, len(ours)).items() if name in told[0] & told[1]}


def _statistic(outcomes: Sequence[Outcome]) -> Statistic:
    """All metrics that the outcomes allow, also those of suites that a recipe named."""
    usual = build_statistic(outcomes)
    if all(o.kind == "boxes" for o in outcomes):
        return build_statistic(outcomes, [name for name in SUITES if name in ("ovd", "ovdeval")])
    return usual
