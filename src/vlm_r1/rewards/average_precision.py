"""COCO's average precision where all scores are 1: the one that rewards, evaluation and reports share.

pycocotools builds data set objects for every call (about 5 ms an answer) and accumulates a split in seconds, which each
step and a thousand resamples would pay; so its arithmetic is written out here. The tests hold matching and precision
equal to pycocotools to 1e-9 on random scenes, one image and whole splits.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

THRESHOLDS = tuple(float(t) for t in np.linspace(0.5, 0.95, 10))
"""COCO's IoU thresholds, 0.5 to 0.95."""

MAX_PER_CLASS = 100
"""COCO looks at the first 100 predictions of a class."""


_RECALLS = np.linspace(0.0, 1.0, 101)


def class_ap(iou_NM: Sequence[Sequence[float]], n_true: int, thresholds: Sequence[float] = THRESHOLDS) -> float:
    """AP of one class in one image, in [0, 1], averaged over the IoU thresholds.

    `iou_NM`: IoU of each of N predictions, in the order written (all scores are equal), with each of M true boxes.
    """
    if n_true == 0 or not len(iou_NM):
        return 0.0
    return sum(_known(hits, n_true) for hits in match(iou_NM, n_true, thresholds)) / len(thresholds)


@lru_cache(maxsize=65536)
def _known(hits: tuple[bool, ...], n_true: int) -> float:
    """AP at one threshold; answers have few boxes, so the same hits come again and again."""
    return float(average_precision(np.array([hits], dtype=bool), n_true)[0])


def match(
    iou_NM: Sequence[Sequence[float]], n_true: int, thresholds: Sequence[float] = THRESHOLDS
) -> list[tuple[bool, ...]]:
    """Which of the first 100 predictions of a class find a true box, for each threshold.

    Each, in the order written, takes the best true box that is free (of equals, the last). Source:
    `COCOeval.evaluateImg` of pycocotools.
    """
    lowest = min(thresholds)
    near = [[(j, v) for j, v in enumerate(row) if v >= lowest] for row in iou_NM[:MAX_PER_CLASS]]
    return [_hits(near, n_true, min(threshold, 1 - 1e-10)) for threshold in thresholds]


def _hits(near: Sequence[Sequence[tuple[int, float]]], n_true: int, threshold: float) -> tuple[bool, ...]:
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


def average_precision(hits_TD: np.ndarray, n_true: int) -> np.ndarray:
    """AP of one class at each threshold, `(T,)`: mean over 101 recalls of the best precision from there on.

    `hits_TD` are its predictions in the order of their rank, `n_true` its true boxes. Source: `COCOeval.accumulate`.
    """
    n_thresholds, total = hits_TD.shape
    if not total:
        return np.zeros(n_thresholds)
    found_TD = np.cumsum(hits_TD, axis=1)
    precision_TD = found_TD / np.arange(1, total + 1)
    best_TD = np.maximum.accumulate(precision_TD[:, ::-1], axis=1)[:, ::-1]
    # The rank at which each recall is first reached; whole numbers, so all thresholds go through one search.
    needed_R = _needed(n_true)
    rows_T1 = np.arange(n_thresholds)[:, None]
    ahead = (found_TD + rows_T1 * (n_true + 1)).ravel()
    rank_TR = np.searchsorted(ahead, needed_R + rows_T1 * (n_true + 1), side="left") - rows_T1 * total
    padded = np.concatenate([best_TD, np.zeros((n_thresholds, 1))], axis=1)
    return np.take_along_axis(padded, np.minimum(rank_TR, total), axis=1).mean(axis=1)


@lru_cache(maxsize=4096)
def _needed(n_true: int) -> np.ndarray:
    """How many of `n_true` boxes must be found for each of the 101 recalls."""
    return np.searchsorted(np.arange(n_true + 1) / n_true, _RECALLS, side="left")
