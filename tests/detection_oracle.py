"""Random detection splits, and the slow, independent forms of what `eval.detection` computes."""

import contextlib
import io

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from vlm_r1.records import LabelledBox

LABELS = ("cat", "dog", "cup", "Car", "bus")


def box(x1, y1, x2, y2, label="cat"):
    return LabelledBox(box=(float(x1), float(y1), float(x2), float(y2)), label=label)


def random_split(seed, questions=12):
    """True and predicted boxes of some questions: near misses, wrong labels, duplicates, empty lists."""
    rng = np.random.default_rng(seed)

    def drawn(n):
        corners = rng.uniform(0, 60, (n, 2))
        sizes = rng.uniform(5, 30, (n, 2))
        picked = rng.integers(0, len(LABELS), n)
        return [box(*c, *(c + s), LABELS[k]) for c, s, k in zip(corners, sizes, picked, strict=True)]

    true, predicted = [], []
    for _ in range(questions):
        boxes = drawn(int(rng.integers(0, 5)))
        answered = []
        for item in boxes:
            for _ in range(int(rng.integers(0, 3))):
                label = item.label if rng.random() < 0.7 else LABELS[rng.integers(0, len(LABELS))]
                x1, y1, x2, y2 = np.asarray(item.box) + rng.normal(0, 2.5, 4)
                answered.append(box(x1, y1, max(x2, x1 + 1), max(y2, y1 + 1), label))
        answered += drawn(int(rng.integers(0, 3)))
        true.append(boxes)
        predicted.append([answered[i] for i in rng.permutation(len(answered))])
    return true, predicted


def library_map(true, predicted):
    """(mAP, AP50) by pycocotools as its users run it: `loadRes`, `evaluate`, `accumulate`, `summarize`."""
    ids = {label: i + 1 for i, label in enumerate(LABELS)}

    def entries(lists):
        return [
            {
                "image_id": i,
                "category_id": ids[b.label],
                "bbox": [b.box[0], b.box[1], b.box[2] - b.box[0], b.box[3] - b.box[1]],
            }
            for i, boxes in enumerate(lists)
            for b in boxes
        ]

    data = COCO()
    annotations = [
        e | {"id": i + 1, "iscrowd": 0, "area": e["bbox"][2] * e["bbox"][3]} for i, e in enumerate(entries(true))
    ]
    data.dataset = {
        "info": {},
        "images": [{"id": i, "width": 100, "height": 100} for i in range(len(true))],
        "categories": [{"id": i, "name": label} for label, i in ids.items()],
        "annotations": annotations,
    }
    with contextlib.redirect_stdout(io.StringIO()):
        data.createIndex()
        run = COCOeval(data, data.loadRes([e | {"score": 1.0} for e in entries(predicted)]), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return float(run.stats[0]), float(run.stats[1])


def overlap(a, b):
    wide = min(a[2], b[2]) - max(a[0], b[0])
    high = min(a[3], b[3]) - max(a[1], b[1])
    if wide <= 0 or high <= 0:
        return 0.0
    shared = wide * high
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def slow_nms(true, predicted):
    """OVDEval's rule one sentence at a time: a prediction goes if it is near some true box where an earlier
    prediction is near too, unless it is itself the earliest near some true box."""
    left = []
    for i, item in enumerate(predicted):
        beaten = first = False
        for target in true:
            if overlap(item.box, target.box) > 0.5:
                if any(overlap(other.box, target.box) > 0.5 for other in predicted[:i]):
                    beaten = True
                else:
                    first = True
        if first or not beaten:
            left.append(item)
    return left


def slow_map(true, predicted):
    """COCO's mAP for equal scores, by the definition and with loops."""
    per_label = []
    for label in sorted({b.label for boxes in true for b in boxes}):
        n_true = sum(b.label == label for boxes in true for b in boxes)
        aps = []
        for step in range(10):
            threshold = 0.5 + 0.05 * step
            outcomes = []
            for targets, answers in zip(true, predicted, strict=True):
                free = [t for t in targets if t.label == label]
                for answer in [a for a in answers if a.label == label]:
                    fits = [(overlap(answer.box, t.box), t) for t in free]
                    best = max(fits, key=lambda fit: fit[0], default=(0.0, None))
                    if best[0] >= threshold:
                        free.remove(best[1])
                    outcomes.append(best[0] >= threshold)
            points = []
            for rank in range(1, len(outcomes) + 1):
                found = sum(outcomes[:rank])
                points.append((found / n_true, found / rank))
            total = 0.0
            for k in range(101):
                total += max((p for r, p in points if r >= k / 100 - 1e-12), default=0.0)
            aps.append(total / 101)
        per_label.append(sum(aps) / 10)
    return sum(per_label) / len(per_label)
