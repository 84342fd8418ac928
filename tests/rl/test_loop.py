"""The loop end to end: reward rises, metrics have their names, dynamic sampling, evaluation before and after."""

import json

import pytest
import torch
from support import recipe, scratch

from vlm_r1.config import ScenesSource
from vlm_r1.data.mixture import SampleStream
from vlm_r1.data.scenes import load_scenes
from vlm_r1.errors import ConfigError, RewardError
from vlm_r1.rewards.rubric import build_rubric
from vlm_r1.rl import experience, loop
from vlm_r1.rl.advantage import mean_std
from vlm_r1.rl.algorithms import ALGORITHMS
from vlm_r1.rl.experience import answer_weights, collect, roll_out
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
        *("time/update_s", "time/step_s", "shadow/iou/mean", "sampling/importance_sampling_ratio/mean"),
    }
    assert names <= lines[0].keys()
    assert lines[0]["tokens/answer"] / 6 == pytest.approx(lines[0]["completions/mean_length"])
    assert lines[0]["sampling/importance_sampling_ratio/mean"] == pytest.approx(1)
    found = read_eval(tmp_path / "run")
    assert set(found) == {"before", "step-1", "after"} and found["before"]["held_out"]["n"] == 3
    assert rollout_steps(tmp_path / "run") == [1, 2]
    rows = read_rollouts(tmp_path / "run", 2)
    assert len(rows) == 6 and {row["group"] for row in rows} == {0, 1}
    for group in (0, 1):
        mine = [row for row in rows if row["group"] == group]
        advantages = mean_std(torch.tensor([[row["reward"] for row in mine]]))[0]
        assert [row["advantage"] for row in mine] == pytest.approx(advantages.tolist(), abs=1e-4)
    for folder in ("final", "checkpoint-2"):
        assert (tmp_path / "run" / folder / "model.safetensors").is_file()


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


def stream() -> SampleStream:
    return SampleStream([(1.0, load_scenes(ScenesSource(n=40)))], seed=0)


def fake_scores(monkeypatch, totals):
    """Let the rubric give these rewards, in the order of the answers."""
    from vlm_r1.records import Score

    left = iter(totals)

    def score_all(self, samples, answers):
        return [Score(total=next(left)) for _ in samples]

    monkeypatch.setattr("vlm_r1.rewards.rubric.Rubric.score_all", score_all)


SAME, GOOD, BETTER = [0.5] * 3, [0.0, 0.0, 1.0], [0.0, 1.0, 1.0]


def test_dynamic_sampling_replaces_groups_that_teach_nothing(session, monkeypatch):
    session = session(rl={"algorithm": "dapo", "group_size": 3, "prompts_per_step": 2})
    fake_scores(monkeypatch, [*SAME, *GOOD, *BETTER, *GOOD])
    source = stream()
    found = collect(session, source, build_rubric(session.recipe.rewards), ALGORITHMS["dapo"], 0)
    assert source.state_dict()["drawn"] == 3  # two prompts, then one for the group that taught nothing
    assert found.rewards_PG.tolist() == [GOOD, BETTER]
    assert len(found.groups) == len(found.answers) == len(found.scores) == 2
    assert found.prefill is None and found.advantages_PG.shape == (2, 3)
    seen = [r.token_ids for g in found.groups for r in g.rollouts]
    assert len(set(seen)) == len(seen)  # the second round drew its own answers


def test_dynamic_sampling_gives_up_after_its_rounds(session, monkeypatch):
    session = session(rl={"algorithm": "dapo", "group_size": 3, "prompts_per_step": 2})
    fake_scores(monkeypatch, SAME * 2 * experience.RESAMPLE_ROUNDS)
    source = stream()
    found = collect(session, source, build_rubric(session.recipe.rewards), ALGORITHMS["dapo"], 0)
    assert source.state_dict()["drawn"] == 2 * experience.RESAMPLE_ROUNDS
    assert found.rewards_PG.tolist() == [SAME, SAME] and not found.advantages_PG.any()


def test_overlong_shaping_changes_advantages_and_not_the_reported_reward(session, monkeypatch):
    session = session(rl={"algorithm": "dapo", "group_size": 3, "prompts_per_step": 1}, rollout={"max_new_tokens": 10})
    fake_scores(monkeypatch, [1.0, 1.0, 1.0])
    long = iter([10, 9, 4])

    def answers(group):
        from vlm_r1.records import Answer

        return [Answer(raw="", n_tokens=next(long)) for _ in group.rollouts]

    monkeypatch.setattr(experience, "read_rollouts", answers)
    found = collect(session, stream(), build_rubric(session.recipe.rewards), ALGORITHMS["dapo"], 0)
    assert found.rewards_PG.tolist() == [[1.0, 1.0, 1.0]]
    torch.testing.assert_close(found.advantages_PG, mean_std(torch.tensor([[0.0, 0.5, 1.0]])))


def test_token_weights_count_the_groups_that_are_not_trained_on(session, monkeypatch):
    session = session(rl={"group_size": 3, "prompts_per_step": 2})
    fake_scores(monkeypatch, [*SAME, *GOOD])
    found = collect(session, stream(), build_rubric(session.recipe.rewards), ALGORITHMS["grpo"], 0)
    lengths = torch.tensor([[len(r.token_ids) for r in g.rollouts] for g in found.groups])
    torch.testing.assert_close(answer_weights(session, found, ALGORITHMS["grpo"]), 1 / (6 * lengths))
    tokens = answer_weights(session, found, ALGORITHMS["dapo"])
    torch.testing.assert_close(tokens, torch.full((2, 3), 1 / float(lengths.sum())))


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, True),
        ({"rl": {"reuse_prefill": False}}, False),
        ({"rl": {"token_budget": 150}}, False),
        ({"model": {"gradient_checkpointing": True}}, False),
    ],
    ids=["fits", "switched-off", "over-budget", "checkpointing"],
)
def test_the_prompts_graph_is_kept_only_where_it_helps(session, options, kept):
    session = session(**options)
    samples = load_scenes(ScenesSource(n=4))
    prompts = [session.loaded.family.encode(samples[i]) for i in range(4)]
    groups, prefill = roll_out(session, prompts, seed=0)
    assert [g.prompt for g in groups] == prompts
    assert (prefill is not None) == kept
    assert prefill is None or prefill.keys[0].requires_grad
