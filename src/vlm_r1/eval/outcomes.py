"""What one held-out question came to: the unit that every suite measures and every interval resamples."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vlm_r1.prompts.templates import TASKS, task_of
from vlm_r1.records import Answer, LabelledBox, Sample
from vlm_r1.rewards.accuracy import accuracy_for
from vlm_r1.rewards.common import fold_label
from vlm_r1.rewards.detection import match_boxes
from vlm_r1.runtime.runlog import boxes_from_json

CORRECT_IOU = 0.5
"""From this IoU on a box is correct (Acc@0.5)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One question and its greedy answer, measured.

    `kind` names the kind of answer (`prompts.kinds.KINDS`). `iou` is set where one box is asked for. `score` is
    the plain accuracy of the answer in [0, 1] (`rewards.accuracy`), `correct` whether it counts as right; both are
    None where the sample holds no truth to compare with. Boxes are in pixels of the original image.

    Example: `Outcome(kind="box", iou=0.75, score=0.75, correct=True).correct`.
    """

    kind: str
    sample_id: str = ""
    question: str = ""
    source: str = ""
    iou: float | None = None
    score: float | None = None
    correct: bool | None = None
    true: tuple[LabelledBox, ...] = ()
    predicted: tuple[LabelledBox, ...] = ()
    failure: str | None = None
    well_formed: bool = False
    n_tokens: int = 0
    n_calls: int = 0


def outcome(sample: Sample, answer: Answer) -> Outcome:
    """Measure an answer by the reward that is the accuracy of its task.

    One box: correct from IoU 0.5 on, of several answered boxes the first counts; a failure has IoU 0. Detection:
    correct where every true box is found with its label and nothing else is answered. Everything else: correct where
    the reward is full.
    """
    kind = task_of(sample).kind
    score = accuracy_for(sample, None)(sample, answer).total
    predicted = answer.value if isinstance(answer.value, tuple) else ()
    if score is None:
        correct = None
    elif kind.correct_from is None:
        correct = answer.failure is None and _all_found(sample.truth.boxes or (), predicted)
    else:
        correct = score >= kind.correct_from
    return Outcome(
        kind=kind.name,
        sample_id=sample.id,
        question=sample.question,
        source=sample.source,
        iou=score if kind.suite == "rec" else None,
        score=score,
        correct=correct,
        true=sample.truth.boxes or (),
        predicted=predicted,
        failure=answer.failure.kind if answer.failure else None,
        well_formed=answer.well_formed,
        n_tokens=answer.n_tokens,
        n_calls=len(answer.calls),
    )


def outcome_of_row(row: Mapping[str, Any]) -> Outcome:
    """The outcome that a row of an evaluation's table (`runtime.runlog.EVAL_COLUMNS`) holds."""
    task = TASKS.get(row.get("task") or "")
    iou = row.get("iou")
    return Outcome(
        kind=task.kind.name if task is not None else "box" if iou is not None else "text",
        sample_id=row.get("sample_id") or "",
        question=row.get("question") or "",
        source=row.get("source") or "",
        iou=iou,
        score=row.get("score"),
        correct=row.get("correct"),
        true=tuple(boxes_from_json(row.get("true_boxes"))),
        predicted=tuple(boxes_from_json(row.get("pred_boxes"))),
        failure=row.get("failure"),
        well_formed=bool(row.get("well_formed")),
        n_tokens=row.get("n_tokens") or 0,
        n_calls=len(json.loads(row.get("calls") or "[]")),
    )


def _all_found(true: tuple[LabelledBox, ...], predicted: tuple[LabelledBox, ...]) -> bool:
    """Whether the two lists match one to one with equal labels at IoU 0.5."""
    labels = {fold_label(item.label) for item in true}
    if len(true) != len(predicted):
        return False
    found = 0
    for label in labels:
        ours = tuple(item for item in true if fold_label(item.label) == label)
        theirs = tuple(item for item in predicted if fold_label(item.label) == label)
        found += len(match_boxes(ours, theirs, CORRECT_IOU))
    return found == len(true)
