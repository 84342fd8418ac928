"""No text makes a reward raise, leave its range or take long, and training and evaluation read it alike."""

import math
import random
import time

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


LONG, LIMIT_S = 64_000, 0.1
"""Characters of a long answer, and what reading it or one reward of it may take of a processor."""
KNOWN = [
    "\ufdfa",
    "\u0327\u0301",
    "\u0f73\u0f81",
    "\uff9e",
    "$",
    "$4$ ",
    "\\boxed{",
    "```",
    '{"',
    "[1,2,3,4],",
    "a b c d e f ",
]
"""Repeated, these expand, or took time that grew with their number squared."""
PIECES = [
    *KNOWN,
    *(piece for piece in WRITTEN.split() if piece not in KNOWN),
    *[
        "x",
        "aB ",
        "1 ",
        "1.",
        "12",
        ".1",
        "1/2 ",
        "-1 ",
        "+ ",
        "[[",
        "[1",
        "{'a':",
        "\\",
        "\\boxed{4}",
        "\\text{",
        "\\begin{matrix}",
        "\\end{matrix}",
        "$$",
        "!?",
        "__ ",
        "0.3333",
        "--",
        "- 1",
        "=",
        "%",
    ],
    *[
        "A) ",
        "B) ",
        "(A",
        "A or B ",
        "not B ",
        "is ",
        "answer is ",
        "answer is A ",
        "option ",
        "because ",
        "yes ",
        "no ",
        "either ",
        "A.",
        "A cat ",
        "cat; ",
        "none ",
    ],
    *(
        "\u0344",
        "\u0390",
        "\xdf",
        "\ufb03",
        "\u1100\u1161",
        "\uac00",
        "\u3042",
        "\U0001f600",
        "\u2003",
        "\u0661",
        "\ud800",
        "\x00",
    ),
    *(
        "[1,2,3,4]",
        "[1,2,3,",
        "(1,2),(3,4)",
        "(1,2)",
        '{"bbox_2d":[1,2,3,4],"label":"cat"},',
        '{"bbox_2d":',
        "<answer></answer>",
    ),
    *(
        "1,000 ",
        "1,",
        '"a":1,',
        '["',
        "<loc0001>",
        "<loc0001><loc0002><loc0003><loc0004> cat;",
        "<seg000>",
        "/*",
        "\n",
        "\t",
    ),
]
WRAPS = (("", ""), ("<think>t</think><answer>", "</answer>"), ("<think>", "</think><answer>4</answer>"))
INNER = (("```", "```"), ("\\boxed{", "}"), ('[{"bbox_2d":[1,2,3,4],"label":"', '"}]'), ("[", ""), ("4 ", ""))


def check_time(raw, names=NAMES):
    """Reading an answer, and each reward of it, keeps to the limit; the best of three tries counts."""
    for task in {TASK_OF_REWARD.get(name, "ovd") for name in names}:
        sample = Sample(id="0", question="Which? (A) cat (B) dog", truth=TRUTH, task=task)
        answer = in_time(lambda sample=sample: read_answer(raw, sample, BoxMap(x=0.5, y=2.0), n_tokens=9), task)
        for name in names:
            if TASK_OF_REWARD.get(name, "ovd") == task:
                in_time(lambda name=name, sample=sample, answer=answer: REWARDS[name](sample, answer), name)


def in_time(call, what):
    seconds = []
    while len(seconds) < 3 and not any(taken < LIMIT_S for taken in seconds):
        start = time.thread_time()
        result = call()
        seconds.append(time.thread_time() - start)
    assert min(seconds) < LIMIT_S, (what, seconds)
    return result


def long_texts(piece, around=WRAPS):
    return [before + piece * (LONG // len(piece)) + after for before, after in around]


@pytest.mark.parametrize("piece", KNOWN)
def test_no_reward_takes_long_for_a_long_answer(piece):
    for raw in long_texts(piece):
        check_time(raw)


@pytest.mark.parametrize("name", NAMES)
def test_a_megabyte_is_read_up_to_a_limit(name):
    check_time("<think>t</think><answer>" + "\ufdfa\u0327\u0301" * 333_333 + "</answer>", [name])


@pytest.mark.campaign
@pytest.mark.parametrize("piece", PIECES)
def test_no_reward_takes_long_for_any_long_answer(piece):
    rng = random.Random(repr(piece))
    mixed = "".join(rng.choices([piece, piece, *rng.sample(PIECES, 3), f"{rng.random():.3f}"], k=1000))
    inner = [(f"{WRAPS[1][0]}{before}", f"{after}{WRAPS[1][1]}") for before, after in INNER]
    for raw in (*long_texts(piece, (*WRAPS, *inner)), *long_texts(mixed)):
        check_time(raw)


def random_texts(n, seed):
    """Seeded texts of the pieces above, and of single characters: cheaper by far than drawing each by hypothesis."""
    rng = random.Random(seed)
    for _ in range(n):
        if rng.random() < 0.2:
            yield "".join(chr(rng.randrange(0x3000)) for _ in range(rng.randrange(40)))
        else:
            yield "".join(rng.choices(WORDS, k=rng.randrange(20)))


@pytest.mark.campaign
@pytest.mark.parametrize("name", NAMES)
def test_rewards_stay_in_their_range_on_100_000_texts(name):
    for number, text in enumerate(random_texts(100_000, seed=len(name))):
        check_rewards(text, [name])
        if number % 500 == 0 and text:
            check_time(text * (LONG // len(text)), [name])
