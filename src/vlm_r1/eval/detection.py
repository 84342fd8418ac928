"""Detection over a whole split: COCO's matching by pycocotools, and what is counted from it.

The answers of a language model carry no confidence, so every predicted box has score 1, as in VLM-R1, and boxes rank
in the order of the questions and, within one, in the order written. pycocotools matches predicted to true boxes; its
accumulation over a split takes seconds, which a thousand resamples would pay each time, so that sum is written out
here over multiplicities of the questions. The tests hold it equal to the library.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from vlm_r1.boxes import pairwise_iou
from vlm_r1.records import LabelledBox
from vlm_r1.rewards.common import fold_label

Boxes = Sequence[LabelledBox]

MAX_PER_CLASS = 100
"""COCO looks at the first 100 predictions of a class in a picture."""

SUPPRESS_IOU = 0.5
"""OVDEval's threshold for two boxes to be about the same object."""

_RECALLS = np.linspace(0.0, 1.0, 101)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassMatches:
    """One label over `N` questions: true boxes `(N,)`, predictions looked at `(N,)`, and which of these `D`
    predictions, question by question, found a true box at each of the ten IoU thresholds `(10, D)`.
    """

    n_true_N: np.ndarray
    n_seen_N: np.ndarray
    hits_TD: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class Matches:
    """Predicted and true boxes of `N` questions, matched label by label; `taken_N` are the true boxes found at IoU 0.5.

    Example: `match_split([[cat]], [[cat]]).mean_ap(np.ones(1, int))` is `(1.0, 1.0)`.
    """

    classes: tuple[ClassMatches, ...]
    n_true_N: np.ndarray
    n_pred_N: np.ndarray
    taken_N: np.ndarray

    def mean_ap(self, counts_N: np.ndarray) -> tuple[float, float] | None:
        """COCO's mAP (IoU .5 to .95) and AP50, where question `i` occurs `counts_N[i]` times.

        A label without any true box in the split is left out, as COCO does; None where all are.
        """
        questions = np.repeat(np.arange(len(counts_N)), counts_N)
        per_class = [
            _average_precision(found, questions, n_true)
            for found in self.classes
            if (n_true := int(found.n_true_N @ counts_N))
        ]
        if not per_class:
            return None
        ap_T = np.mean(per_class, axis=0)
        return float(ap_T.mean()), float(ap_T[0])

    def greedy(self, counts_N: np.ndarray) -> tuple[float, float] | None:
        """Greedy precision and recall (GP, GR) at IoU 0.5, where question `i` occurs `counts_N[i]` times.

        Within a picture and a label each prediction, in the order written, takes the free true box it overlaps most,
        if their IoU is at least 0.5. GP is the share of all predictions that took one, GR the share of all true boxes
        that were taken, both over the whole split; predictions with a label that is true nowhere count against GP.
        Without predictions GP is 0; None where the split has no true box. VLM-R1 reports both numbers without stating
        the matching; this is COCO's, which is the greedy one.
        """
        n_true, n_pred = int(self.n_true_N @ counts_N), int(self.n_pred_N @ counts_N)
        if not n_true:
            return None
        taken = int(self.taken_N @ counts_N)
        return (taken / n_pred if n_pred else 0.0), taken / n_true


def match_split(true: Sequence[Boxes], predicted: Sequence[Boxes]) -> Matches:
    """Match the predictions of each question (original pixels) with its true boxes; labels compare as rewards do."""
    labels = sorted({fold_label(item.label) for boxes in (*true, *predicted) for item in boxes})
    ids = {label: number for number, label in enumerate(labels, start=1)}
    n = len(true)
    by_class: list[ClassMatches] = []
    if labels:
        # pycocotools reports its progress on standard output.
        with contextlib.redirect_stdout(io.StringIO()):
            run = COCOeval(_data_set(true, ids, n), _data_set(predicted, ids, n), "bbox")
            run.params.areaRng, run.params.areaRngLbl = [[0, float("inf")]], ["all"]
            run.params.maxDets = [MAX_PER_CLASS]
            run.evaluate()
        by_class = [_class_matches(run.evalImgs[k * n : (k + 1) * n]) for k in range(len(labels))]
    return Matches(
        classes=tuple(by_class),
        n_true_N=np.array([len(boxes) for boxes in true], dtype=np.int64),
        n_pred_N=np.array([len(boxes) for boxes in predicted], dtype=np.int64),
        taken_N=sum((_taken(found) for found in by_class), start=np.zeros(n, dtype=np.int64)),
    )


def suppress(true: Boxes, predicted: Boxes, threshold: float = SUPPRESS_IOU) -> list[LabelledBox]:
    """The predictions that OVDEval's class-agnostic suppression leaves, in order.

    Around each true box, of all predictions with an IoU above `threshold` and whatever their labels, only the best
    scored remains, here the first written since all scores are equal; a box kept for one object is not removed for
    another. So a model that names one object by several labels keeps one of them, and no AP for the others. Boxes
    away from every true one are left as they are. Source: Yao et al. 2023 (arXiv 2308.13177), in the form of the
    published evaluation script, which leaves the order of equal scores open.
    """
    near_NM = pairwise_iou([item.box for item in predicted], [item.box for item in true]) > threshold
    kept: set[int] = set()
    rivals: set[int] = set()
    for column in near_NM.T:
        around = np.flatnonzero(column).tolist()
        kept.update(around[:1])
        rivals.update(around[1:])
    return [item for i, item in enumerate(predicted) if i in kept or i not in rivals]


def _data_set(boxes_by_question: Sequence[Boxes], ids: dict[str, int], n: int) -> COCO:
    annotations: list[dict[str, Any]] = []
    for image_id, boxes in enumerate(boxes_by_question, start=1):
        for item in boxes:
            x1, y1, x2, y2 = item.box
            wide, high = x2 - x1, y2 - y1
            annotations.append(
                {
                    # pycocotools takes an id of 0 for "not matched".
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": ids[fold_label(item.label)],
                    "bbox": [x1, y1, wide, high],
                    "area": wide * high,
                    "iscrowd": 0,
                    "score": 1.0,
                }
            )
    data = COCO()
    data.dataset = {
        "images": [{"id": i} for i in range(1, n + 1)],
        "categories": [{"id": i, "name": label} for label, i in ids.items()],
        "annotations": annotations,
    }
    data.createIndex()
    return data


def _class_matches(evaluated: Sequence[dict[str, Any] | None]) -> ClassMatches:
    return ClassMatches(
        n_true_N=np.array([len(e["gtIds"]) if e else 0 for e in evaluated], dtype=np.int64),
        n_seen_N=np.array([len(e["dtIds"]) if e else 0 for e in evaluated], dtype=np.int64),
        hits_TD=np.concatenate(
            [np.zeros((10, 0), bool), *(np.asarray(e["dtMatches"]) > 0 for e in evaluated if e)], axis=1
        ),
    )


def _taken(found: ClassMatches) -> np.ndarray:
    """True boxes found at IoU 0.5, `(N,)`."""
    owner_D = np.repeat(np.arange(len(found.n_seen_N)), found.n_seen_N)
    return np.bincount(owner_D, weights=found.hits_TD[0], minlength=len(found.n_seen_N)).astype(np.int64)


def _average_precision(found: ClassMatches, questions: np.ndarray, n_true: int) -> np.ndarray:
    """AP of one label at each threshold, `(10,)`: mean over 101 recalls of the best precision from there on."""
    lengths = found.n_seen_N[questions]
    total = int(lengths.sum())
    if not total:
        return np.zeros(10)
    starts = (np.cumsum(found.n_seen_N) - found.n_seen_N)[questions]
    place = np.arange(total) + np.repeat(starts - (np.cumsum(lengths) - lengths), lengths)
    found_TD = np.cumsum(found.hits_TD[:, place], axis=1)
    precision_TD = found_TD / np.arange(1, total + 1)
    best_TD = np.maximum.accumulate(precision_TD[:, ::-1], axis=1)[:, ::-1]
    # The rank at which each recall is first reached; whole numbers, so all thresholds go through one search.
    needed_R = np.searchsorted(np.arange(n_true + 1) / n_true, _RECALLS, side="left")
    rows_T1 = np.arange(10)[:, None]
    ahead = (found_TD + rows_T1 * (n_true + 1)).ravel()
    rank_TR = np.searchsorted(ahead, needed_R + rows_T1 * (n_true + 1), side="left") - rows_T1 * total
    padded = np.concatenate([best_TD, np.zeros((10, 1))], axis=1)
    return np.take_along_axis(padded, np.minimum(rank_TR, total), axis=1).mean(axis=1)
