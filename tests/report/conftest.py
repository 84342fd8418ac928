"""A run folder as training leaves it, with real images and made-up answers."""

import io
import json
import random

import pytest
from PIL import Image, ImageDraw

from vlm_r1.records import LabelledBox
from vlm_r1.runtime.runlog import RunLog, boxes_to_json

COLORS = {"red": "#d62828", "blue": "#1d5fd0", "yellow": "#f2c230", "green": "#2a9d4f"}
CONFIG = "method: grpo\nmodel:\n  path: tiny\nrun:\n  seed: {seed}\nrl:\n  group_size: 4\n"


def scene(rng, side=96):
    """An image with three shapes; returns PNG bytes and [(name, box)]."""
    image = Image.effect_noise((side, side), 24).convert("RGB")
    pen, shapes = ImageDraw.Draw(image), []
    for place, color in enumerate(rng.sample(sorted(COLORS), 3)):
        wide, high = rng.randint(14, 28), rng.randint(14, 28)
        x, y = 2 + place * 31 + rng.randint(0, 30 - wide if wide < 30 else 0), rng.randint(2, side - high - 2)
        kind = rng.choice(["circle", "square"])
        draw = pen.ellipse if kind == "circle" else pen.rectangle
        draw((x, y, x + wide, y + high), fill=COLORS[color])
        shapes.append((f"{color} {kind}", (x, y, x + wide, y + high)))
    sink = io.BytesIO()
    image.save(sink, "PNG")
    return sink.getvalue(), shapes


def near(rng, box, off):
    return tuple(v + rng.uniform(-off, off) for v in box)


def answer_row(rng, name, box, off, iou):
    failed = rng.random() < off / 80
    guess = [] if failed else [LabelledBox(box=near(rng, box, off))]
    think = f"I look for the {name} and draw a box around it."
    answer = json.dumps([round(v) for v in guess[0].box]) if guess else None
    return {
        "sample_id": f"{name}-{rng.random():.6f}",
        "task": "rec",
        "question": f"the {name}",
        "completion": f"<think>{think}</think><answer>{answer}</answer>",
        "think": think,
        "answer": answer,
        "failure": "no_box" if failed else None,
        "true_boxes": boxes_to_json([LabelledBox(box=box)]),
        "pred_boxes": boxes_to_json(guess),
        "image_width": 96,
        "image_height": 96,
        "iou": 0.0 if failed else iou,
    }


def evaluation_rows(seed, off, gain):
    """60 questions for each of two splits; the same questions and images for every `off` and `gain`."""
    rows = []
    for split, ease in (("in_domain", 0.3), ("out_of_domain", 0.15)):
        scenes, answers = random.Random(f"{split}"), random.Random(f"{split}{seed}{gain}")
        for i in range(60):
            image, shapes = scene(scenes)
            name, box = shapes[0]
            iou = min(1.0, max(0.0, ease + gain * (split == "in_domain") + answers.uniform(-0.15, 0.15)))
            row = answer_row(answers, name, box, off, iou)
            row |= {"split": split, "sample_id": f"{split}-{i}", "correct": row["iou"] >= 0.5}
            rows.append(row | {"image": image if i < 24 else None})
    return rows


def metric_means(rows):
    means = {}
    for split in dict.fromkeys(row["split"] for row in rows):
        of = [row for row in rows if row["split"] == split]
        means[split] = {
            "n": len(of),
            "mean_iou": sum(row["iou"] for row in of) / len(of),
            "acc@0.5": sum(row["correct"] for row in of) / len(of),
        }
    return means


def make_rollouts(rng, quality):
    rows = []
    for group in range(4):
        image, shapes = scene(rng)
        name, box = shapes[0]
        for g in range(4):
            iou = min(1.0, max(0.0, rng.gauss(quality, 0.2)))
            row = answer_row(rng, name, box, 14 * (1 - iou), iou)
            score = row.pop("iou")
            well = 0.0 if row["failure"] else 1.0
            row |= {"group": group, "source": "scenes", "finish": "stop", "n_tokens": rng.randint(20, 40)}
            row |= {"reward": score + well, "parts": json.dumps({"iou": score, "format": well})}
            row |= {"advantage": rng.uniform(-1.5, 1.5), "image": image if g == 0 else None}
            rows.append(row)
    return rows


def make_run(folder, seed=0, steps=60, gain=0.25):
    """A whole run folder: configuration, metrics, rollouts of every 20th step, evaluations before and after."""
    rng, log = random.Random(seed), RunLog(folder)
    (folder / "config.yaml").write_text(CONFIG.format(seed=seed))
    log.environment()
    for step in range(1, steps + 1):
        grown = 0.3 + gain * step / steps
        iou, well = grown + rng.gauss(0, 0.05), min(1.0, 0.8 + 0.2 * step / steps)
        values = {"reward": iou + well, "reward_std": 0.2, "rewards/iou/mean": iou, "rewards/format/mean": well}
        values |= {"completions/mean_length": rng.gauss(32, 2), "frac_reward_zero_std": 0.25, "lr": 5e-5, "loss": 0.01}
        values |= {"grad_norm": rng.gauss(1, 0.2), "time/rollout_s": 1.0, "time/reward_s": 0.25, "time/update_s": 0.75}
        values |= {"time/step_s": 2.0, "kl": 0.0}
        if step % 20 == 0:
            values |= {"eval/in_domain/acc@0.5": grown, "eval/in_domain/mean_iou": grown}
            log.rollouts(step, make_rollouts(rng, grown))
        log.metrics(step, values)
    for phase, off, rise in (("before", 12.0, 0.0), ("after", 5.0, gain)):
        rows = evaluation_rows(seed, off, rise)
        log.evaluation(phase, metric_means(rows), rows)
    return folder


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "demo")


@pytest.fixture(scope="session")
def write_run():
    return make_run


@pytest.fixture(scope="session")
def rollout_rows():
    return make_rollouts
