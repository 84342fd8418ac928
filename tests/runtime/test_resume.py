"""A run that stopped and went on is the run that never stopped, bit for bit."""

import json
import random
import shutil
from pathlib import Path

import pytest
from support import killed_runs, recipe, untimed

from vlm_r1.rl import loop
from vlm_r1.runtime.runlog import read_eval, read_metrics, read_rollouts, rollout_steps
from vlm_r1.sft import train as sft

TRAIN = {"grpo": loop.train, "sft": sft.train}
OPTIONS: dict[str, dict] = {
    "grpo": {"optim": {"lr": 1e-2}, "rl": {"beta": 0.05, "iterations": 2, "group_size": 3, "prompts_per_step": 2}},
    "dapo": {"rl": {"algorithm": "dapo", "group_size": 3, "prompts_per_step": 2}},
    "sft": {"optim": {"lr": 1e-2, "schedule": "cosine", "warmup_steps": 2}},
    "sft-muon": {"optim": {"name": "muon", "lr": 1e-2}},
    "sft-bf16": {"optim": {"lr": 1e-2}, "model": {"precision": "bfloat16"}},
    "grpo-bf16": {
        "model": {"precision": "bfloat16", "gradient_checkpointing": True},
        "optim": {"lr": 1e-2},
        "rl": {"beta": 0.05, "iterations": 2, "group_size": 3, "prompts_per_step": 2},
    },
    "grpo-in-pieces": {"rollout": {"max_new_tokens": 6, "max_sequences": 2}, "train": {"vision": "frozen"}},
}


def settings(model_folder, run_dir, name, *, steps: int, save_every: int = 3):
    train = [{"scenes": {"n": 5}, "weight": 2.0}, {"scenes": {"n": 7, "split": "base"}}]
    return recipe(
        model_folder,
        run_dir,
        name.partition("-")[0] if name.startswith("sft") else "grpo",
        **OPTIONS[name],
        data={"train": train, "eval": {"held_out": {"scenes": {"split": "in_domain", "n": 2}}}},
        eval={"max_new_tokens": 3},
        run={"steps": steps, "save_every": save_every, "log_rollouts_every": 1},
    )


def weights(run_dir: Path) -> bytes:
    return (run_dir / "final" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_six_steps_equal_three_and_three(model_folder, tmp_path, name):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    run = settings(model_folder, whole, name, steps=6)
    train = TRAIN[run.method]
    train(run)
    again = settings(model_folder, halves, name, steps=6)
    train(again)
    for lost in ("checkpoint-6", "final"):  # as if killed between the two checkpoints
        shutil.rmtree(halves / lost)
    train(again)
    assert weights(whole) == weights(halves)
    assert untimed(whole) == untimed(halves)
    states = [json.loads((run_dir / "checkpoint-6" / "state.json").read_text()) for run_dir in (whole, halves)]
    assert states[0]["stream"] == states[1]["stream"]
    if run.method == "grpo":
        assert states[0]["monitor"] == states[1]["monitor"]
        assert read_eval(whole) == read_eval(halves)
        for step in range(1, 7):
            assert read_rollouts(whole, step) == read_rollouts(halves, step)


def test_a_longer_run_goes_on_from_the_end_of_a_shorter_one(model_folder, tmp_path):
    loop.train(settings(model_folder, tmp_path / "whole", "grpo", steps=4, save_every=2))
    for steps in (2, 4):
        loop.train(settings(model_folder, tmp_path / "parts", "grpo", steps=steps, save_every=2))
    assert weights(tmp_path / "whole") == weights(tmp_path / "parts")


def test_what_was_written_after_the_checkpoint_is_forgotten_and_written_again(model_folder, tmp_path):
    run_dir = tmp_path / "run"
    loop.train(settings(model_folder, run_dir, "grpo", steps=3))
    expected = untimed(run_dir)
    log = run_dir / "metrics.jsonl"
    log.write_text(log.read_text() + '{"step": 4, "reward": 99}\n{"step": 5, "rew')
    (run_dir / "rollouts" / "step-000004.parquet").write_bytes(b"of a step that is lost")
    loop.train(settings(model_folder, run_dir, "grpo", steps=5))
    assert [row["step"] for row in read_metrics(run_dir)] == [1, 2, 3, 4, 5]
    assert untimed(run_dir)[:3] == expected and read_metrics(run_dir)[3]["reward"] != 99
    assert rollout_steps(run_dir) == [1, 2, 3, 4, 5] and len(read_rollouts(run_dir, 4)) == 6


def test_a_finished_run_started_again_changes_nothing(model_folder, tmp_path):
    run = settings(model_folder, tmp_path / "run", "grpo", steps=2)
    loop.train(run)
    before, found = weights(tmp_path / "run"), untimed(tmp_path / "run")
    loop.train(run)
    assert weights(tmp_path / "run") == before and untimed(tmp_path / "run") == found


@pytest.mark.slow
def test_a_run_killed_twice_ends_as_the_one_never_killed(model_folder, tmp_path):
    run = settings(model_folder, tmp_path / "run", "grpo", steps=5, save_every=1)
    assert killed_runs(run, tmp_path, [0.45, 0.8]) == ["same", "same"]


@pytest.mark.parametrize(("name", "how"), [("grpo", "SIGTERM"), ("sft", "SIGHUP")])
def test_a_run_that_a_scheduler_stops_loses_no_step_and_ends_the_same(model_folder, tmp_path, name, how):
    run = settings(model_folder, tmp_path / "run", name, steps=6, save_every=100)
    assert killed_runs(run, tmp_path, [0.5, 0.8], how) == ["same"] * 2


@pytest.mark.campaign
def test_a_run_killed_at_twenty_random_moments_ends_as_the_one_never_killed(model_folder, tmp_path):
    shares = [random.uniform(0, 1) for _ in range(20)]
    run = settings(model_folder, tmp_path / "run", "grpo", steps=5, save_every=1)
    assert killed_runs(run, tmp_path, shares) == ["same"] * 20
