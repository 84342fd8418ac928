"""Rollouts of models with recurrent layers: a state per answer, picked when answers are dropped."""

import pytest
import torch
import zoo
from support import answered

from vlm_r1.models.packing import pack
from vlm_r1.records import RolloutGroup, SamplingParams
from vlm_r1.rl.batch import as_prefix_group
from vlm_r1.rollout import decoding
from vlm_r1.rollout.cache import DecodeCache, Prefill
from vlm_r1.rollout.concurrency import Piece
from vlm_r1.rollout.decoding import decode
from vlm_r1.rollout.native import NativeEngine

NAMES = ["qwen3_5", "qwen3_5_moe"]


@pytest.fixture(scope="module", params=NAMES)
def entry(request):
    return zoo.zoo()[request.param]


@pytest.fixture(scope="module")
def folder(entry, tmp_path_factory):
    found = tmp_path_factory.mktemp("recurrent")
    entry.build(found)
    return found


@pytest.fixture
def loaded(folder):
    """Every eighth token ends an answer, so that answers end at different lengths."""
    found = zoo.load(folder)
    found.policy.model.generation_config.eos_token_id = list(range(11, 400, 8))
    return found


def prompts(loaded, entry):
    return [loaded.family.encode(s) for s in zoo.samples(entry)]


@pytest.mark.parametrize("share", [0.0, 2.0], ids=["dropped-at-once", "never-dropped"])
def test_log_probs_are_exact_while_answers_are_dropped(monkeypatch, folder, entry, loaded, share):
    monkeypatch.setattr(decoding, "DROP_SHARE", share)
    kept = []
    keep = DecodeCache.keep
    monkeypatch.setattr(DecodeCache, "keep", lambda self, rows: kept.append(len(rows)) or keep(self, rows))
    groups = answered(loaded, prompts(loaded, entry), 4, seed=2, max_new_tokens=12)
    lengths = {len(r.token_ids) for g in groups for r in g.rollouts}
    assert len(lengths) > 3 and bool(kept) == (share == 0.0)
    recorded = torch.tensor([lp for g in groups for r in g.rollouts for lp in r.logprobs])
    with torch.no_grad():
        expected = zoo.plain_logprobs(zoo.plain(folder, entry), loaded, groups)
    torch.testing.assert_close(recorded, expected, atol=2e-5, rtol=0)


def test_decoding_leaves_the_prompts_states_as_they_were_and_the_update_agrees(entry, loaded):
    encoded = prompts(loaded, entry)
    with torch.no_grad():
        prefill = Prefill(loaded.policy, encoded)
    before = {layer: (s.conv.clone(), s.memory.clone()) for layer, s in prefill.states.items()}
    sampling = SamplingParams(max_new_tokens=9, seed=(3,))
    stop = NativeEngine(loaded).stopping(["</answer>"])
    rollouts = decode(loaded, Piece(prompts=tuple(encoded), first=0, count=3), prefill, sampling, stop)
    assert before
    for layer, (conv, memory) in before.items():
        assert torch.equal(prefill.states[layer].conv, conv) and torch.equal(prefill.states[layer].memory, memory)
    groups = [RolloutGroup(prompt=p, rollouts=tuple(rollouts[3 * i : 3 * i + 3])) for i, p in enumerate(encoded)]
    logprobs, _ = loaded.policy(pack([as_prefix_group(g) for g in groups]), 1.0)
    recorded = torch.tensor([lp for r in rollouts for lp in r.logprobs])
    torch.testing.assert_close(logprobs.detach(), recorded, atol=2e-5, rtol=0)


def test_a_rollout_runs_the_prompts_once_through_each_recurrent_layer(entry, loaded):
    encoded = prompts(loaded, entry)
    layers = [one.linear_attn for one in loaded.policy.model.model.language_model.layers if hasattr(one, "linear_attn")]
    shapes = []
    layers[1].in_proj_qkv.register_forward_hook(lambda _, args, out: shapes.append(tuple(out.shape[:2])))
    answered(loaded, encoded, 4, seed=4, max_new_tokens=5, stop_at_answer=False)
    assert shapes[0] == (len(encoded), max(len(p.token_ids) for p in encoded))
    assert 1 < len(shapes) <= 5 and {length for _, length in shapes[1:]} == {1}
    assert all(rows <= 4 * len(encoded) for rows, _ in shapes[1:])
