"""Training and evaluation read what a model wrote the same way: 1,000 texts through both."""

import random
from types import SimpleNamespace

import torch
from support import tiny

from vlm_r1.config import EvalConfig, Recipe, RewardConfig, RLConfig, ScenesSource
from vlm_r1.data.mixture import SampleStream
from vlm_r1.data.scenes import load_scenes
from vlm_r1.eval import run
from vlm_r1.records import Rollout, RolloutGroup
from vlm_r1.rewards.rubric import build_rubric
from vlm_r1.rl import experience
from vlm_r1.rl.algorithms import ALGORITHMS

PIECES = ["<think>", "</think>", "<answer>", "</answer>", "[", "]", "[10, 20, 300, 400]", "[1, 2, 3]", '{"bbox_2d": ']
PIECES += ["[5.5, 6, 900, 950]", "}", "```json", "```", "None", "the red circle", " ", "\n", "[400, 300, 10, 20]", "-1"]


def texts(n: int) -> list[str]:
    rng = random.Random(0)
    made = []
    for i in range(n):
        inside = "".join(rng.choice(PIECES) for _ in range(rng.randint(0, 6)))
        whole = f"<think>x</think><answer>{inside}</answer>"
        made.append(whole if i % 2 else "".join(rng.choice(PIECES) for _ in range(rng.randint(0, 12))))
    return made


def test_the_reward_and_the_evaluation_of_a_thousand_texts_agree(monkeypatch):
    written = texts(1000)
    samples = load_scenes(ScenesSource(split="train", n=500))
    loaded = tiny()

    def groups(prompts, group_size, start):
        made = []
        for k, prompt in enumerate(prompts):
            rows = written[start + k * group_size : start + (k + 1) * group_size]
            rollouts = [Rollout(token_ids=(1, 2), logprobs=(-1.0, -1.0), text=t, finish="stop") for t in rows]
            made.append(RolloutGroup(prompt=prompt, rollouts=tuple(rollouts)))
        return made

    settings = Recipe(
        rewards=RewardConfig(parts={"iou": 1.0}),
        rl=RLConfig(group_size=2, prompts_per_step=500),
        eval=EvalConfig(batch_size=100),
    )
    monkeypatch.setattr(experience, "roll_out", lambda session, prompts, seed: (groups(prompts, 2, 0), None))
    accelerator = SimpleNamespace(process_index=0, num_processes=1, autocast=torch.no_grad)
    session = SimpleNamespace(recipe=settings, accelerator=accelerator, loaded=loaded, share_of=lambda n, key: n)
    trained = experience.collect(
        session, SampleStream([(1.0, samples)], seed=0), build_rubric(settings.rewards), ALGORITHMS["grpo"], 0
    )
    in_order = [group.prompt.sample for group in trained.groups]

    evaluated = []
    for half in (0, 1):
        place = iter(range(len(in_order)))

        def one_each(loaded, prompts, group_size, settings, *, seed, half=half, place=place):
            made = []
            for prompt in prompts:
                text = written[2 * next(place) + half]
                rollout = Rollout(token_ids=(1, 2), logprobs=(-1.0, -1.0), text=text, finish="stop")
                made.append(RolloutGroup(prompt=prompt, rollouts=(rollout,)))
            return made

        monkeypatch.setattr(run, "generate", one_each)
        _, rows = run.evaluate(loaded, {"all": in_order}, settings)
        evaluated.append([row["iou"] for row in rows])
    torch.testing.assert_close(torch.tensor(evaluated).T, trained.rewards_PG)
    assert 0.02 < sum(value > 0 for row in evaluated for value in row) / 1000 < 0.9
