"""What a run is measured by: held-out answers at each evaluation, and its log."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from vlm_r1.errors import StudyError, nearest
from vlm_r1.eval.detection import Matches, match_split
from vlm_r1.eval.outcomes import Outcome, outcome_of_row
from vlm_r1.eval.suites import rec
from vlm_r1.lab.thoughts import lists_first, lists_right, thought_correlation
from vlm_r1.rewards.common import fold_label
from vlm_r1.rewards.detection import mean_ap
from vlm_r1.runtime.runlog import read_metrics, read_samples

Number = Callable[[np.ndarray], float | None]
"""A metric of `N` questions of which the i-th occurs `counts_N[i]` times; None where it is not defined."""

RESAMPLES = {"mAP": 200, "AP50": 200}
"""COCO's numbers cost milliseconds a resample and run; all others have `MANY_RESAMPLES`."""
MANY_RESAMPLES = 1000

LAST = 10
"""Lines of the log that a metric of the log is the mean of."""

COLUMNS = ["split", "source", "sample_id", "task", "question", "think", "failure", "true_boxes", "pred_boxes"]
COLUMNS += ["iou", "score", "correct", "well_formed", "n_tokens"]

Row = tuple[Outcome, str]
"""A held-out question's outcome and the thought before its answer."""


class Rows(list[Row]):
    """The rows of a split; its boxes are matched once, whichever metrics are asked for."""

    @cached_property
    def matches(self) -> Matches:
        """Predicted and true boxes, matched."""
        return match_split([found.true for found, _ in self], [found.predicted for found, _ in self])


def read_rows(run: Path, phase: str) -> dict[str, Rows]:
    """Split -> its rows, in the order they were asked. Raises `StudyError` where the evaluation is missing."""
    file = run / f"eval-{phase}.parquet"
    if not file.is_file():
        raise StudyError(f"{file}: is missing, though eval.json names that evaluation; remove {run} to run it again")
    rows: dict[str, Rows] = {}
    for row in read_samples(file, COLUMNS):
        rows.setdefault(row["split"] or "", Rows()).append((outcome_of_row(row), row["think"] or ""))
    return rows


def number(metric: str, rows: Rows) -> Number:
    """A metric of one split. Raises `StudyError` for an unknown one."""
    if metric not in HELD_OUT:
        raise StudyError(f'no metric "{metric}" of held-out answers: {nearest(metric, HELD_OUT)}')
    return HELD_OUT[metric](rows)


def _of_rec(name: str) -> Callable[[Rows], Number]:
    def build(rows: Rows) -> Number:
        statistic = rec([found for found, _ in rows])
        return lambda counts_N: statistic(counts_N).get(name)

    return build


def _of_matches(measure: Callable[[Matches, np.ndarray], tuple[float, float] | None], place: int) -> Any:
    """One of two numbers of the matched boxes: of `Matches.mean_ap`, which is slow, or of `Matches.greedy`."""

    def build(rows: Rows) -> Number:
        matches = rows.matches
        return lambda counts_N: None if (found := measure(matches, counts_N)) is None else found[place]

    return build


def _share(top: Callable[[Row], float], bottom: Callable[[Row], float] = lambda _: 1.0) -> Callable[..., Number]:
    """A ratio of sums over questions."""

    def build(rows: Rows) -> Number:
        tops_N, bottoms_N = np.array([top(row) for row in rows]), np.array([bottom(row) for row in rows])
        return lambda counts_N: float(tops_N @ counts_N / total) if (total := float(bottoms_N @ counts_N)) else None

    return build


def _answer_map(row: Row, lenient: bool) -> float:
    outcome = row[0]
    return 0.0 if outcome.failure else mean_ap(outcome.true, outcome.predicted, lenient=lenient)


def _absent(row: Row) -> float:
    """Predicted boxes whose label is none of the truth's."""
    labels = {fold_label(item.label) for item in row[0].true}
    return float(sum(fold_label(item.label) not in labels for item in row[0].predicted))


HELD_OUT: dict[str, Callable[[Rows], Number]] = {
    "mean_iou": _of_rec("mean_iou"),
    "acc@0.5": _of_rec("acc@0.5"),
    "mAP": _of_matches(Matches.mean_ap, 0),
    "AP50": _of_matches(Matches.mean_ap, 1),
    "GP": _of_matches(Matches.greedy, 0),
    "GR": _of_matches(Matches.greedy, 1),
    "answer_map": _share(lambda row: _answer_map(row, lenient=False)),
    "answer_map_lenient": _share(lambda row: _answer_map(row, lenient=True)),
    "pred_per_true": _share(lambda row: len(row[0].predicted), lambda row: len(row[0].true)),
    "absent_per_answer": _share(_absent),
    "accuracy": _share(lambda row: float(bool(row[0].correct))),
    "well_formed": _share(lambda row: float(row[0].well_formed)),
    "calls": _share(lambda row: row[0].n_calls),
    "mean_length": _share(lambda row: row[0].n_tokens),
    "lists_first": _share(lambda row: float(lists_first(row[1]))),
    "lists_right": _share(lambda row: float(lists_right(row[1], row[0].true))),
}
"""Metric -> how it is made of a split's rows. `answer_map` is the mean over answers of the strict mAP (a class that is
not there counts), `answer_map_lenient` of the reference's (it is free); `pred_per_true` is predicted over true boxes;
`lists_first` the share of thoughts that name kinds of objects or say none, `lists_right` of those that name the right
ones."""


def log_number(metric: str, run: Path, step: int) -> float | None:
    """A number of a run's log up to a step; None where the log has none.

    `log:NAME` is the mean of the last `LAST` lines, `log:warned` 1 where the diagnostics warned that the reward is
    exploited, `log:warning_step` the step of the first such warning, `log:lists_first_correlation` whether answers that
    list what is there first are the better ones of their group (`thoughts.thought_correlation`).
    """
    name = metric.removeprefix("log:")
    if name == "lists_first_correlation":
        return thought_correlation(run)
    metrics = [row for row in read_metrics(run) if row["step"] <= step]
    if name in ("warned", "warning_step"):
        first = warning_step(metrics)
        return float(first is not None) if name == "warned" else first
    found = [float(row[name]) for row in metrics[-LAST:] if isinstance(row.get(name), int | float)]
    return sum(found) / len(found) if found else None


def warning_step(metrics: Sequence[Mapping[str, Any]]) -> float | None:
    """The first step at which the diagnostics warned that the policy may be exploiting the reward."""
    for row in metrics:
        if any(re.search(r"exploiting the reward", str(text)) for text in row.get("warnings") or ()):
            return float(row["step"])
    return None
