"""Rewards for one box or point: how well the first predicted box fits the true one (original pixels)."""

from __future__ import annotations

from collections.abc import Callable

from vlm_r1 import boxes
from vlm_r1.boxes import Box
from vlm_r1.records import Answer, Sample, Score
from vlm_r1.rewards.common import boxes_of, failed, not_scorable, scored


def _best(name: str, sample: Sample, answer: Answer, fit: Callable[[Box, Box], float]) -> Score:
    """The best `fit` of the first predicted box with a true box.

    A truth of `()` ("nothing there") is met by an answer that says so (1) and by nothing else (0).
    """
    if sample.truth.boxes is None:
        return not_scorable(name, "the sample has no true box")
    predicted = boxes_of(answer)
    if predicted is None:
        return failed(name, answer)
    if not sample.truth.boxes:
        return scored(name, 0.0 if predicted else 1.0)
    if not predicted:
        return scored(name, 0.0, "the answer says that nothing is there")
    return scored(name, max(fit(predicted[0].box, true.box) for true in sample.truth.boxes))


def iou(sample: Sample, answer: Answer) -> Score:
    """Intersection over union of the first predicted box with the true box, in [0, 1].

    Of several true boxes the best fit counts. 0 for an answer without a readable box. Source: VLM-R1's REC accuracy
    reward, without its integer-only pattern and its +1/-1 pixel terms.
    """
    return _best("iou", sample, answer, boxes.iou)


def giou(sample: Sample, answer: Answer, *, scaled: bool = False) -> Score:
    """Generalised IoU (Rezatofighi et al. 2019) of the first predicted box, in [-1, 1]: IoU minus the empty share
    of the smallest box around both.

    An answer without a readable box scores 0, which beats a far box; as a training reward use `scaled: true`, which
    gives (GIoU + 1) / 2 in [0, 1] so that any readable box beats none.
    """
    return _best("giou", sample, answer, lambda a, b: (boxes.giou(a, b) + 1) / 2 if scaled else boxes.giou(a, b))


def iou_threshold(sample: Sample, answer: Answer, *, threshold: float = 0.5) -> Score:
    """1 where the first predicted box has IoU of at least `threshold` with the true box, else 0 (Acc@IoU)."""
    return _best("iou_threshold", sample, answer, lambda a, b: float(boxes.iou(a, b) >= threshold))


def _click_inside(click: Box, true: Box) -> float:
    x, y = (click[0] + click[2]) / 2, (click[1] + click[3]) / 2
    return 1.0 if true[0] <= x <= true[2] and true[1] <= y <= true[3] else 0.0


def point_in_box(sample: Sample, answer: Answer) -> Score:
    """1 where the answered point, or the centre of the answered box, lies in a true box (edges included), else 0.

    Source: the click accuracy of GUI grounding (ScreenSpot).
    """
    return _best("point_in_box", sample, answer, _click_inside)
