import contextlib
import io
import json

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from vlm_r1.errors import ConfigError
from vlm_r1.records import LabelledBox
from vlm_r1.rewards.detection import count, mean_ap, od_ap50, od_length, od_map, weighted_detection

CAT, CAT2, DOG = ((0, 0, 10, 10), "cat"), ((50, 50, 60, 60), "cat"), ((100, 0, 120, 20), "dog")


def written(*items):
    return json.dumps([{"bbox_2d": list(box), "label": label} for box, label in items])


def test_equal_boxes_are_1_whatever_case_and_space_of_the_labels(case):
    text = written((CAT[0], " Cat "), (DOG[0], "DOG"))
    for reward in (od_map, od_ap50, od_length, weighted_detection):
        assert reward(*case("ovd", text, boxes=[CAT, DOG])).total == pytest.approx(1)


@pytest.mark.parametrize(
    ("answer", "true", "value"),
    [
        ("None", [], 1),
        ("[]", [], 1),
        ("null", [], 1),
        ("None", [CAT], 0),
        (written(CAT), [], 0),
        # The reference gives 1 for any unfenced text when nothing is there.
        ("junk", [], 0),
        ("nothing here", [], 0),
        ("[[5, 5, 5, 5]]", [], 0),
        ("", [], 0),
        ("junk", [CAT], 0),
    ],
)
def test_nothing_there(case, answer, true, value):
    for reward in (od_map, od_ap50, od_length, weighted_detection):
        assert reward(*case("ovd", answer, boxes=true)).total == value


def test_absent_classes_cost_and_are_free_under_the_lenient_protocol(case):
    extra = [((i, 0, i + 5, 5), f"class {i}") for i in range(30)]
    pair = case("ovd", written(CAT, *extra), boxes=[CAT])
    assert od_map(*pair).total == pytest.approx(1 / 31)
    assert od_map(*pair, lenient=True).total == pytest.approx(1)
    assert od_ap50(*pair).total == pytest.approx(1 / 31)
    assert od_length(*pair).total == pytest.approx(1 / 31 / 31)
    assert od_length(*pair, lenient=True).total == pytest.approx(1 / 31)


def test_duplicates_cost_under_od_length_alone(case):
    pair = case("ovd", written(*[CAT] * 31), boxes=[CAT])
    assert od_map(*pair).total == pytest.approx(1)
    assert od_length(*pair).total == pytest.approx(1 / 31)


def test_false_positives_written_first_lower_precision(case):
    wrong = [((200 + i, 0, 210 + i, 10), "cat") for i in range(9)]
    assert od_map(*case("ovd", written(*wrong, CAT), boxes=[CAT])).total == pytest.approx(1 / 10)


def test_malformed_boxes_are_no_predictions(case):
    bad = '{"bbox_2d": [9, 9, 1, 1], "label": "cat"}'
    pair = case("ovd", written(CAT)[:-1] + f", {bad}, {bad}]", boxes=[CAT])
    assert pair[1].dropped == 2
    assert od_length(*pair).total == pytest.approx(1)


def test_a_missing_label_is_a_wrong_class_not_a_crash(case):
    pair = case("ovd", '[{"bbox_2d": [0, 0, 10, 10]}]', boxes=[CAT])
    assert od_map(*pair).total == 0
    # Position 0, label 0, complete: 0.3.
    assert weighted_detection(*pair).total == pytest.approx(0.3)


def test_ap_by_hand(case):
    # One of two cats: recall 0.5 covers the points 0 to 0.50, 51 of 101, at precision 1.
    assert od_map(*case("ovd", written(CAT), boxes=[CAT, CAT2])).total == pytest.approx(51 / 101)
    # IoU 0.72: right at .5, .55, .6, .65 and .7.
    pair = case("ovd", written(((0, 0, 10, 7.2), "cat")), boxes=[CAT])
    assert od_map(*pair).total == pytest.approx(0.5)
    assert od_ap50(*pair).total == pytest.approx(1)
    # The cat right, the dog missed.
    assert od_map(*case("ovd", written(CAT), boxes=[CAT, DOG])).total == pytest.approx(0.5)


def test_weighted_detection_by_hand(case):
    # One true cat found at IoU .8, one missed, one false box: .7 * .8/2 + .3 * (1 - (1/2 + 1/2) / 2).
    pair = case("ovd", written(((0, 0, 10, 8), "cat"), ((200, 0, 210, 10), "cat")), boxes=[CAT, CAT2])
    score = weighted_detection(*pair)
    assert score.total == pytest.approx(0.7 * 0.4 + 0.3 * 0.5)
    assert score.parts["position"] == pytest.approx(0.4)
    assert score.parts["label"] == pytest.approx(0.5)
    assert score.parts["completeness"] == pytest.approx(0.5)
    assert weighted_detection(*pair, position=1, label=1, completeness=2).total == pytest.approx((0.4 + 0.5 + 1) / 4)
    with pytest.raises(ConfigError, match="weights 0, 0, 0"):
        weighted_detection(*pair, position=0, label=0, completeness=0)


@pytest.mark.parametrize(
    ("task", "answer", "truth", "value"),
    [
        ("count", "3", {"number": 3.0}, 1),
        ("count", "3.0 cats", {"number": 3.0}, 1),
        ("count", "4", {"number": 3.0}, 0),
        ("count", "3 or 4", {"number": 3.0}, 0),
        ("count", "2", {"boxes": [CAT, DOG]}, 1),
        ("ovd", written(CAT, CAT2), {"boxes": [CAT, DOG]}, 1),
        ("ovd", "None", {"boxes": []}, 1),
        ("count", "2", {"text": "a"}, None),
    ],
)
def test_counts_are_right_or_wrong(case, task, answer, truth, value):
    assert count(*case(task, answer, **truth)).total == value


def test_without_true_boxes_detection_is_not_scorable(case):
    for reward in (od_map, od_ap50, od_length, weighted_detection):
        assert reward(*case("ovd", written(CAT), text="a")).total is None


def coco_ap(true, predicted, thresholds):
    """Per-class AP by pycocotools: class -> AP, None for a class that the truth lacks."""
    labels = sorted({item.label for item in (*true, *predicted)})

    def xywh(box):
        return [box[0], box[1], box[2] - box[0], box[3] - box[1]]

    coco = COCO()
    coco.dataset = {
        "images": [{"id": 1, "width": 2000, "height": 2000}],
        "categories": [{"id": i, "name": label} for i, label in enumerate(labels)],
        "annotations": [
            {
                "id": k,
                "image_id": 1,
                "category_id": labels.index(item.label),
                "bbox": xywh(item.box),
                "area": xywh(item.box)[2] * xywh(item.box)[3],
                "iscrowd": 0,
            }
            for k, item in enumerate(true, start=1)
        ],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
        rows = [
            {"image_id": 1, "category_id": labels.index(item.label), "bbox": xywh(item.box), "score": 1.0}
            for item in predicted
        ]
        evaluation = COCOeval(coco, coco.loadRes(rows), "bbox")
        evaluation.params.iouThrs = np.asarray(thresholds)
        evaluation.evaluate()
        evaluation.accumulate()
    precision_TRK = evaluation.eval["precision"][:, :, :, 0, -1]
    means = precision_TRK.mean(axis=(0, 1))
    return {label: None if means[k] < 0 else float(means[k]) for k, label in enumerate(labels)}


def random_scene(rng):
    """Up to 25 true and 30 predicted boxes of a few classes: hits, near misses, duplicates, strangers."""

    def box():
        corner, size = rng.uniform(0, 900, 2), rng.uniform(5, 300, 2)
        return np.concatenate([corner, corner + size])

    true = [(box(), "abc"[rng.integers(3)]) for _ in range(rng.integers(1, 26))]
    predicted = []
    for _ in range(rng.integers(1, 31)):
        if rng.random() < 0.7:
            source, label = true[rng.integers(len(true))]
            near = source + rng.normal(0, 1, 4) * rng.choice([0, 2, 10, 30])
            predicted.append((near, label if rng.random() < 0.8 else "abcd"[rng.integers(4)]))
        else:
            predicted.append((box(), "abcd"[rng.integers(4)]))

    def records(items):
        rounded = [(np.round(b) if rng.random() < 0.5 else b, label) for b, label in items]
        return tuple(
            LabelledBox(box=tuple(map(float, b)), label=label) for b, label in rounded if b[2] > b[0] and b[3] > b[1]
        )

    return records(true), records(predicted)


def compare_with_pycocotools(n_scenes, seed):
    rng = np.random.default_rng(seed)
    coco_thresholds = np.linspace(0.5, 0.95, 10)
    compared = 0
    while compared < n_scenes:
        true, predicted = random_scene(rng)
        if not true or not predicted:
            continue
        compared += 1
        aps = coco_ap(true, predicted, coco_thresholds)
        known = [ap for ap in aps.values() if ap is not None]
        assert mean_ap(true, predicted, lenient=True) == pytest.approx(np.mean(known), abs=1e-9)
        assert mean_ap(true, predicted) == pytest.approx(sum(known) / len(aps), abs=1e-9)
        at_50 = [ap for ap in coco_ap(true, predicted, [0.5]).values() if ap is not None]
        assert mean_ap(true, predicted, thresholds=(0.5,), lenient=True) == pytest.approx(np.mean(at_50), abs=1e-9)


def test_map_equals_pycocotools():
    compare_with_pycocotools(200, seed=1)


@pytest.mark.slow
def test_map_equals_pycocotools_on_1000_scenes():
    compare_with_pycocotools(1000, seed=0)


def test_only_the_first_100_of_a_class_are_looked_at():
    far = [LabelledBox(box=(500.0 + i, 0.0, 510.0 + i, 10.0), label="a") for i in range(100)]
    true = (LabelledBox(box=(0.0, 0.0, 10.0, 10.0), label="a"),)
    predicted = (*far, *true)
    assert coco_ap(true, predicted, [0.5]) == {"a": 0.0}
    assert mean_ap(true, predicted) == 0.0
