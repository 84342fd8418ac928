"""`--dry-run`: what it prints, and that it loads no weights and writes nothing."""

import json

import pytest
from command import run
from PIL import Image

from vlm_r1.models import load

RECIPE = """
method: {method}
model: {{path: tiny}}
data:
  train: [{{path: rows.jsonl}}]
  eval: {{held: {{path: rows.jsonl, sampling: "first:1"}}}}
prompt: {{template: "find {{question}}"}}
rewards: {{parts: {{iou: 2.0, format: 0.5}}}}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two rows, of which the first has boxes that thousandths express exactly; loading weights fails."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (100, 50)).save(tmp_path / "a.png")
    row = {"image": "a.png", "problem": "the cat", "solution": [10, 5, 60, 40], "task": "rec"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row | {"problem": "the dog"}) + "\n")
    for method in ("grpo", "sft"):
        (tmp_path / f"{method}.yaml").write_text(RECIPE.format(method=method))
    monkeypatch.setattr(load, "read_weights", lambda *_, **__: pytest.fail("weights are loaded"))
    return tmp_path


TRUTH = "the truth as an answer: <think></think><answer>[100, 100, 600, 800]</answer>\n"


@pytest.mark.parametrize(
    ("command", "file", "right", "empty"),
    [
        ("train", "grpo.yaml", "reward 2.5 = iou 1 x 2 + format 1 x 0.5", "reward 0.5 = iou 0 x 2 + format 1 x 0.5"),
        ("sft", "sft.yaml", "accuracy 1", "accuracy 0"),
        ("eval", "grpo.yaml", "accuracy 1", "accuracy 0"),
    ],
)
def test_a_prompt_its_truth_and_scores_are_shown_without_weights_and_folders(
    folder, capsys, command, file, right, empty
):
    there = sorted(folder.iterdir())
    assert run(command, file, "--dry-run") == 0
    said = capsys.readouterr()
    assert ("data.train.0: 2 rows, weight 1\n" in said.out) == (command != "eval")
    assert "data.eval.held: 1 rows\n" in said.out
    assert "first sample: rows.jsonl:1 (task rec; 100 x 50 pixels)\n" in said.out
    assert "<|image_pad|><|vision_end|>find the cat<|im_end|>" in said.out
    assert 'truth (boxes in pixels): [{"bbox_2d": [10.0, 5.0, 60.0, 40.0], "label": ""}]\n' in said.out
    assert f"{TRUTH}  {right}\n" in said.out
    assert f"an empty answer: <think></think><answer></answer>\n  {empty}\n" in said.out
    assert ("1 of its 1 rows are trained on too" in said.err) == (command != "eval")
    assert sorted(folder.iterdir()) == there


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("rewards.parts={iuo: 1.0}", 'unknown reward "iuo"'),
        ("data.train.0.path=nope.jsonl", 'data file "nope.jsonl" does not exist'),
        ("model.path=./nope", 'model.path: "./nope" does not exist'),
    ],
)
def test_a_fault_is_what_a_run_would_say(folder, capsys, change, message):
    assert run("train", "grpo.yaml", change, "--dry-run") == 2
    assert message in capsys.readouterr().err
