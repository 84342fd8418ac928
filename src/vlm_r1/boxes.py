"""Box formats, intersection over union and matching: the only copy of box arithmetic in the project.

A `Box` is `(x1, y1, x2, y2)` in pixels of the original image unless a name says otherwise; `x2, y2` are the
far edges, so the width is `x2 - x1`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Box = tuple[float, float, float, float]


def area(box: Box) -> float:
    """Area of one box in square pixels; 0 for a reversed or empty one."""
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def intersection(a: Box, b: Box) -> float:
    """Area that two boxes share, in square pixels."""
    return area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes, in [0, 1]; 0 where both are empty.

    >>> iou((0, 0, 10, 10), (5, 0, 15, 10))
    0.3333333333333333
    """
    shared = intersection(a, b)
    union = area(a) + area(b) - shared
    return min(1.0, shared / union) if union > 0 else 0.0


def giou(a: Box, b: Box) -> float:
    """Generalised IoU in [-1, 1] (Rezatofighi et al. 2019): IoU minus the empty share of the enclosing box."""
    hull = area((min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])))
    if hull <= 0:
        return 0.0
    union = area(a) + area(b) - intersection(a, b)
    return iou(a, b) - (hull - union) / hull


def pairwise_iou(a: Sequence[Box], b: Sequence[Box]) -> np.ndarray:
    """IoU of every box of `a` with every box of `b`: float64 array of shape `(len(a), len(b))`."""
    a_N4 = np.asarray(a, dtype=np.float64).reshape(-1, 4)
    b_M4 = np.asarray(b, dtype=np.float64).reshape(-1, 4)
    low = np.maximum(a_N4[:, None, :2], b_M4[None, :, :2])
    high = np.minimum(a_N4[:, None, 2:], b_M4[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(-1)
    size_a = np.clip(a_N4[:, 2:] - a_N4[:, :2], 0, None).prod(-1)
    size_b = np.clip(b_M4[:, 2:] - b_M4[:, :2], 0, None).prod(-1)
    union = size_a[:, None] + size_b[None] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def xywh_to_xyxy(box: Sequence[float]) -> Box:
    """COCO's `(x, y, width, height)` to corner form."""
    x, y, w, h = box
    return (float(x), float(y), float(x + w), float(y + h))


def is_proper(box: Sequence[float]) -> bool:
    """True where all four sides are finite and the box has positive width and height."""
    return bool(np.isfinite(box).all()) and box[2] > box[0] and box[3] > box[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxMap:
    """How boxes as the model writes them become pixels of the original image: one factor per axis.

    `loc` says that they are written as PaliGemma's location tokens, y before x (`prompts.parse_boxes.loc_tokens`).

    `digits` is how many decimals a written number has.

    Example: a model that writes 0-1000 about a 640x480 image has `BoxMap(x=0.64, y=0.48)`.
    """

    x: float = 1.0
    y: float = 1.0
    loc: bool = False
    digits: int = 0

    def to_pixels(self, box: Box) -> Box:
        """Model coordinates to original pixels."""
        return (box[0] * self.x, box[1] * self.y, box[2] * self.x, box[3] * self.y)

    def to_model(self, box: Box) -> Box:
        """Original pixels to model coordinates."""
        return (box[0] / self.x, box[1] / self.y, box[2] / self.x, box[3] / self.y)
