"""Answers for other tool kits are those of `vlm-r1 predict`, in the space that a task wants; lmms-eval runs."""

import importlib.metadata
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlm_r1.config import DataSource
from vlm_r1.data.source import load_source
from vlm_r1.errors import ConfigError
from vlm_r1.eval.elsewhere import Answerer
from vlm_r1.eval.predict import ask

TASKS = Path(__file__).parent / "lmms_tasks"
ASKED = "Boxes are [x1, y1, x2, y2]. Please give the box of the region this sentence describes: "


@pytest.fixture(scope="module")
def samples():
    source = {"scenes": {"split": "in_domain", "n": 6, "questions": {"attribute": 1.0}}}
    return list(load_source(DataSource.model_validate(source)))


@pytest.fixture(scope="module")
def predicted(samples, tmp_path_factory):
    """What `vlm-r1 predict` answers: boxes in pixels, None where there is none."""
    file = tmp_path_factory.mktemp("images") / "image.png"
    found = []
    for sample in samples:
        sample.images[0].open().save(file)
        answer = ask("tiny", file, sample.question)[1]
        found.append(answer.value[0].box if answer.value else None)
    return found


def questions(samples, before=""):
    return [([s.images[0].open()], before + s.question) for s in samples]


@pytest.mark.parametrize(
    ("boxes", "width", "digits"), [("pixels", 96, None), ("relative_1", 1, 4), ("relative_1000", 1000, None)]
)
def test_boxes_come_in_the_space_that_is_asked_for(samples, predicted, boxes, width, digits):
    answers = Answerer("tiny", task="rec", boxes=boxes, after="describes:", batch_size=4)
    told = answers.answer(questions(samples, ASKED), 64)
    assert sum(box is not None for box in predicted) > 3
    for text, box in zip(told, predicted, strict=True):
        if box is not None:
            assert json.loads(text) == pytest.approx(
                [side * width / 96 for side in box], abs=0.51 if not digits else 1e-4
            )


def test_other_answers_are_the_inside_of_the_tags(samples):
    [text] = Answerer("tiny").answer(questions(samples[:1]), 64)
    assert json.loads(text) and "<" not in text
    [cut] = Answerer("tiny").answer(questions(samples[:1]), 3)
    assert cut.startswith("<think>")  # there is no answer: the text as it is


def test_the_texts_of_a_batch_do_not_depend_on_it(samples):
    asked = questions(samples)
    assert Answerer("tiny", batch_size=6).answer(asked, 64) == Answerer("tiny").answer(asked, 64)
    sampled = Answerer("tiny", batch_size=6).answer(asked, 64, temperature=1.0)
    assert sampled == Answerer("tiny", batch_size=4).answer(asked, 64, temperature=1.0)
    assert sampled != Answerer("tiny", batch_size=6).answer(asked, 64)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "rce"}, 'task=rce: unknown task "rce": did you mean "rec"'),
        ({"boxes": "relative"}, "boxes=relative: no such space: did you mean"),
        ({"boxes": "pixels"}, "boxes=pixels: task=text has no boxes"),
        ({"template": "r2"}, 'prompt.template: "r2" is neither'),
    ],
)
def test_a_wrong_argument_is_refused_before_the_model_is_loaded(arguments, message):
    with pytest.raises(ConfigError, match=message):
        Answerer("no/such/folder", **arguments)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("lmms_eval") is None, reason="lmms-eval is not installed")
def test_lmms_eval_finds_the_model_and_measures_what_we_do(samples, predicted, tmp_path, root):
    if not importlib.metadata.entry_points(group="lmms_eval.models").select(name="vlm_r1"):
        pytest.fail("the entry point is missing: install the package again")
    shutil.copytree(TASKS, tmp_path / "tasks")
    task = tmp_path / "tasks" / "scenes.yaml"
    task.write_text(task.read_text().replace("scenes.parquet", str(tmp_path / "scenes.parquet")))
    rows, ious = [], []
    for sample, box in zip(samples, predicted, strict=True):
        png = io.BytesIO()
        sample.images[0].open().save(png, "PNG")
        true = sample.truth.boxes[0].box
        rows.append({"png": png.getvalue(), "question": sample.question, "box": [side / 96 for side in true]})
        ious.append(0.0 if box is None else iou(box, true))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "scenes.parquet")
    arguments = "pretrained=tiny,task=rec,boxes=relative_1,after=describes:"
    command = [sys.executable, "-m", "lmms_eval", "--model", "vlm_r1", "--model_args", arguments, "--tasks"]
    command += ["vlm_r1_scenes", "--include_path", str(tmp_path / "tasks"), "--batch_size", "4"]
    command += ["--output_path", str(tmp_path / "out")]
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "PYTHONPATH": str(root / "src")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500)
    [file] = (tmp_path / "out").rglob("*results.json")
    found = json.loads(file.read_text())["results"]["vlm_r1_scenes"]
    assert found["iou,none"] == pytest.approx(sum(ious) / len(ious), abs=1e-3), done.stderr[-2000:]


def iou(a, b) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return shared / (sum(areas) - shared)
