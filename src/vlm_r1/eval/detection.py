"""Detection over a whole split: boxes matched question by question, and what is counted from the matches.

The answers of a language model carry no confidence, so every predicted box has score 1, as in VLM-R1, and boxes rank
in the order of the questions and, within one, in the order written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vlm_r1.boxes import pairwise_iou
from vlm_r1.records import LabelledBox
from vlm_r1.rewards.average_precision import THRESHOLDS, average_precision, match
from vlm_r1.rewards.common import fold_label

Boxes = Sequence[LabelledBox]

SUPPRESS_IOU = 0.5
"""OVDEval's threshold for two boxes to be about the same object."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassMatches:
    """One label over `N` questions: true boxes `(N,)`, predictions looked at `(N,)`, and which of these `D`
    predictions, question by question, found a true box at each of the ten IoU thresholds `(10, D)`.
    """

    n_true_N: np.ndarray
    n_seen_N: np.ndarray
    hits_TD: np.ndarray

    def of(self, questions: np.ndarray) -> np.ndarray:
        """The hits of the predictions of these questions, in their order; a question may come several times."""
        lengths = self.n_seen_N[questions]
        starts = (np.cumsum(self.n_seen_N) - self.n_seen_N)[questions]
        place = np.arange(lengths.sum()) + np.repeat(starts - (np.cumsum(lengths) - lengths), lengths)
        return self.hits_TD[:, place]


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
            average_precision(found.of(questions), n_true)
            for found in self.classes
            if (n_true := int(found.n_true_N @ counts_N))
        ]
        if not per_class:
            return None
        ap_T = np.mean(per_class, axis=0)
        return float(ap_T.mean()), float(ap_T[0])

    def greedy(self, counts_N: np.ndarray) -> tuple[float, float] | None:
        """Greedy precision and recall (GP, GR) at IoU 0.5, where question `i` occurs `counts_N[i]` times.

        Within an image and a label each prediction, in the order written, takes the free true box it overlaps most,
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
    of_label: dict[str, list[tuple[int, np.ndarray]]] = {}
    n = len(true)
    for question, (wanted, found) in enumerate(zip(true, predicted, strict=True)):
        iou_NM = pairwise_iou([item.box for item in found], [item.box for item in wanted])
        columns, rows = _by_label(wanted), _by_label(found)
        for label in {*columns, *rows}:
            iou = iou_NM[np.ix_(rows.get(label, []), columns.get(label, []))]
            of_label.setdefault(label, []).append((question, iou))
    by_class = [_class_matches(of_label[label], n) for label in sorted(of_label)]
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


def _by_label(boxes: Boxes) -> dict[str, list[int]]:
    places: dict[str, list[int]] = {}
    for place, item in enumerate(boxes):
        places.setdefault(fold_label(item.label), []).append(place)
    return places


def _class_matches(found: Sequence[tuple[int, np.ndarray]], n: int) -> ClassMatches:
    """The matches of one label; of each question that has any, the IoU `(N, M)` of its predictions and true boxes."""
    n_true_N, n_seen_N = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
    hits = [np.zeros((len(THRESHOLDS), 0), dtype=bool)]
    for question, iou_NM in found:
        n_true_N[question] = iou_NM.shape[1]
        hits.append(np.array(match(iou_NM.tolist(), iou_NM.shape[1]), dtype=bool))
        n_seen_N[question] = hits[-1].shape[1]
    return ClassMatches(n_true_N=n_true_N, n_seen_N=n_seen_N, hits_TD=np.concatenate(hits, axis=1))


def _taken(found: ClassMatches) -> np.ndarray:
    """True boxes found at IoU 0.5, `(N,)`."""
    owner_D = np.repeat(np.arange(len(found.n_seen_N)), found.n_seen_N)
    return np.bincount(owner_D, weights=found.hits_TD[0], minlength=len(found.n_seen_N)).astype(np.int64)
