"""Groups in a checkpoint: what comes back is what was kept, to the last bit."""

import json

from hypothesis import given
from hypothesis import strategies as st
from support import mixed_prompts, tiny

from vlm_r1.records import Rollout, RolloutGroup, SamplingParams
from vlm_r1.rl.buffer import group_of, group_row

PROMPT = mixed_prompts(tiny())[2]
LOGPROBS = st.floats(max_value=0, allow_nan=False, allow_infinity=False)


@st.composite
def rollouts(draw):
    tokens = draw(st.lists(st.tuples(st.integers(0, 2**31 - 1), LOGPROBS), max_size=5))
    ids, logprobs = zip(*tokens, strict=True) if tokens else ((), ())
    finish, version = draw(st.sampled_from(["stop", "length"])), draw(st.integers(0, 9))
    return Rollout(token_ids=ids, logprobs=logprobs, text=draw(st.text(max_size=5)), finish=finish, version=version)


@given(st.lists(rollouts(), max_size=4))
def test_a_group_comes_back_as_it_was(found):
    sampling = SamplingParams(seed=(0, 7), max_new_tokens=5)
    group = RolloutGroup(prompt=PROMPT, rollouts=tuple(found), sampling=sampling)
    row = json.loads(json.dumps(group_row(7, group)))
    assert (row["step"], row["number"], row["sample_id"]) == (7, 2, PROMPT.sample.id)
    back = group_of(row, PROMPT, sampling)
    assert back.rollouts == group.rollouts and back.prompt is PROMPT and back.sampling == sampling
    assert all(type(token) is int for rollout in back.rollouts for token in rollout.token_ids)


def test_a_large_step_takes_a_few_megabytes():
    rollout = Rollout(token_ids=tuple(range(500)), logprobs=(-0.123456789,) * 500, text="word " * 400, finish="stop")
    group = RolloutGroup(prompt=PROMPT, rollouts=(rollout,) * 8)
    assert len(json.dumps(group_row(0, group))) < 500 * 8 * 21
