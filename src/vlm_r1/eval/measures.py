"""What is measured of one answer, and the summary of a split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from vlm_r1.boxes import iou
from vlm_r1.records import Answer, Sample
from vlm_r1.rewards.accuracy import accuracy_for


def outcome(sample: Sample, answer: Answer) -> dict[str, float | None]:
    """`iou` of the first box with the nearest true one (None where the truth is no box), and `correct`.

    A box is correct from IoU 0.5 on; other tasks by the reward that measures them. A failure has IoU 0.
    """
    if sample.truth.boxes and sample.task not in ("ovd", "list"):
        boxes = answer.value if isinstance(answer.value, tuple) else ()
        value = max((iou(boxes[0].box, true.box) for true in sample.truth.boxes), default=0.0) if boxes else 0.0
        return {"iou": value, "correct": float(value >= 0.5)}
    score = accuracy_for(sample, None)(sample, answer).total
    return {"iou": None, "correct": None if score is None else float(score)}


def summary(outcomes: Sequence[tuple[Sample, Answer, dict[str, float | None]]]) -> dict[str, float]:
    """`n`, `mean_iou` and `acc@0.5` where boxes are asked for, `accuracy` elsewhere, and shares of form and failure."""
    n = len(outcomes)
    values: dict[str, float] = {"n": float(n)}
    ious = [o["iou"] for _, _, o in outcomes if o["iou"] is not None]
    others = [o["correct"] for _, _, o in outcomes if o["iou"] is None and o["correct"] is not None]
    if ious:
        values["mean_iou"] = sum(ious) / len(ious)
        values["acc@0.5"] = sum(v >= 0.5 for v in ious) / len(ious)
    if others:
        values["accuracy"] = sum(others) / len(others)
    values["well_formed"] = sum(a.well_formed for _, a, _ in outcomes) / max(1, n)
    values["mean_length"] = sum(a.n_tokens for _, a, _ in outcomes) / max(1, n)
    failures = Counter(a.failure.kind for _, a, _ in outcomes if a.failure is not None)
    return values | {f"failures/{kind}": count / n for kind, count in sorted(failures.items())}
