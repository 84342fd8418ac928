"""How many answers a second are read and scored on one core.

    python benchmarks/rewards.py [--repeats 5] [--out docs/results/rewards.json]

Each repetition reads the texts (`read_answer`) and scores them through a rubric, as training does: 8,192 REC answers
with `iou` and `format`, 1,000 OVD answers of 20 boxes with `od_length`. Beside it, on 200 of the same OVD answers, what
the reference does per answer for its mAP: `json.loads`, then a COCO object, `loadRes` and `COCOeval` of pycocotools.
The reference's own module is not run: it cannot be imported with any release of transformers that this project
supports. Rates are per second of processor time, so that other programs on the machine do not count; wall time is
kept beside it. Run it alone for the wall times to mean something.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import io
import json
import os
import platform
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from vlm_r1.boxes import BoxMap
from vlm_r1.config import RewardConfig
from vlm_r1.prompts.parse import read_answer
from vlm_r1.records import LabelledBox, Sample, Truth
from vlm_r1.rewards.rubric import build_rubric

N_REC, N_OVD, N_BOXES, N_PYCOCOTOOLS = 8192, 1000, 20, 200
CLASSES = ("person", "dog", "traffic light", "cup", "bicycle")
THOUGHT = "The image shows several things on a table; the one that is meant stands to the left of the others. " * 4

Case = tuple[Sample, str]


def random_box(rng: random.Random) -> tuple[float, float, float, float]:
    """A box of whole pixels in a 1000 x 1000 image."""
    x, y = rng.randrange(800), rng.randrange(800)
    return (float(x), float(y), float(x + rng.randrange(10, 200)), float(y + rng.randrange(10, 200)))


def near(rng: random.Random, box: tuple[float, ...]) -> list[int]:
    """The box with every side moved by up to 8 pixels: the answer of a fair model."""
    return [max(0, round(side + rng.uniform(-8, 8))) for side in box]


def rec_cases(rng: random.Random) -> list[Case]:
    """REC answers: seven in ten clean JSON, the others fenced, in running text, in broken JSON, or not closed."""
    cases = []
    for i in range(N_REC):
        box = random_box(rng)
        sample = Sample(id=str(i), question="the cup", truth=Truth(boxes=(LabelledBox(box=box),)))
        numbers = near(rng, box)
        clean = json.dumps({"bbox_2d": numbers, "label": "the cup"})
        forms = [clean] * 7 + [f"```json\n[{clean}]\n```", f"It is at {numbers}.", clean[:-1].replace('"', "'")]
        end = "" if rng.random() < 0.03 else "</answer>"
        cases.append((sample, f"<think>{THOUGHT}</think>\n<answer>{rng.choice(forms)}{end}"))
    return cases


def ovd_cases(rng: random.Random) -> list[Case]:
    """OVD answers of 20 boxes: most near a true one, some of another class or place, fenced as the paper asks."""
    cases = []
    for i in range(N_OVD):
        true = [LabelledBox(box=random_box(rng), label=rng.choice(CLASSES)) for _ in range(N_BOXES)]
        items = []
        for item in true:
            box = near(rng, item.box) if rng.random() < 0.8 else [int(side) for side in random_box(rng)]
            items.append({"bbox_2d": box, "label": item.label if rng.random() < 0.9 else rng.choice(CLASSES)})
        sample = Sample(id=str(i), question="all", truth=Truth(boxes=tuple(true)), task="ovd")
        cases.append((sample, f"<think>{THOUGHT}</think>\n<answer>```json\n{json.dumps(items)}\n```</answer>"))
    return cases


def read_and_score(cases: list[Case], parts: dict[str, float]) -> float:
    """Mean reward: read every text and score it, as a training step does."""
    rubric = build_rubric(RewardConfig(parts=parts))
    answers = [read_answer(text, sample, BoxMap()) for sample, text in cases]
    totals = [score.total or 0.0 for score in rubric.score_all([sample for sample, _ in cases], answers)]
    return sum(totals) / len(totals)


def xywh(box: Any) -> list[float]:
    """COCO's form of a box."""
    return [box[0], box[1], box[2] - box[0], box[3] - box[1]]


def score_with_pycocotools(cases: list[Case]) -> float:
    """Mean mAP with one COCO object and one COCOeval per answer."""
    total = 0.0
    for sample, text in cases:
        predicted = json.loads(text[text.index("```json") + 7 : text.rindex("```")])
        coco = COCO()
        rows = [
            {"id": k, "image_id": 0, "category_id": CLASSES.index(item.label), "bbox": xywh(item.box), "iscrowd": 0}
            | {"area": xywh(item.box)[2] * xywh(item.box)[3]}
            for k, item in enumerate(sample.truth.boxes or (), start=1)
        ]
        coco.dataset = {
            "images": [{"id": 0, "width": 2048, "height": 2048}],
            "categories": [{"id": i, "name": name} for i, name in enumerate(CLASSES)],
            "annotations": rows,
        }
        with contextlib.redirect_stdout(io.StringIO()):
            coco.createIndex()
            found = coco.loadRes(
                [
                    {
                        "image_id": 0,
                        "category_id": CLASSES.index(p["label"]),
                        "bbox": xywh(p["bbox_2d"]),
                        "score": 1.0,
                    }
                    for p in predicted
                ]
            )
            evaluation = COCOeval(coco, found, "bbox")
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        total += float(evaluation.stats[0])
    return total / len(cases)


def measure(work: Callable[[], float], n: int, repeats: int) -> dict[str, Any]:
    """Time `work`, which handles `n` answers, after one warm-up; every repetition is kept."""
    work()
    runs = []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        mean = work()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        runs.append({"wall_s": wall, "cpu_s": cpu, "answers_per_cpu_s": n / cpu, "mean_reward": mean})
    rates = sorted(run["answers_per_cpu_s"] for run in runs)
    return {"answers": n, "median_answers_per_cpu_s": rates[len(rates) // 2], "repetitions": runs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("docs/results/rewards.json"))
    arguments = parser.parse_args()
    rng = random.Random(0)
    rec, ovd = rec_cases(rng), ovd_cases(rng)
    results = {
        "rec": measure(lambda: read_and_score(rec, {"iou": 1.0, "format": 1.0}), len(rec), arguments.repeats),
        "ovd": measure(lambda: read_and_score(ovd, {"od_length": 1.0}), len(ovd), arguments.repeats),
        "ovd_pycocotools": measure(
            lambda: score_with_pycocotools(ovd[:N_PYCOCOTOOLS]), N_PYCOCOTOOLS, arguments.repeats
        ),
    }
    rates = {name: result["median_answers_per_cpu_s"] for name, result in results.items()}
    packages = ("numpy", "pycocotools", "json-repair")
    report = {
        "command": " ".join(["python", "benchmarks/rewards.py", *sys.argv[1:]]),
        "machine": {"system": platform.system(), "processor": platform.machine(), "cores": os.cpu_count()},
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in packages},
        "headline": {
            "rec_answers_per_s": round(rates["rec"]),
            "ovd_answers_per_s": round(rates["ovd"]),
            "ovd_ratio_vs_pycocotools": round(rates["ovd"] / rates["ovd_pycocotools"], 1),
        },
        "results": results,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report["headline"], indent=2))


if __name__ == "__main__":
    main()
