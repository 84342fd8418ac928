"""No text makes a reward raise or leave its range, and training and evaluation read it alike."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_r1.boxes import BoxMap
from vlm_r1.prompts.parse import read_answer
from vlm_r1.records import LabelledBox, Sample, Truth
from vlm_r1.rewards.registry import REWARDS, TASK_OF_REWARD

RANGES = dict.fromkeys(REWARDS, (0.0, 1.0)) | {
    "giou": (-1.0, 1.0),
    "length_cosine": (-0.5, 1.0),
    "repetition": (-1.0, 0.0),
}
TRUTH = Truth(
    boxes=(LabelledBox(box=(1.0, 2.0, 30.0, 40.0), label="cat"), LabelledBox(box=(5.0, 5.0, 9.0, 9.0), label="dog")),
    text="yes, 4",
    choice="B",
    number=4.0,
)
WRITTEN = """
[1,2,30,40] [5,5,9,9] {"bbox_2d": "label": "cat"} "dog"} [ ] { } , None ``` ```json 4 -4 1e999 NaN 5! 9^9 ^ ** ( ) $ ' "
\\frac{1}{2} \\boxed{4} \\boxed{ \\sqrt{ x = + or yes no A B) C because <answer> </answer> <think> </think> % é ٣ ½ ∫ π
"""
WORDS = [*WRITTEN.split(), " ", " ", "\n", "\ud800", "\x00", "9" * 400]
TEXTS = st.one_of(st.text(max_size=60), st.lists(st.sampled_from(WORDS), max_size=20).map("".join))
NAMES = sorted(set(REWARDS) - {"llm_judge"})


def check_rewards(text, names=NAMES):
    for raw in (text, f"<think>{text}</think><answer>{text}</answer>"):
        for name in names:
            sample = Sample(id="0", question="", truth=TRUTH, task=TASK_OF_REWARD.get(name, "ovd"))
            answer = read_answer(raw, sample, BoxMap(x=0.5, y=2.0), n_tokens=len(raw))
            score = REWARDS[name](sample, answer)
            low, high = RANGES[name]
            if score.total is not None:
                assert math.isfinite(score.total), (name, raw)
                assert low <= score.total <= high, (name, raw)


@settings(max_examples=120, deadline=None)
@given(TEXTS)
def test_rewards_stay_in_their_range_on_any_text(text):
    check_rewards(text)


def random_texts(n, seed):
    """Seeded texts of the pieces above, and of single characters: cheaper by far than drawing each by hypothesis."""
    rng = random.Random(seed)
    for _ in range(n):
        if rng.random() < 0.2:
            yield "".join(chr(rng.randrange(0x3000)) for _ in range(rng.randrange(40)))
        else:
            yield "".join(rng.choices(WORDS, k=rng.randrange(20)))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_rewards_stay_in_their_range_on_100_000_texts(name):
    for text in random_texts(100_000, seed=len(name)):
        check_rewards(text, [name])
