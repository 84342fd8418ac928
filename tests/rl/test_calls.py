"""Training of answers that speak with an environment, end to end: metrics, tables, SFT of scripts, and resuming."""

import json

import pytest
import torch
from support import killed_runs, recipe, talkative

from vlm_r1.config import EnvConfig, ModelConfig, PromptConfig, ScenesSource
from vlm_r1.data.scenes import load_scenes
from vlm_r1.envs.host import Host
from vlm_r1.errors import ConfigError, DataError
from vlm_r1.models.load import load_policy
from vlm_r1.prompts.parse import END_OF_CALL
from vlm_r1.rl import loop
from vlm_r1.runtime.runlog import read_eval, read_metrics, read_rollouts
from vlm_r1.sft import train as sft
from vlm_r1.sft.batch import image_group

MARKS = {"scenes": {"n": 8, "scale": 4, "difficulty": "small", "questions": {"mark": 1.0}}}


@pytest.fixture(scope="module")
def made(model_folder, tmp_path_factory):
    return talkative(model_folder, tmp_path_factory.mktemp("calls"))


def talking(made, run_dir, **sections):
    model, file = made
    base = {
        "env": {"tools": [f"{file}:Talker"], "max_calls": 2},
        "data": {"train": [MARKS], "eval": {"held_out": {"scenes": MARKS["scenes"] | {"split": "in_domain", "n": 3}}}},
        "model": {"max_pixels": 9216},
        "eval": {"max_new_tokens": 6},
        "rewards": {"parts": {"environment": 1.0, "calls": -0.1}},
        "run": {"steps": 3, "save_every": 1, "log_rollouts_every": 1},
    }
    return recipe(model, run_dir, **base | sections)


def test_a_run_counts_calls_and_keeps_what_was_looked_at(made, tmp_path):
    loop.train(talking(made, tmp_path / "run"))
    metrics = read_metrics(tmp_path / "run")
    assert all(row["tools/calls"] > 0 and row["tools/tokens"] > 0 and 0 < row["tools/used"] <= 1 for row in metrics)
    rows = [row for step in (1, 2, 3) for row in read_rollouts(tmp_path / "run", step)]
    called = [row for row in rows if row["calls"]]
    assert called and sum(len(json.loads(row["calls"])) for row in called) == pytest.approx(
        sum(row["tools/calls"] for row in metrics) * 6
    )
    for row in called:
        calls = json.loads(row["calls"])
        assert row["completion"].startswith("".join(call["text"] for call in calls))
        assert len(row["shown"] or ()) == sum(call["images"] for call in calls)
        parts = json.loads(row["parts"])
        assert parts["calls"] == len(calls)
        assert row["reward"] == pytest.approx(parts["environment"] - 0.1 * len(calls))
    assert any(row["shown"] for row in called)
    evaluated = read_eval(tmp_path / "run")["after"]["held_out"]
    assert 0 <= evaluated["calls"] <= 2


def test_a_killed_run_goes_on_as_if_it_had_not_been(made, tmp_path):
    assert killed_runs(talking(made, tmp_path / "run"), tmp_path, [0.5, 0.8]) == ["same", "same"]


def test_sft_teaches_scripted_calls_and_not_their_answers(made, tmp_path):
    run = recipe(
        made[0],
        tmp_path / "run",
        "sft",
        env="zoom",
        data={"train": [{"scenes": MARKS["scenes"] | {"per_image": 2}}]},
        model={"max_pixels": 9216},
    )
    sft.train(run)
    assert all(row["loss"] > 0 for row in read_metrics(tmp_path / "run"))


def test_a_scripted_target_holds_the_call_and_the_zoomed_part(model_folder):
    loaded = load_policy(ModelConfig(path=str(model_folder), max_pixels=9216), PromptConfig(template="plain"))
    host = Host(EnvConfig(tools=["zoom"], max_calls=1), loaded.family)
    scenes = load_scenes(ScenesSource(**MARKS["scenes"]))
    assert {len(s.columns["calls"]) for s in scenes} == {1, 2}
    one = next(s for s in scenes if len(s.columns["calls"]) == 1)
    [completion] = image_group([one], loaded.family, host=host).completions
    [turn] = completion.turns
    written = loaded.tokenizer.decode(turn.token_ids[turn.context : turn.written])
    [call] = one.columns["calls"]
    assert written.startswith(f"<think>{call['think']}</think>") and written.endswith(END_OF_CALL)
    assert json.loads(written.partition("<tool>")[2].removesuffix(END_OF_CALL))["name"] == "zoom"
    x1, y1, x2, y2 = call["box"]
    grid = turn.images[0].tensors["image_grid_thw"][0].tolist()
    assert grid[1] * 8 == pytest.approx(y2 - y1, abs=8) and grid[2] * 8 == pytest.approx(x2 - x1, abs=8)
    assert one.truth.text in loaded.tokenizer.decode(completion.token_ids)
    assert torch.equal(completion.positions[0], torch.arange(len(completion.token_ids)) + completion.positions[0, 0])

    for script, told in (
        ("zoom", "call 1 is"),
        ({"name": "zoom"}, "box is missing"),
        ({"name": "zooom", "box": [0, 0, 99, 99]}, "no tool zooom"),
    ):
        bad = {"calls": [script]}
        with pytest.raises(DataError, match=told):
            image_group(
                [type(one)(**{f: getattr(one, f) for f in one.__slots__} | {"columns": bad})], loaded.family, host=host
            )
    two = {"calls": [call, call]}
    with pytest.raises(DataError, match="max_calls is 1"):
        image_group(
            [type(one)(**{f: getattr(one, f) for f in one.__slots__} | {"columns": two})], loaded.family, host=host
        )


def test_what_has_no_calls_says_so(made, tmp_path):
    with pytest.raises(ValueError, match="replay has no tables of calls"):
        talking(made, tmp_path, rollout={"engine": "replay", "replay": "runs/x"})
    with pytest.raises(ConfigError, match=r"asks for \{tools\}, and there is no env"):
        loop.train(talking(made, tmp_path / "run", env=None, prompt={"template": "r1_tools"}))
