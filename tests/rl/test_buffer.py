"""Groups in a checkpoint: what comes back is what was kept, to the last bit."""

import json
from dataclasses import replace

import torch
from hypothesis import given
from hypothesis import strategies as st
from support import mixed_prompts, noise_image, tiny

from vlm_r1.records import Rollout, RolloutGroup, SamplingParams, ToolCall
from vlm_r1.rl.buffer import group_of, group_row

LOADED = tiny()
PROMPT = mixed_prompts(LOADED)[2]
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
    back = group_of(row, PROMPT, sampling, LOADED.family)
    assert back.rollouts == group.rollouts and back.prompt is PROMPT and back.sampling == sampling
    assert all(type(token) is int for rollout in back.rollouts for token in rollout.token_ids)


def test_a_large_step_takes_a_few_megabytes():
    rollout = Rollout(token_ids=tuple(range(500)), logprobs=(-0.123456789,) * 500, text="word " * 400, finish="stop")
    group = RolloutGroup(prompt=PROMPT, rollouts=(rollout,) * 8)
    assert len(json.dumps(group_row(0, group))) < 500 * 8 * 21


def test_turns_of_tools_come_back_with_their_images_processed_again():
    turns, position = [], PROMPT.next_position
    for at, images, ended in ((3, [noise_image(32, 48)], False), (7, [], True), (9, [noise_image(40, 24)] * 2, False)):
        turn = LOADED.family.tool_turn(PROMPT.sample, images, f"at {at}", position=position + at, ended=ended)
        call = ToolCall(
            text="<tool>", reply=f"at {at}", failure="timeout" * ended, images=tuple(images), box=(1, 2, 3, 4)
        )
        turns.append(replace(turn, at=at, call=call))
        position = turn.next_position
    ids = (*(1,) * 6, LOADED.family.end_token_id, *(1,) * 5)  # the second turn is after the end of the model's own
    with_turns = Rollout(token_ids=ids, logprobs=(-0.5,) * 12, text="", finish="stop", turns=tuple(turns), score=0.25)
    plain = Rollout(token_ids=(2,), logprobs=(-0.5,), text="", finish="stop")
    group = RolloutGroup(prompt=PROMPT, rollouts=(plain, with_turns))
    row = json.loads(json.dumps(group_row(7, group)))
    back = group_of(row, PROMPT, SamplingParams(max_new_tokens=5, max_calls=3), LOADED.family).rollouts
    assert back[0] == plain and back[1].score == 0.25
    for old, new in zip(turns, back[1].turns, strict=True):
        assert torch.equal(old.positions, new.positions)
        for name in ("at", "token_ids", "unexpanded", "next_position"):
            assert getattr(new, name) == getattr(old, name)
        for name in ("text", "reply", "failure"):
            assert getattr(new.call, name) == getattr(old.call, name)
        for ours, theirs in zip(new.images, old.images, strict=True):
            assert all(torch.equal(ours.tensors[name], theirs.tensors[name]) for name in theirs.tensors)
