"""Training and evaluation read what a model wrote the same way: 1,000 texts through both."""

import random

import torch
from support import Scripted, tiny

from vlm_r1.config import EvalConfig, Recipe, RewardConfig, ScenesSource
from vlm_r1.data.mixture import SampleStream
from vlm_r1.data.scenes import load_scenes
from vlm_r1.distributed.processes import ALONE
from vlm_r1.eval import run
from vlm_r1.records import SamplingParams
from vlm_r1.rewards.rubric import build_rubric
from vlm_r1.rl.algorithms import ALGORITHMS
from vlm_r1.rl.experience import deal, judge
from vlm_r1.runtime.prefetch import Prefetcher

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


def test_the_reward_and_the_evaluation_of_a_thousand_texts_agree():
    written = texts(1000)
    samples = load_scenes(ScenesSource(split="train", n=500))
    loaded = tiny()
    settings = Recipe(rewards=RewardConfig(parts={"iou": 1.0}), eval=EvalConfig(batch_size=100))
    stream = SampleStream([(1.0, samples)], seed=0)
    with Prefetcher(stream, ALONE, loaded.family.expected_tokens, loaded.family.encode) as batches:
        prompts = deal(batches, 500, ALONE, 0, 0.0)
    engine = Scripted(lambda prompt, answer: written[2 * prompt.number + answer])
    groups = list(engine.generate(prompts, SamplingParams(max_new_tokens=2, seed=(0,)), n=2))
    answers = [run.read_rollouts(group) for group in groups]
    trained = judge(groups, answers, build_rubric(settings.rewards), ALGORITHMS["grpo"], 2)
    in_order = [group.prompt.sample for group in trained.groups]

    evaluated = []
    for half in (0, 1):
        engine = Scripted(lambda prompt, _, half=half: written[2 * prompt.number + half])
        _, rows = run.evaluate(engine, loaded.family, {"all": in_order}, settings)
        evaluated.append([row["iou"] for row in rows])
    torch.testing.assert_close(torch.tensor(evaluated).T, trained.rewards_PG)
    assert 0.02 < sum(value > 0 for row in evaluated for value in row) / 1000 < 0.9
