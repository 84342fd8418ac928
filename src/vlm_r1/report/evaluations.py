"""Evaluations of several models read from their files, and compared metric by metric on the same questions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vlm_r1.errors import CheckpointError, ConfigError, nearest
from vlm_r1.eval.bootstrap import RESAMPLES, Statistic, paired_intervals
from vlm_r1.eval.outcomes import Outcome, outcome_of_row
from vlm_r1.eval.suites import build_statistic
from vlm_r1.runtime.runlog import EVAL_COLUMNS
from vlm_r1.runtime.shown import Tell, refuse, shown_rows

BOUNDS = ("/low", "/high")
"""Ends of the names of an interval's bounds, which stand beside their metric."""

RESAMPLES_OF_BOXES = 200
"""Detection costs tens of milliseconds a resample over thousands of boxes, and a report should not take minutes."""

_COLUMNS = ["split", "source", "sample_id", "task", "question", "failure", "true_boxes", "pred_boxes"]
_COLUMNS += ["iou", "score", "correct", "well_formed", "n_tokens"]
_FORM = ("well_formed", "mean_length", "calls")


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
    except (ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{file}: not an evaluation ({error}); write it again with vlm-r1 eval --out") from None
    if not content or not all(isinstance(value, dict) for value in content.values()):
        raise CheckpointError(f"{file}: not an evaluation (split -> metric -> value); write it with vlm-r1 eval --out")
    if not all(nested):
        if wanted is not None:
            raise ConfigError(f"{item}: {file} holds one evaluation without phases; leave out :{wanted}")
        return [
            evaluated(file.stem if file.stem != "eval" else file.parent.name, content, file.with_suffix(".parquet"))
        ]
    if wanted is not None and wanted not in content:
        raise ConfigError(f'{item}: {file} has no phase "{wanted}": {nearest(wanted, content)}')
    run = file.parent
    return [
        evaluated(f"{run.name} {phase}", metrics, run / f"eval-{phase}.parquet")
        for phase, metrics in content.items()
        if wanted in (None, phase)
    ]


def compare_rows(models: Sequence[Evaluated]) -> list[CompareRow]:
    """One row for each metric of each split that any model has, without those that only describe form."""
    names = list(dict.fromkeys(name for m in models for name in shared_metrics([(m.metrics, m.metrics)])))
    splits = list(dict.fromkeys(split for split, _ in names))
    differences = {
        (place, split): paired([(models[0], model)], split)
        for split in splits
        for place, model in enumerate(models[1:], start=1)
    }
    rows = []
    for split, metric in sorted(names, key=lambda name: splits.index(name[0])):
        if metric in _FORM or metric.startswith("failures/"):
            continue
        bounds = [differences.get((place, split), {}).get(metric) for place in range(len(models))]
        base = models[0].metrics.get(split, {}).get(metric)
        n = next((m.metrics[split]["n"] for m in models if m.metrics.get(split, {}).get("n") is not None), None)
        cells = tuple(
            _cell(m.metrics.get(split, {}), metric, base if i else None, bounds[i]) for i, m in enumerate(models)
        )
        rows.append(CompareRow(split=split, metric=metric, n=None if n is None else int(n), cells=cells))
    return rows


def shared_metrics(both: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> list[tuple[str, str]]:
    """The (split, metric) pairs that hold a number in every evaluation given; `n` and intervals' bounds aside."""
    names = [
        {
            (split, metric)
            for split, values in phase.items()
            for metric, value in values.items()
            if metric != "n" and not metric.endswith(BOUNDS) and isinstance(value, int | float)
        }
        for phases in both
        for phase in phases
    ]
    common = set.intersection(*names) if names else set()
    order = [(split, metric) for split, values in both[0][0].items() for metric in values] if both else []
    return [name for name in order if name in common]


def evaluated(name: str, metrics: Mapping[str, Any], table: Path, tell: Tell = refuse) -> Evaluated:
    """An evaluation from its metrics and the table of its rows, which may be missing. Raises `CheckpointError`."""
    outcomes: dict[str, list[Outcome]] = {}
    for row in shown_rows(table, EVAL_COLUMNS, tell, columns=_COLUMNS) if table.is_file() else ():
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


def paired(runs: Sequence[tuple[Evaluated, Evaluated]], split: str) -> dict[str, tuple[float, float]]:
    """Metric -> interval of second minus first, averaged over the runs; questions are resampled, together in all.

    Empty unless all evaluations asked the same questions of this split, each once. A metric that the rows do not
    reproduce was measured in another way: its interval would mislead, so it has none.
    """
    both = [model for pair in runs for model in pair]
    keyed = [{(o.sample_id, o.question): o for o in model.outcomes.get(split, ())} for model in both]
    n = len(keyed[0])
    if not n or any(
        o.keys() != keyed[0].keys() or n < len(m.outcomes[split]) for o, m in zip(keyed, both, strict=True)
    ):
        return {}
    statistics = [
        _statistic([found[key] for key in keyed[0]], model.metrics.get(split, {}))
        for found, model in zip(keyed, both, strict=True)
    ]
    everything = np.ones(n, dtype=np.int64)
    told = [
        {
            name
            for name, value in part(everything).items()
            if abs(model.metrics.get(split, {}).get(name, np.inf) - value) < 5e-4
        }
        for part, model in zip(statistics, both, strict=True)
    ]
    boxes = any(o.kind == "boxes" for o in keyed[0].values())
    found = paired_intervals(
        _mean(statistics[::2]), _mean(statistics[1::2]), n, RESAMPLES_OF_BOXES if boxes else RESAMPLES
    )
    return {name: bounds for name, bounds in found.items() if name in set.intersection(*told)}


def _mean(statistics: Sequence[Statistic]) -> Statistic:
    def measure(counts_N: np.ndarray) -> dict[str, float]:
        values = [statistic(counts_N) for statistic in statistics]
        return {
            name: sum(v[name] for v in values) / len(values) for name in values[0] if all(name in v for v in values)
        }

    return measure


def _statistic(outcomes: Sequence[Outcome], metrics: Mapping[str, Any]) -> Statistic:
    """The metrics that the outcomes allow, also those of a suite that a recipe named."""
    if all(o.kind == "boxes" for o in outcomes):
        named = [name for name, metric in (("ovd", "mAP"), ("ovdeval", "nms_ap")) if metric in metrics]
        return build_statistic(outcomes, named or None)
    return build_statistic(outcomes)
