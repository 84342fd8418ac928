"""The loop end to end: reward rises, metrics have their names, dynamic sampling, evaluation before and after."""

import json

import pytest
import torch
from support import PLAIN, recipe, scratch

from vlm_r1.config import ModelConfig
from vlm_r1.distributed.whole import read_state
from vlm_r1.errors import ConfigError, RewardError
from vlm_r1.models.load import load_policy
from vlm_r1.records import Score
from vlm_r1.rl import loop
from vlm_r1.rl.advantage import mean_std
from vlm_r1.rl.experience import RESAMPLE_ROUNDS
from vlm_r1.runtime.runlog import read_eval, read_metrics, read_rollouts, rollout_steps

DIGITS = (
    "def digits(sample, answer):\n"
    "    return sum(c.isdigit() for c in answer.raw) / 8\n"
    "def by_step(sample, answer):\n"
    "    return None if 'a' in answer.raw else float(len(answer.raw))\n"
    "def broken(sample, answer):\n"
    "    raise KeyError('gone')\n"
)


@pytest.fixture
def plugin(tmp_path):
    (tmp_path / "toy.py").write_text(DIGITS)
    return tmp_path / "toy.py"


@pytest.mark.parametrize("algorithm", ["grpo", "cispo"])
def test_reward_rises(tmp_path, plugin, algorithm):
    run = recipe(
        tmp_path,
        tmp_path / "run",
        model={"init": "scratch", "scratch": scratch()},
        rewards={"parts": {f"{plugin}:digits": 1.0}},
        rollout={"max_new_tokens": 8},
        rl={"algorithm": algorithm, "group_size": 8, "prompts_per_step": 4},
        optim={"lr": 5e-3},
        run={"steps": 25, "save_every": 25},
    )
    loop.train(run)
    rewards = [line["reward"] for line in read_metrics(tmp_path / "run")]
    assert len(rewards) == 25

    first, last = sum(rewards[:3]) / 3, sum(rewards[-3:]) / 3
    assert first < 0.15 and last > first + 0.3, rewards


def test_a_run_folder_holds_what_its_readers_need(model_folder, tmp_path):
    run = recipe(
        model_folder,
        tmp_path / "run",
        data={"eval": {"held_out": {"scenes": {"split": "in_domain", "n": 3}}}},
        run={"steps": 2, "save_every": 2, "log_rollouts_every": 1},
        eval={"max_new_tokens": 4, "batch_size": 2, "every": 1},
        rewards={"shadow": ["iou"]},
        rl={"beta": 0.01},
    )
    assert loop.train(run) == tmp_path / "run"
    lines = read_metrics(tmp_path / "run")
    assert [line["step"] for line in lines] == [1, 2]
    names = {
        *("loss", "grad_norm", "lr", "entropy", "kl", "clip_ratio/low_mean", "clip_ratio/high_mean"),
        *("reward", "reward_std", "frac_reward_zero_std", "rewards/repetition/mean", "rewards/format/mean"),
        *("completions/mean_length", "completions/max_length", "completions/clipped_ratio"),
        *("tokens/prompt", "tokens/answer", "time/data_s", "time/rollout_s", "time/reward_s"),
        *("time/update_s", "time/sync_s", "time/step_s", "shadow/iou/mean"),
        *("sampling/sampling_logp_difference/mean", "sampling/sampling_logp_difference/max", "sampling/kl"),
        *(f"sampling/importance_sampling_ratio/{kind}" for kind in ("mean", "min", "max")),
    }
    assert names <= lines[0].keys()
    assert lines[0]["tokens/answer"] / 6 == pytest.approx(lines[0]["completions/mean_length"])
    assert lines[0]["sampling/importance_sampling_ratio/mean"] == 1
    assert all(line["sampling/sampling_logp_difference/max"] < 1e-5 for line in lines)
    found = read_eval(tmp_path / "run")
    assert set(found) == {"before", "step-1", "after"} and found["before"]["held_out"]["n"] == 3
    assert rollout_steps(tmp_path / "run") == [1, 2]
    rows = read_rollouts(tmp_path / "run", 2)
    assert len(rows) == 6 and {row["group"] for row in rows} == {0, 1}
    for group in (0, 1):
        mine = [row for row in rows if row["group"] == group]
        advantages = mean_std(torch.tensor([[row["reward"] for row in mine]]))[0]
        assert [row["advantage"] for row in mine] == pytest.approx(advantages.tolist(), abs=1e-4)
    assert (tmp_path / "run" / "final" / "model.safetensors").is_file()
    assert (tmp_path / "run" / "checkpoint-2" / "state.json").is_file()


def test_a_run_is_a_function_of_its_seed(model_folder, tmp_path):
    def rewards(name, seed):
        run = recipe(model_folder, tmp_path / name, run={"seed": seed, "steps": 2, "log_rollouts_every": 1})
        loop.train(run)
        return [row["completion"] for step in (1, 2) for row in read_rollouts(tmp_path / name, step)]

    assert rewards("a", 1) == rewards("b", 1) != rewards("c", 2)


def test_without_data_the_remedy_is_said(model_folder, tmp_path):
    with pytest.raises(ConfigError, match=r"data\.train: is empty"):
        loop.train(recipe(model_folder, tmp_path / "run", data={"train": []}))


def test_an_exception_in_a_reward_stops_the_run_with_the_samples_id(model_folder, tmp_path, plugin):
    with pytest.raises(RewardError, match="train-"):
        loop.train(recipe(model_folder, tmp_path / "run", rewards={"parts": {f"{plugin}:broken": 1.0}}))


def test_answers_that_cannot_be_scored_do_not_break_a_step(model_folder, tmp_path, plugin):
    run = recipe(model_folder, tmp_path / "run", rewards={"parts": {f"{plugin}:by_step": 1.0}})
    loop.train(run)
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
        assert json.loads(line)["loss"] is not None


def fake_scores(monkeypatch, totals):
    """Let the rubric give these rewards, in the order of the answers, whatever their length."""
    monkeypatch.setattr("vlm_r1.rl.experience.overlong_penalty", lambda lengths, limit: torch.zeros(lengths.shape))
    left = iter(totals)

    def score_all(self, samples, answers):
        return [Score(total=next(left)) for _ in samples]

    monkeypatch.setattr("vlm_r1.rewards.rubric.Rubric.score_all", score_all)


SAME, GOOD, BETTER = [0.5] * 3, [0.0, 0.0, 1.0], [0.0, 1.0, 1.0]


def one_dapo_step(model_folder, run_dir):
    """What the step's table holds: rewards by group, and the samples that were drawn for it."""
    rl = {"algorithm": "dapo", "group_size": 3, "prompts_per_step": 2}
    loop.train(recipe(model_folder, run_dir, rl=rl, run={"steps": 1, "save_every": 1, "log_rollouts_every": 1}))
    groups: dict[int, list[dict]] = {}
    for row in read_rollouts(run_dir, 1):
        groups.setdefault(row["group"], []).append(row)
    return groups, read_state(run_dir / "checkpoint-1")["stream"]["drawn"]


def test_dynamic_sampling_replaces_groups_that_teach_nothing(model_folder, tmp_path, monkeypatch):
    fake_scores(monkeypatch, [*SAME, *GOOD, *BETTER, *GOOD])
    groups, drawn = one_dapo_step(model_folder, tmp_path / "run")
    assert drawn == 3  # two prompts, then one for the group that taught nothing
    assert {number: [row["reward"] for row in rows] for number, rows in groups.items()} == {1: GOOD, 2: BETTER}
    seen = [tuple(row["token_ids"]) for rows in groups.values() for row in rows]
    assert len(set(seen)) == len(seen)  # the second round drew its own answers
    [line] = read_metrics(tmp_path / "run")
    assert line["reward"] == pytest.approx(0.5) and line["frac_reward_zero_std"] == 0
    assert line["tokens/answer"] == sum(map(len, seen)) and line["grad_norm"] > 0


def test_dynamic_sampling_gives_up_after_its_rounds(model_folder, tmp_path, monkeypatch):
    fake_scores(monkeypatch, SAME * 2 * RESAMPLE_ROUNDS)
    groups, drawn = one_dapo_step(model_folder, tmp_path / "run")
    assert drawn == 2 * RESAMPLE_ROUNDS
    last = [drawn - 2, drawn - 1]
    assert {number: [row["reward"] for row in rows] for number, rows in groups.items()} == dict.fromkeys(last, SAME)
    assert {row["advantage"] for rows in groups.values() for row in rows} == {0.0}
    assert read_metrics(tmp_path / "run")[0]["grad_norm"] == 0


def test_answers_are_kept_with_what_it_takes_to_replay_them(model_folder, tmp_path):
    run = {"steps": 3, "save_every": 2, "log_rollouts_every": 1}
    loop.train(recipe(model_folder, tmp_path / "run", run=run))
    loaded = load_policy(ModelConfig(path=str(model_folder)), PLAIN)
    for step in (1, 2, 3):
        rows = read_rollouts(tmp_path / "run", step)
        assert {row["version"] for row in rows} == {step - 1}  # of the weights after that many steps
        for row in rows:
            assert len(row["token_ids"]) == len(row["logprobs"]) == row["n_tokens"] and max(row["logprobs"]) <= 0
            assert loaded.tokenizer.decode(row["token_ids"], skip_special_tokens=True) == row["completion"]
