"""Runs that answer with what another run wrote: the same first step, a mismatch that grows, and clear refusals."""

import pyarrow.parquet as pq
import pytest
from support import mixed_prompts, recipe, tiny

from vlm_r1.errors import CheckpointError, ConfigError
from vlm_r1.records import SamplingParams
from vlm_r1.rl import loop
from vlm_r1.rollout.replay import ReplayEngine
from vlm_r1.runtime.runlog import read_metrics, read_rollouts

STEPS = 4
REWARD = """
import zlib
def varied(sample, answer):
    return zlib.crc32(answer.raw.encode()) % 1000 / 1000
"""


@pytest.fixture(scope="module")
def reward(tmp_path_factory):
    """A reward that differs between answers."""
    file = tmp_path_factory.mktemp("reward") / "reward.py"
    file.write_text(REWARD)
    return f"{file}:varied"


def settings(model_folder, run_dir, reward, *, rollout=None, **sections):
    sections = {"rewards": {"parts": {reward: 1.0}}, "optim": {"lr": 1e-2}} | sections
    run = {"steps": STEPS, "save_every": STEPS, "log_rollouts_every": 1} | sections.pop("run", {})
    rollout = {"max_new_tokens": 6, "temperature": 0.8} | (rollout or {})
    return recipe(model_folder, run_dir, rollout=rollout, run=run, **sections)


@pytest.fixture(scope="module")
def recorded(model_folder, reward, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("replay") / "recorded"
    loop.train(settings(model_folder, run_dir, reward))
    return run_dir


def replayed(model_folder, run_dir, reward, source, **sections):
    rollout = {"engine": "replay", "replay": str(source)} | sections.pop("rollout", {})
    loop.train(settings(model_folder, run_dir, reward, rollout=rollout, **sections))
    return read_metrics(run_dir)


NAMES = ("sampling/sampling_logp_difference/max", "sampling/kl")


def test_the_same_recipe_replays_to_the_same_run(model_folder, reward, recorded, tmp_path):
    found, before = replayed(model_folder, tmp_path / "run", reward, recorded), read_metrics(recorded)
    kept = ("completion", "token_ids", "reward", "sample_id", "group", "logprobs", "version", "finish", "n_tokens")
    for step in range(1, STEPS + 1):
        ours, theirs = read_rollouts(tmp_path / "run", step), read_rollouts(recorded, step)
        assert [[row[key] for key in kept] for row in ours] == [[row[key] for key in kept] for row in theirs]
    assert len(found) == STEPS
    for ours, theirs in zip(found, before, strict=True):  # the updates are the same, so the sampler stays the trainer
        for kind in ("mean", "min", "max"):
            assert ours[f"sampling/importance_sampling_ratio/{kind}"] == pytest.approx(1, abs=5e-5)
            assert theirs[f"sampling/importance_sampling_ratio/{kind}"] == 1  # off: exactly
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4, abs=1e-6)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)
        for name in ("reward", "completions/mean_length"):
            assert ours[name] == theirs[name]


def test_an_update_that_goes_elsewhere_leaves_the_recorded_sampler_behind(model_folder, reward, recorded, tmp_path):
    found = replayed(model_folder, tmp_path / "run", reward, recorded, optim={"lr": 5e-2})
    before = read_metrics(recorded)
    assert found[0]["loss"] == pytest.approx(before[0]["loss"], rel=1e-4, abs=1e-6)
    assert found[0]["grad_norm"] == pytest.approx(before[0]["grad_norm"], rel=1e-3)
    assert all(found[0][name] < 1e-5 for name in NAMES)
    for name in NAMES:
        assert all(row[name] > 100 * max(found[0][name], 1e-9) for row in found[1:])
    assert found[-1]["sampling/importance_sampling_ratio/max"] > 1.05
    assert found[-1]["sampling/importance_sampling_ratio/min"] < 0.95
    assert max(row["sampling/importance_sampling_ratio/max"] for row in found) <= 3.0  # the cap


def test_without_correction_the_ratio_is_one_and_the_mismatch_is_still_told(model_folder, reward, recorded, tmp_path):
    rollout = {"importance_sampling": "off"}
    found = replayed(model_folder, tmp_path / "run", reward, recorded, optim={"lr": 5e-2}, rollout=rollout)
    for kind in ("mean", "min", "max"):
        assert [row[f"sampling/importance_sampling_ratio/{kind}"] for row in found] == [1.0] * STEPS
    assert found[-1]["sampling/kl"] > 1e-4


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ({"rl": {"group_size": 4, "prompts_per_step": 2}}, r"holds 3 answers to train-\d+-0 .*wants 4"),
        ({"rl": {"group_size": 3, "prompts_per_step": 3}}, "holds no answers as prompt 2 of step 1"),
        ({"data": {"train": [{"scenes": {"split": "base", "n": 12}}]}}, r"holds 3 answers to train-\d+-0 .*to base-"),
        ({"run": {"seed": 3}}, r"needs the data, seed, rl\.prompts_per_step and rl\.group_size of the recorded run"),
        ({"run": {"steps": STEPS + 1}}, rf"steps 1 to {STEPS}"),
    ],
    ids=["group-size", "prompts", "data", "seed", "more-steps"],
)
def test_a_run_that_asks_something_else_is_refused(model_folder, reward, recorded, tmp_path, sections, told):
    with pytest.raises(CheckpointError, match=told):
        replayed(model_folder, tmp_path / "run", reward, recorded, **sections)


def test_fewer_answers_than_were_recorded_are_the_first_of_them(model_folder, reward, recorded, tmp_path):
    rl = {"group_size": 2, "prompts_per_step": 2}
    replayed(model_folder, tmp_path / "run", reward, recorded, rl=rl, run={"steps": 1})
    ours, theirs = read_rollouts(tmp_path / "run", 1), read_rollouts(recorded, 1)
    expected = [row["token_ids"] for place, row in enumerate(theirs) if place % 3 < 2]
    assert [row["token_ids"] for row in ours] == expected


def test_a_folder_that_is_not_there_is_said(model_folder, reward, tmp_path):
    with pytest.raises(CheckpointError, match="nothing-here"):
        replayed(model_folder, tmp_path / "run", reward, tmp_path / "nothing-here")


def test_tables_of_the_release_before_hold_no_token_ids(model_folder, reward, recorded, tmp_path):
    old = tmp_path / "old"
    (old / "rollouts").mkdir(parents=True)
    for file in (recorded / "rollouts").iterdir():
        table = pq.read_table(file).drop_columns(["token_ids", "logprobs", "version"])
        pq.write_table(table, old / "rollouts" / file.name)
    with pytest.raises(CheckpointError, match="hold no token ids; record the run again"):
        replayed(model_folder, tmp_path / "run", reward, old)


def test_engine_and_folder_go_together(model_folder, reward, tmp_path):
    for rollout in ({"engine": "replay"}, {"replay": "runs/x"}):
        with pytest.raises((ConfigError, ValueError), match="go together"):
            settings(model_folder, tmp_path / "run", reward, rollout=rollout)


def test_the_engine_says_what_it_is_and_answers_prompts_by_their_numbers(recorded):
    engine = ReplayEngine("recorded", lambda step: read_rollouts(recorded, step))
    state = engine.check()
    assert not state.is_trainer and state.name == "replay of recorded" and state.problems == ()
    engine.sync(iter(()), version=3)
    assert engine.check().version == 3
    sampling = SamplingParams(max_new_tokens=6, seed=(0, 1))
    assert list(engine.generate([], sampling, n=3)) == []
    [prompt, *_] = mixed_prompts(tiny())
    with pytest.raises(CheckpointError, match="as prompt 0 of step 2, this run wants 3 to s;"):
        list(engine.generate([prompt], sampling, n=3))
