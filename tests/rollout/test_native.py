"""Rollouts: equal to transformers' own generation, to the update's log-probs, and to themselves."""

import dataclasses
import gc
import weakref

import pytest
import torch
from support import (
    FAMILIES,
    answered,
    bytes_tokenizer,
    mixed_prompts,
    plain_inputs,
    plain_logprobs,
    plain_model,
    row_of,
    tiny,
)

from vlm_r1.config import ModelConfig, PromptConfig, ScenesSource
from vlm_r1.data.scenes import load_scenes
from vlm_r1.models.load import load_policy
from vlm_r1.rl.batch import as_prefix_group
from vlm_r1.rollout import decoding


def tokens(groups) -> list[tuple[int, ...]]:
    return [r.token_ids for g in groups for r in g.rollouts]


STOPS = list(range(11, 400, 8))


def eager_to_stop(loaded):
    """Let every eighth token end an answer, so that answers end at different lengths."""
    loaded.policy.model.generation_config.eos_token_id = STOPS
    return loaded


@pytest.mark.parametrize("family", FAMILIES)
def test_recorded_logprobs_equal_the_updates_and_the_padded_forwards(device, family):
    loaded = eager_to_stop(tiny(family, device=device))
    settings = {"max_new_tokens": 14, "temperature": 0.9}
    groups = answered(loaded, mixed_prompts(loaded), 5, seed=3, **settings)
    lengths = {len(ids) for ids in tokens(groups)}
    assert len(lengths) > 3
    recorded = torch.tensor([x for g in groups for r in g.rollouts for x in r.logprobs])
    update, _ = loaded.policy(row_of(loaded, groups), 0.9)
    torch.testing.assert_close(recorded, update.detach().cpu(), atol=1e-5, rtol=0)
    with torch.no_grad():
        plain = plain_logprobs(plain_model(loaded), groups, loaded.policy.suppressed, 0.9)
    torch.testing.assert_close(recorded, plain, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_equals_transformers_own_generation(device, family):
    loaded = eager_to_stop(tiny(family, device=device))
    prompts = mixed_prompts(loaded)
    settings = {"max_new_tokens": 12, "stop_at_answer": False}
    ours = tokens(answered(loaded, prompts, 1, seed=None, **settings))
    model, eos = plain_model(loaded), [*STOPS, loaded.tokenizer.eos_token_id]
    for prompt, answer in zip(prompts, ours, strict=True):
        inputs = plain_inputs(model, [prompt], [()], pad=0)
        suppressed = loaded.policy.suppressed.tolist()
        out = model.generate(**inputs, do_sample=False, max_new_tokens=12, suppress_tokens=suppressed, eos_token_id=eos)
        assert tuple(out[0, len(prompt.token_ids) :].tolist()) == answer


@pytest.mark.parametrize("stop_at_answer", [True, False])
def test_the_end_of_turn_token_is_sampled_and_trained_unless_the_answer_ends_before_it(stop_at_answer):
    loaded = load_policy(ModelConfig(path="tiny", precision="float32"), PromptConfig(template="plain"))
    samples = load_scenes(ScenesSource(split="in_domain", n=4))[:]
    prompts = [loaded.family.encode(sample) for sample in samples]
    groups = answered(loaded, prompts, 1, seed=None, max_new_tokens=64, stop_at_answer=stop_at_answer)
    for group in groups:
        [rollout] = group.rollouts
        trained = as_prefix_group(group).completions[0].token_ids
        assert rollout.finish == "stop" and rollout.text.endswith("</answer>")
        assert len(rollout.logprobs) == len(rollout.token_ids) == len(trained)
        ends = [token == loaded.family.end_token_id for token in trained.tolist()]
        assert ends == [False] * (len(ends) - 1) + [not stop_at_answer]


def test_a_seed_gives_the_same_answers_and_another_seed_others():
    loaded = tiny()
    prompts, settings = mixed_prompts(loaded), {"max_new_tokens": 8}
    first, again, other = (answered(loaded, prompts, 3, seed=s, **settings) for s in (1, 1, 2))
    assert tokens(first) == tokens(again) != tokens(other)
    assert [r.logprobs for g in first for r in g.rollouts] == [r.logprobs for g in again for r in g.rollouts]


def test_sampling_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    loaded = tiny()
    answered(loaded, mixed_prompts(loaded)[:1], 2, seed=9, max_new_tokens=3)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("seed", [None, 4], ids=["greedy", "sampled"])
def test_banned_tokens_are_never_written_even_with_huge_logits(seed):
    loaded = tiny()
    with torch.no_grad():
        head = loaded.policy.model.lm_head
        head.weight[loaded.policy.suppressed] *= 1000
    groups = answered(loaded, mixed_prompts(loaded), 4, seed=seed, max_new_tokens=10)
    written = {i for ids in tokens(groups) for i in ids}
    assert written and not written & set(loaded.policy.suppressed.tolist())


@pytest.mark.parametrize("share", [0.0, 0.5, 2.0])
def test_dropping_finished_answers_changes_no_answer(monkeypatch, share):
    loaded = eager_to_stop(tiny())
    prompts, settings = mixed_prompts(loaded), {"max_new_tokens": 14}
    monkeypatch.setattr(decoding, "DROP_SHARE", 2.0)
    kept = answered(loaded, prompts, 2, seed=None, **settings)
    monkeypatch.setattr(decoding, "DROP_SHARE", share)
    dropped = answered(loaded, prompts, 2, seed=None, **settings)
    assert tokens(kept) == tokens(dropped)
    assert len({len(ids) for ids in tokens(kept)}) > 1


def test_logprobs_stay_exact_while_answers_are_dropped(monkeypatch):
    monkeypatch.setattr(decoding, "DROP_SHARE", 0.0)
    loaded = eager_to_stop(tiny())
    groups = answered(loaded, mixed_prompts(loaded), 6, seed=11, max_new_tokens=14)
    recorded = torch.tensor([x for g in groups for r in g.rollouts for x in r.logprobs])
    update, _ = loaded.policy(row_of(loaded, groups))
    torch.testing.assert_close(recorded, update.detach(), atol=1e-5, rtol=0)


def test_finish_says_how_an_answer_ended_and_the_stop_token_is_kept():
    loaded = eager_to_stop(tiny())
    settings = {"max_new_tokens": 9}
    groups = answered(loaded, mixed_prompts(loaded), 6, seed=5, **settings)
    tag = loaded.tokenizer.convert_tokens_to_ids("</answer>")
    stops = {*STOPS, loaded.tokenizer.eos_token_id, tag}
    rollouts = [r for g in groups for r in g.rollouts]
    assert {r.finish for r in rollouts} == {"stop", "length"}
    for rollout in rollouts:
        assert len(rollout.logprobs) == len(rollout.token_ids) <= 9
        assert not stops & set(rollout.token_ids[:-1])
        assert (rollout.token_ids[-1] in stops) == (rollout.finish == "stop")
        assert rollout.finish == "stop" or len(rollout.token_ids) == 9


def force(monkeypatch, loaded, script: list[list[int]]) -> None:
    """Let row i write script[i], whatever the model says; without dropping, so that rows keep their places."""
    monkeypatch.setattr(decoding, "DROP_SHARE", 2.0)
    step = iter(range(1000))

    def scripted(logprobs_BV, settings, u_B):
        n = next(step)
        return torch.tensor([row[min(n, len(row) - 1)] for row in script])

    monkeypatch.setattr(decoding, "choose", scripted)


def test_a_tag_in_one_token_stops_its_row_alone(monkeypatch):
    loaded = tiny()
    one = loaded.tokenizer("<answer>5</answer>", add_special_tokens=False)["input_ids"]
    two = loaded.tokenizer("<answer>512 34", add_special_tokens=False)["input_ids"]
    force(monkeypatch, loaded, [one, two])
    group = answered(loaded, mixed_prompts(loaded)[:1], 2, seed=0, max_new_tokens=6)[0]
    assert next(r.text for r in group.rollouts) == "<answer>5</answer>"
    assert [r.finish for r in group.rollouts] == ["stop", "length"]
    assert group.rollouts[0].token_ids == tuple(one) and len(group.rollouts[1].token_ids) == 6


def test_a_tag_in_several_tokens_stops_a_model_whose_tokenizer_has_none(monkeypatch):
    loaded = tiny()
    prompts = mixed_prompts(loaded)[:1]
    tokenizer = bytes_tokenizer()
    processor = type("Processor", (), {"tokenizer": tokenizer})()
    loaded = dataclasses.replace(loaded, processor=processor)
    loaded.policy.model.generation_config.eos_token_id = tokenizer.eos_token_id
    script = [tokenizer(t, add_special_tokens=False)["input_ids"] for t in ("<answer>5</answer>x", "a</answer>yzzzzz")]
    force(monkeypatch, loaded, script)
    group = answered(loaded, prompts, 2, seed=0, max_new_tokens=30)[0]
    assert [r.text for r in group.rollouts] == ["<answer>5</answer>", "a</answer>"]
    assert [r.finish for r in group.rollouts] == ["stop", "stop"]


def test_one_token_is_the_shortest_rollout():
    loaded = tiny()
    groups = answered(loaded, mixed_prompts(loaded), 2, seed=0, max_new_tokens=1)
    assert all(len(ids) == 1 for ids in tokens(groups))
    assert all(r.finish == "length" for g in groups for r in g.rollouts)


def test_a_cache_is_gone_when_its_rollout_is(device, monkeypatch):
    """Not when garbage is collected: the next rollout, or the update, needs the memory."""
    made = []

    def watched(*args, **kwargs):
        cache = decode_cache(*args, **kwargs)
        made.append(weakref.ref(cache))
        return cache

    decode_cache = decoding.decode_cache
    monkeypatch.setattr(decoding, "decode_cache", watched)
    loaded = tiny("qwen3_vl", device=device)
    gc.disable()
    try:
        answered(loaded, mixed_prompts(loaded), 3, seed=0, max_new_tokens=4)
        assert made and all(cache() is None for cache in made)
    finally:
        gc.enable()
