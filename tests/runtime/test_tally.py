"""Metrics do not depend on how many processes the answers of a step are spread over."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import made_up, mixed_prompts, tiny

from vlm_r1.config import RewardConfig
from vlm_r1.prompts.parse import read_answer
from vlm_r1.records import Score
from vlm_r1.rewards.rubric import Rubric
from vlm_r1.rl.batch import EMPTY
from vlm_r1.rl.experience import Experience
from vlm_r1.rl.metrics import experience_tally
from vlm_r1.runtime.tally import Tally, maxima, merged


def test_means_totals_and_extremes_by_hand():
    first, second = Tally(), Tally()
    first.mean("reward", 3.0, 4)
    first.mean("reward", 1.0, 1)
    second.mean("reward", 2.0, 5)
    second.mean("kl", 0.0, 0)
    first.total("tokens", 10)
    second.total("tokens", 5)
    first.maximum("length", 3)
    second.maximum("length", 7)
    first.minimum("ratio", 0.5)
    second.minimum("ratio", 0.25)
    expected = {"reward": 6.0 / 10, "tokens": 15.0, "length": 7.0, "ratio": 0.25}
    assert merged([first, second]).values() == expected  # a mean of nothing is left out
    assert merged([]).values() == {}
    assert merged([maxima({"time/a_s": 1.0}), maxima({"time/a_s": 3.0, "time/b_s": 2.0})]).values() == {
        "time/a_s": 3.0,
        "time/b_s": 2.0,
    }


def test_merging_leaves_the_parts_as_they_were():
    first, second = Tally(), Tally()
    first.mean("a", 1.0, 1)
    second.mean("a", 3.0, 1)
    whole = merged([first, second])
    whole.mean("a", 100.0, 1)
    assert (first.values(), second.values()) == ({"a": 1.0}, {"a": 3.0})


VALUES = st.floats(-1e3, 1e3, width=32)
ENTRIES = st.lists(st.tuples(st.sampled_from(["mean", "total", "maximum", "minimum"]), st.sampled_from("xyz"), VALUES))


def tallied(entries) -> Tally:
    tally = Tally()
    for kind, name, value in entries:
        arguments = (value, 1) if kind == "mean" else (value,)
        getattr(tally, kind)(f"{kind}/{name}", *arguments)
    return tally


@given(ENTRIES, st.lists(st.integers(0, 3)), st.randoms())
def test_any_partition_gives_the_numbers_of_all(entries, places, random):
    shares = [[], [], [], []]
    for number, entry in enumerate(entries):
        shares[places[number % len(places)] if places else 0].append(entry)
    random.shuffle(shares)
    found, expected = merged([tallied(share) for share in shares]).values(), {}
    for kind, name, _ in entries:
        mine = [value for k, n, value in entries if (k, n) == (kind, name)]
        reduce = {"mean": lambda x: sum(x) / len(x), "total": sum, "maximum": max, "minimum": min}[kind]
        expected[f"{kind}/{name}"] = reduce(mine)
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-6)


LOADED = tiny()
PROMPTS = mixed_prompts(LOADED)
TEXTS = (
    "<think>a</think><answer>[100, 100, 500, 700]</answer>",
    "<think>a</think><answer>[100, 100, 500, 700], [100, 100, 500, 700]</answer>",
    "<think>a</think><answer>[500, 700, 100, 100]</answer>",
    "no tags at all",
    "<answer>left</answer>",
)
ANSWERED = st.lists(
    st.lists(
        st.tuples(st.sampled_from(TEXTS), st.integers(1, 9), st.none() | st.floats(-2, 2, width=32), st.booleans()),
        min_size=3,
        max_size=3,
    ),
    max_size=6,
)


def experience_of(numbered) -> Experience:
    """Groups of three answers, each with a text, a length, a reward and whether it was cut; with prompts' numbers."""
    groups, answers, scores, shadows = [], [], [], []
    rows = [row for _, row in numbered]
    for number, row in numbered:
        prompt = PROMPTS[number % len(PROMPTS)]
        group = made_up(LOADED, prompt, [length for _, length, _, _ in row], number)
        groups.append(group)
        answers.append(
            [read_answer(text, prompt.sample, prompt.box_map, n_tokens=n, truncated=cut) for text, n, _, cut in row]
        )
        scores.append([Score(total=reward, parts={"iou": reward, "format": 1.0}) for _, _, reward, _ in row])
        shadows.append([{"length": None if cut else float(n)} for _, n, _, cut in row])
    rewards = torch.tensor([[float("nan") if r is None else r for _, _, r, _ in row] for row in rows]).view(-1, 3)
    return Experience(
        groups=groups,
        answers=answers,
        scores=scores,
        shadows=shadows,
        rewards_PG=rewards,
        advantages_PG=torch.zeros(rewards.shape),
    )


def tally_of(numbered) -> Tally:
    return experience_tally(experience_of(numbered), EMPTY, Rubric(RewardConfig(parts={"format": 1.0})))


@settings(deadline=None, max_examples=40)
@given(ANSWERED, st.lists(st.integers(0, 2), min_size=6, max_size=6))
def test_the_metrics_of_a_step_do_not_depend_on_which_process_holds_its_groups(rows, places):
    numbered = list(enumerate(rows))
    shares = [[pair for pair, place in zip(numbered, places, strict=False) if place == rank] for rank in range(3)]
    found = merged([tally_of(share) for share in shares]).values()
    assert found == pytest.approx(tally_of(numbered).values(), rel=1e-6, abs=1e-6)


def test_the_metrics_of_a_step_by_hand():
    good, _, _, nothing, left = TEXTS
    rows = [
        [(good, 2, 1.0, False), (good, 4, 0.0, False), (left, 6, None, True)],
        [(nothing, 1, 0.5, False), (good, 1, 0.5, False), (good, 1, 0.5, False)],
    ]
    found = merged([tally_of([(0, rows[0])]), tally_of([]), tally_of([(1, rows[1])])]).values()
    assert found["reward"] == pytest.approx((1 + 0 + 0.5 * 3) / 5)
    assert found["reward_std"] == pytest.approx((0.5**0.5 + 0) / 2)  # of 1 and 0; of equal ones
    assert found["frac_reward_zero_std"] == 0.5
    assert found["completions/mean_length"] == 15 / 6 and found["completions/max_length"] == 6
    assert found["answers/truncated"] == 1 / 6 and found["score/not_scorable"] == 1 / 6
    assert found["rewards/iou/mean"] == pytest.approx(2.5 / 5) and found["rewards/format/mean"] == 1.0
    assert found["shadow/length/mean"] == pytest.approx((2 + 4 + 1 + 1 + 1) / 5)
    assert found["tokens/answer"] == 15
    assert found["tokens/prompt"] == sum(len(PROMPTS[n].token_ids) for n in (0, 1))
    assert found["boxes/pred_per_true"] == 1.0 and found["parse/failed"] == 2 / 6
    json.dumps(found, allow_nan=False)
