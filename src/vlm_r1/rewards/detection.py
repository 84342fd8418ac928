"""Rewards for lists of labelled boxes (detection) and for counting."""

from __future__ import annotations

from collections.abc import Sequence

from vlm_r1.boxes import pairwise_iou
from vlm_r1.errors import ConfigError
from vlm_r1.records import Answer, LabelledBox, Sample, Score
from vlm_r1.rewards.average_precision import THRESHOLDS, class_ap
from vlm_r1.rewards.common import boxes_of, failed, fold_label, not_scorable, scored

Boxes = tuple[LabelledBox, ...]


def mean_ap(true: Boxes, predicted: Boxes, *, thresholds: Sequence[float] = THRESHOLDS, lenient: bool = False) -> float:
    """COCO mAP of one image, in [0, 1], all scores 1 and in the order written.

    The mean runs over the classes of the truth *and* of the prediction; a class that is not in the truth has AP 0, so
    predicting absent classes costs. With `lenient` the mean runs over the classes of the truth alone, as pycocotools
    and the reference do: absent classes are free. Nothing true and nothing predicted is 1; one of them alone is 0.
    """
    if not true or not predicted:
        return 1.0 if not true and not predicted else 0.0
    true_labels = [fold_label(item.label) for item in true]
    labels = [fold_label(item.label) for item in predicted]
    classes = set(true_labels) if lenient else {*true_labels, *labels}
    iou_NM = pairwise_iou([item.box for item in predicted], [item.box for item in true]).tolist()
    total = 0.0
    for name in sorted(set(true_labels).intersection(labels)):
        columns = [j for j, label in enumerate(true_labels) if label == name]
        rows = [[iou_NM[i][j] for j in columns] for i, label in enumerate(labels) if label == name]
        total += class_ap(rows, len(columns), thresholds)
    return total / len(classes)


def _lists(name: str, sample: Sample, answer: Answer) -> tuple[Boxes, Boxes] | Score:
    """True and predicted boxes, or the score where one of them is missing."""
    if sample.truth.boxes is None:
        return not_scorable(name, "the sample has no true boxes")
    predicted = boxes_of(answer)
    return failed(name, answer) if predicted is None else (sample.truth.boxes, predicted)


def od_map(sample: Sample, answer: Answer, *, lenient: bool = False) -> Score:
    """COCO mAP (IoU .5 to .95) of one answer, in [0, 1]; see `mean_ap` for absent classes and `lenient`.

    "None" for an image with nothing to find scores 1; an answer that cannot be read scores 0. Duplicates after all
    true boxes are found cost nothing (that is COCO's rule): `od_length` is the reward that charges for them.
    """
    lists = _lists("od_map", sample, answer)
    return lists if isinstance(lists, Score) else scored("od_map", mean_ap(*lists, lenient=lenient))


def od_ap50(sample: Sample, answer: Answer, *, lenient: bool = False) -> Score:
    """COCO AP at IoU .5 of one answer, in [0, 1]; otherwise as `od_map`."""
    lists = _lists("od_ap50", sample, answer)
    if isinstance(lists, Score):
        return lists
    return scored("od_ap50", mean_ap(*lists, thresholds=(0.5,), lenient=lenient))


def od_length(sample: Sample, answer: Answer, *, lenient: bool = False) -> Score:
    """mAP x min(1, n_true / n_pred), in [0, 1]: the paper's answer to predicting everything (VLM-R1, eq. of odLength).

    `n_pred` counts all predicted boxes, whatever their class.
    """
    lists = _lists("od_length", sample, answer)
    if isinstance(lists, Score):
        return lists
    true, predicted = lists
    share = min(1.0, len(true) / len(predicted)) if predicted else 1.0
    return scored("od_length", mean_ap(true, predicted, lenient=lenient) * share)


def weighted_detection(
    sample: Sample,
    answer: Answer,
    *,
    position: float = 0.7,
    label: float = 0.0,
    completeness: float = 0.3,
    threshold: float = 0.5,
) -> Score:
    """Weighted mean of three shares, in [0, 1]; the options are the weights.

    Boxes are matched one to one, best IoU first, from `threshold` up and whatever their labels. Position: sum of the
    IoU of matches with the right label, over n_true. Label: number of such matches over n_true. Completeness:
    1 - (missed / n_true + unmatched / n_pred) / 2. Nothing true and nothing predicted is 1; one of them alone is 0.
    Source: the reference's `weighted_sum` with its default weights.
    """
    weights = position + label + completeness
    if min(position, label, completeness) < 0 or weights <= 0:
        raise ConfigError(
            f"rewards.options.weighted_detection: weights {position}, {label}, {completeness} must be 0 or more, "
            "and not all 0"
        )
    lists = _lists("weighted_detection", sample, answer)
    if isinstance(lists, Score):
        return lists
    true, predicted = lists
    if not true or not predicted:
        return scored("weighted_detection", 1.0 if not true and not predicted else 0.0)
    pairs = match_boxes(true, predicted, threshold)
    right = [value for i, j, value in pairs if fold_label(predicted[i].label) == fold_label(true[j].label)]
    missed, unmatched = 1 - len(pairs) / len(true), 1 - len(pairs) / len(predicted)
    shares = {
        "position": sum(right) / len(true),
        "label": len(right) / len(true),
        "completeness": 1 - (missed + unmatched) / 2,
    }
    total = position * shares["position"] + label * shares["label"] + completeness * shares["completeness"]
    value = min(1.0, total / weights)
    return Score(total=value, parts={"weighted_detection": value, **shares})


def match_boxes(true: Boxes, predicted: Boxes, threshold: float) -> list[tuple[int, int, float]]:
    """Greedy one-to-one matching by IoU, best first, labels ignored: `(predicted index, true index, IoU)`."""
    iou_NM = pairwise_iou([item.box for item in predicted], [item.box for item in true]).tolist()
    near = [(value, i, j) for i, row in enumerate(iou_NM) for j, value in enumerate(row) if value >= threshold]
    pairs: list[tuple[int, int, float]] = []
    used_i: set[int] = set()
    used_j: set[int] = set()
    for value, i, j in sorted(near, key=lambda item: (-item[0], item[1], item[2])):
        if i not in used_i and j not in used_j:
            used_i.add(i)
            used_j.add(j)
            pairs.append((i, j, value))
    return pairs


def count(sample: Sample, answer: Answer) -> Score:
    """1 where the answered number (or the number of answered boxes) is the true one, else 0: no partial credit.

    The true number is `truth.number`, else the number of true boxes.
    """
    if sample.truth.number is not None:
        true = sample.truth.number
    elif sample.truth.boxes is not None:
        true = float(len(sample.truth.boxes))
    else:
        return not_scorable("count", "the sample has no true number")
    if isinstance(answer.value, tuple):
        return scored("count", float(len(answer.value) == true))
    if isinstance(answer.value, (int, float)):
        return scored("count", float(answer.value == true))
    return failed("count", answer)
