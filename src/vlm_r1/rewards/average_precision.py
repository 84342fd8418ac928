"""COCO average precision of one answer, fast enough to be a reward.

pycocotools builds data set objects for every call (about 5 ms an answer), so its arithmetic is written out here for
one picture whose predictions all have score 1; the tests hold it equal to pycocotools to 1e-9 on random scenes.
Evaluation over a data set uses the library itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

THRESHOLDS = tuple(float(t) for t in np.linspace(0.5, 0.95, 10))
"""COCO's IoU thresholds, 0.5 to 0.95."""

MAX_PER_CLASS = 100
"""COCO looks at the first 100 predictions of a class."""


def class_ap(iou_NM: Sequence[Sequence[float]], n_true: int, thresholds: Sequence[float] = THRESHOLDS) -> float:
    """AP of one class in one picture, in [0, 1], averaged over the IoU thresholds.

    `iou_NM`: IoU of each of N predictions, in the order written (all scores are equal), with each of M true boxes.
    Source: `COCOeval.evaluateImg` and `accumulate` of pycocotools (greedy matching, 101 recall points).
    """
    if n_true == 0 or not len(iou_NM):
        return 0.0
    lowest = min(thresholds)
    near = [[(j, v) for j, v in enumerate(row) if v >= lowest] for row in iou_NM[:MAX_PER_CLASS]]
    known: dict[tuple[bool, ...], float] = {}
    total = 0.0
    for threshold in thresholds:
        hits = _match(near, n_true, min(threshold, 1 - 1e-10))
        # Neighbouring thresholds mostly give the same hits.
        if hits not in known:
            known[hits] = _interpolated(hits, n_true)
        total += known[hits]
    return total / len(thresholds)


def _match(near: Sequence[Sequence[tuple[int, float]]], n_true: int, threshold: float) -> tuple[bool, ...]:
    """Which predictions find a true box: each takes the best one still free (of equals, the last)."""
    taken = [False] * n_true
    hits = []
    for candidates in near:
        best, best_index = threshold, -1
        for index, value in candidates:
            if value >= best and not taken[index]:
                best, best_index = value, index
        if best_index >= 0:
            taken[best_index] = True
        hits.append(best_index >= 0)
    return tuple(hits)


def _interpolated(hits: Sequence[bool], n_true: int) -> float:
    """Mean over the 101 recall points of the best precision at that recall or a higher one."""
    precisions = []
    found = 0
    for rank, hit in enumerate(hits, start=1):
        if hit:
            found += 1
            precisions.append(found / rank)
    weights = _recall_points(n_true)
    total, best = 0.0, 0.0
    for k in range(len(precisions) - 1, -1, -1):
        best = max(best, precisions[k])
        total += weights[k] * best
    return total / 101


@lru_cache(maxsize=4096)
def _recall_points(n_true: int) -> tuple[int, ...]:
    """How many of the 101 recall points are first reached by the k-th hit of `n_true` (recall 0 by the first)."""
    first = np.searchsorted(np.arange(1, n_true + 1) / n_true, np.linspace(0.0, 1.0, 101), side="left")
    return tuple(int(n) for n in np.bincount(np.minimum(first, n_true - 1), minlength=n_true))
