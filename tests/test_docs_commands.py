"""Commands on the pages that need no model are run on small files; test_readme.py holds that all of them parse."""

import json
import os
import pickle
import re
import shlex

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pages import PAGES, ROOT, TOURS, blocks
from PIL import Image

from vlm_r1.cli import main
from vlm_r1.config import RewardConfig
from vlm_r1.config_file import load_config
from vlm_r1.data.convert import CONVERTERS
from vlm_r1.prompts.templates import TASKS, TEMPLATES
from vlm_r1.rewards.rubric import build_rubric

RUN = ("data", "score", "compare", "report", "runs")
"""Commands that are cheap enough to be run here."""

LINES = [
    (page.name, line.strip())
    for page in PAGES
    if page.name not in TOURS
    for block in blocks(page.name, "bash")
    for line in block.splitlines()
    if line.strip()
]
CHEAP = [(page, line) for page, line in LINES if re.match(rf"vlm-r1 ({'|'.join(RUN)}) ", line)]
ROW = '{"image": "0017.png", "problem": "the red circle", "solution": [120, 44, 310, 402], "task": "rec"}\n'


def call(line: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(shlex.split(line)[1:])
    return stopped.value.code or 0


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder that holds every file the pages name."""
    monkeypatch.chdir(tmp_path)
    images = tmp_path / "data" / "images"
    images.mkdir(parents=True)
    Image.new("RGB", (640, 480), "white").save(images / "0017.png")
    (tmp_path / "data" / "train.jsonl").write_text(ROW)
    annotations = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 100, "height": 100}],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [{"id": 7, "image_id": 1, "category_id": 1, "bbox": [10, 20, 30, 40], "iscrowd": 0}],
    }
    (tmp_path / "data" / "instances.json").write_text(json.dumps(annotations))
    refs = [{"ref_id": 3, "ann_id": 7, "split": "val", "sentences": [{"sent_id": 5, "sent": "the cat"}]}]
    (tmp_path / "data" / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    image = {"id": 1, "file_name": "a.jpg", "width": 100, "height": 100, "caption": "the cat"}
    mark = {"id": 7, "image_id": 1, "bbox": [10, 20, 30, 40], "caption_quality": 1}
    reviewed = {"images": [image], "annotations": [mark]}
    (tmp_path / "data" / "refcoco+_val_reviewed.json").write_text(json.dumps(reviewed))
    about = {"split": "val", "ori_category_id": "o365_1", "is_rewrite": False}
    pq.write_table(pa.Table.from_pylist([image | mark | about]), tmp_path / "data" / "ref-l4-val.parquet")
    (tmp_path / "answers.jsonl").write_text(blocks("rewards.md", "json")[0])
    (tmp_path / "my_rewards.py").write_text("\n\n".join(blocks("rewards.md", "python")))
    for name in ("base.json", "tuned.json"):
        (tmp_path / name).write_text('{"held": {"n": 4, "mean_iou": 0.25}}')
    for name in ("a", "b", "demo", "seed-0", "seed-1", "seed-2"):
        run = tmp_path / "runs" / name
        run.mkdir(parents=True)
        (run / "eval.json").write_text('{"before": {"held": {"n": 4}}, "after": {"held": {"n": 4, "mean_iou": 0.5}}}')
        (run / "metrics.jsonl").write_text('{"step": 1, "reward": 0.5}\n{"step": 2, "reward": 0.75}\n')
    return tmp_path


def test_the_pages_have_commands_of_every_cheap_kind():
    assert {line.split()[1] for _, line in CHEAP} == set(RUN)


@pytest.mark.parametrize(("page", "line"), CHEAP, ids=str)
def test_a_cheap_command_on_a_page_works(folder, capsys, page, line):
    assert call(line) == 0, capsys.readouterr().err
    for out in re.findall(r"--out (\S+)", line):
        assert (folder / out).stat().st_size > 0


@pytest.mark.parametrize(("page", "line"), [pair for pair in LINES if "recipes/" in pair[1]], ids=str)
def test_a_recipe_that_a_page_names_exists(page, line):
    for path in re.findall(r"recipes/\S+\.yaml", line):
        assert load_config(ROOT / path)


def test_the_scored_row_of_the_page_is_what_comes_out(folder):
    line = next(line for _, line in CHEAP if line.startswith("vlm-r1 score") and "scores.jsonl" in line)
    assert call(line) == 0
    _, shown = blocks("rewards.md", "json")
    assert json.loads((folder / "scores.jsonl").read_text()) == json.loads(shown)


def test_converted_rows_are_the_annotations(folder):
    for line in (line for _, line in CHEAP if " convert " in line):
        assert call(line) == 0
    [row] = [json.loads(line) for line in (folder / "data" / "coco.jsonl").read_text().splitlines()]
    assert row["solution"] == [{"bbox_2d": [10, 20, 40, 60], "label": "cat"}]
    assert sorted(row["categories"]) == ["cat", "dog"]
    [row] = [json.loads(line) for line in (folder / "data" / "refcoco.jsonl").read_text().splitlines()]
    assert (row["task"], row["solution"], row["split"]) == ("rec", [10, 20, 40, 60], "val")
    for name in ("refcoco+_val_reviewed", "ref_l4_val"):
        [row] = [json.loads(line) for line in (folder / "data" / f"{name}.jsonl").read_text().splitlines()]
        assert (row["task"], row["solution"], row["split"]) == ("rec", [10, 20, 40, 60], "val")


def test_the_rewards_of_the_page_score_by_their_three_signatures(folder):
    completion = "<answer>[90, 50, 110, 70]</answer>"
    row = {"completion": completion, "solution": [{"bbox_2d": [0, 0, 100, 100], "label": "Answer"}]}
    (folder / "answers.jsonl").write_text(json.dumps(row | {"task": "ovd"}))
    rewards = ["my_rewards.py:inside", "my_rewards.py:brief", "my_rewards.py:compute_score"]
    command = "vlm-r1 score answers.jsonl --out out.jsonl " + " ".join(f"--reward {name}" for name in rewards)
    assert call(command) == 0
    scores = json.loads((folder / "out.jsonl").read_text())["scores"]
    # Half of the box is inside; 34 of 400 characters; the label stands in the tag.
    assert [scores[name] for name in rewards] == [0.5, pytest.approx(1 - 34 / 400), 1.0]
    assert call(command + " --option my_rewards.py:inside.margin=5") == 0
    assert json.loads((folder / "out.jsonl").read_text())["scores"][rewards[0]] == 0.75


def test_reward_sections_of_the_page_build_rubrics(folder):
    pieces = [block for block in blocks("rewards.md", "yaml") if "my_rewards" in block or "shadow" in block]
    assert len(pieces) == 2
    for piece in pieces:
        (folder / "piece.yaml").write_text(piece)
        config = load_config(folder / "piece.yaml").rewards
        assert isinstance(config, RewardConfig)
        assert build_rubric(config).config.parts == config.parts


@pytest.mark.parametrize(
    ("command", "named"),
    [
        ("data convert", CONVERTERS),
        ("data check", TASKS),
        ("predict", TEMPLATES),
        ("play", ["--image-root", "127.0.0.1"]),
        ("view", ["--port", "127.0.0.1"]),
        ("train", ["run.dir"]),
        ("sft", ["method"]),
        ("eval", ["--out"]),
        ("score", ["iou_threshold.threshold=0.7"]),
        ("compare", ["runs/x:after"]),
        ("report", ["report.html"]),
        ("runs", ["--json"]),
        ("export", ["--merge", "--dtype"]),
        ("demo", ["--steps"]),
        ("data show", [".png"]),
    ],
)
def test_help_names_what_there_is_to_choose_from(monkeypatch, capsys, command, named):
    monkeypatch.setitem(os.environ, "COLUMNS", "200")
    assert call(f"vlm-r1 {command} --help") == 0
    said = capsys.readouterr().out
    assert [name for name in named if name not in said] == []


def test_examples_in_the_help_are_commands(monkeypatch, capsys):
    monkeypatch.setitem(os.environ, "COLUMNS", "200")
    for command in (
        "train",
        "sft",
        "eval",
        "predict",
        "play",
        "view",
        "compare",
        "runs",
        "export",
        "score",
        "data convert",
    ):
        assert call(f"vlm-r1 {command} --help") == 0
        assert f"Example: vlm-r1 {command} " in capsys.readouterr().out
