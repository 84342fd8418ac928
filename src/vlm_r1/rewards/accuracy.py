"""The plain accuracy of an answer, by kind of answer: what "correct" means where no reward is named."""

from __future__ import annotations

from collections.abc import Callable

from vlm_r1.errors import ConfigError, nearest
from vlm_r1.prompts.templates import task_of
from vlm_r1.records import Sample, Score
from vlm_r1.rewards.detection import count, od_ap50, od_length, od_map, weighted_detection
from vlm_r1.rewards.grounding import giou, iou, iou_threshold, point_in_box
from vlm_r1.rewards.mathematics import math
from vlm_r1.rewards.text import choice, edit_similarity, exact_text, number, tiou, yes_no

ACCURACY: dict[str, Callable[..., Score]] = {
    "iou": iou,
    "giou": giou,
    "iou_threshold": iou_threshold,
    "point_in_box": point_in_box,
    "od_map": od_map,
    "od_ap50": od_ap50,
    "od_length": od_length,
    "weighted_detection": weighted_detection,
    "count": count,
    "choice": choice,
    "yes_no": yes_no,
    "number": number,
    "math": math,
    "exact_text": exact_text,
    "edit_similarity": edit_similarity,
    "tiou": tiou,
}
"""Rewards that judge what an answer says."""


def accuracy_for(sample: Sample, name: str | None) -> Callable[..., Score]:
    """The accuracy reward of a name, or of the sample's kind of answer where the name is None.

    Raises `ConfigError` for an unknown name.
    """
    if name is None:
        return ACCURACY[task_of(sample).kind.accuracy]
    if name not in ACCURACY:
        raise ConfigError(f'rewards.options.length_cosine.correct: unknown reward "{name}": {nearest(name, ACCURACY)}')
    return ACCURACY[name]
