"""Small run folders with known boxes and scores, written by the writer that training uses."""

import io
import json

import pytest
from PIL import Image

from vlm_r1.records import LabelledBox
from vlm_r1.runtime.runlog import RunLog, boxes_to_json

WIDTH, HEIGHT = 200, 100
TRUE = (20.0, 30.0, 80.0, 70.0)
REWARDS = {0: (0.25, 1.0, 0.5, 0.75), 1: (0.5, 0.5, 0.5, 0.5), 2: (0.0, 0.0, 0.25, 0.0)}
"""Group -> rewards of its four answers, in every step."""
QUESTIONS = ("the red circle", "the blue square", "the green cross")
STEPS = (1, 2, 5, 6)
CONFIG = "method: grpo\nmodel: {{path: tiny}}\nrl: {{group_size: {size}}}\nrun: {{steps: 10, seed: 0, dir: {name}}}\n"


def png(colour="white", size=(WIDTH, HEIGHT)):
    sink = io.BytesIO()
    Image.new("RGB", size, colour).save(sink, "PNG")
    return sink.getvalue()


def row(question, sample_id, box, failure=None, **more):
    text = None if failure else json.dumps(box)
    return {
        "source": "scenes/attribute",
        "sample_id": sample_id,
        "task": "rec",
        "question": question,
        "completion": f"<think>I look.</think><answer>{text}</answer>",
        "think": f"I look for {question}.",
        "answer": text,
        "failure": failure,
        "n_tokens": 12,
        "true_boxes": boxes_to_json([LabelledBox(box=TRUE)]),
        "pred_boxes": boxes_to_json([] if failure else [LabelledBox(box=tuple(box))]),
        "image_width": WIDTH,
        "image_height": HEIGHT,
    } | more


def rollouts(step):
    """Three groups of four answers; each answer's box is shifted by its place. Group 3 has a parse failure."""
    rows = []
    for group, rewards in REWARDS.items():
        for place, reward in enumerate(rewards):
            failure = "no_answer" if (group, place) == (2, 3) else None
            box = [TRUE[0] + 10 * place, TRUE[1], TRUE[2] + 10 * place, TRUE[3]]
            more = {"group": group, "finish": "length" if failure else "stop", "reward": reward}
            more |= {"parts": json.dumps({"iou": reward, "format": 0.0 if failure else 1.0})}
            more |= {"advantage": reward - sum(rewards) / 4, "image": png() if place == 0 else None}
            rows.append(row(QUESTIONS[group], f"train-{group}", box, failure, **more))
    return rows


def evaluation(iou_of_first, kept=True):
    """Two held-out questions; the first has this IoU."""
    rows = []
    for place, iou in enumerate((iou_of_first, 0.5)):
        box = [TRUE[0], TRUE[1], TRUE[0] + iou * (TRUE[2] - TRUE[0]), TRUE[3]]
        more = {"split": "in_domain", "iou": iou, "score": iou, "correct": iou >= 0.5, "well_formed": True}
        more["image"] = png("#eeeeee") if kept and place == 0 else None
        rows.append(row(f"held out {place}", f"held-{place}", box, **more))
    mean = (iou_of_first + 0.5) / 2
    return {"in_domain": {"n": 2, "mean_iou": mean, "acc@0.5": sum(r["iou"] >= 0.5 for r in rows) / 2}}, rows


def metrics(step, reward):
    values = {"reward": reward, "rewards/iou/mean": reward / 2, "rewards/format/mean": 1.0, "reward_std": 0.25}
    values |= {"frac_reward_zero_std": 1 / 3, "parse/failed": 1 / 12, "kl": 0.01 * step, "loss": 0.1, "lr": 1e-4}
    values |= {"completions/mean_length": 12.0, "time/step_s": 2.0, "time/rollout_s": 1.0}
    return values | ({"warnings": ["the answers grow longer"]} if step == 5 else {})


def make(folder, slope=0.125, size=4, steps=6, finished=True, phases=("before", "step-2", "after")):
    """A run folder whose reward at step N is `slope * N`."""
    log = RunLog(folder)
    (folder / "config.yaml").write_text(CONFIG.format(size=size, name=folder.name))
    log.environment()
    for step in range(1, steps + 1):
        log.metrics(step, metrics(step, slope * step))
        if step in STEPS:
            log.rollouts(step, rollouts(step))
    for place, phase in enumerate(phases):
        log.evaluation(phase, *evaluation((0.25, 0.5, 1.0)[place]))
    if finished:
        (folder / "final").mkdir()
    return folder


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory):
    return make(tmp_path_factory.mktemp("runs") / "first")


@pytest.fixture(scope="session")
def second_dir(tmp_path_factory):
    return make(tmp_path_factory.mktemp("runs") / "second", slope=0.0625, size=8, phases=("before", "after"))


@pytest.fixture
def make_run():
    return make


@pytest.fixture
def make_row():
    return row
