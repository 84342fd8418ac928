"""Rollouts of models with recurrent layers: a state per answer, picked when answers are dropped."""

import pytest
import torch
import zoo

from vlm_r1.config import RolloutConfig
from vlm_r1.models.packing import pack
from vlm_r1.rl.batch import TrainBatch, group_tree
from vlm_r1.rollout import native
from vlm_r1.rollout.cache import DecodeCache, Prefill
from vlm_r1.rollout.native import decode, generate
from vlm_r1.rollout.resume import continued_row

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
    monkeypatch.setattr(native, "DROP_SHARE", share)
    kept = []
    keep = DecodeCache.keep
    monkeypatch.setattr(DecodeCache, "keep", lambda self, rows: kept.append(len(rows)) or keep(self, rows))
    answered = generate(loaded, prompts(loaded, entry), 4, RolloutConfig(max_new_tokens=12), seed=2)
    lengths = {len(r.token_ids) for g in answered for r in g.rollouts}
    assert len(lengths) > 3 and bool(kept) == (share == 0.0)
    recorded = torch.tensor([lp for g in answered for r in g.rollouts for lp in r.logprobs])
    with torch.no_grad():
        expected = zoo.plain_logprobs(zoo.plain(folder, entry), loaded, answered)
    torch.testing.assert_close(recorded, expected, atol=2e-5, rtol=0)


def test_the_update_goes_on_from_the_rollouts_states(entry, loaded):
    encoded = prompts(loaded, entry)
    prefill = Prefill(loaded.policy, encoded)
    before = {layer: (s.conv.detach().clone(), s.memory.detach().clone()) for layer, s in prefill.states.items()}
    answered = decode(loaded, encoded, prefill, 3, RolloutConfig(max_new_tokens=9), seed=3)
    for layer, (conv, memory) in before.items():
        assert torch.equal(prefill.states[layer].conv, conv) and torch.equal(prefill.states[layer].memory, memory)
    trees = tuple(group_tree(g) for g in answered)
    numbers = tuple(range(len(trees)))
    nothing = torch.zeros(0)
    batch = TrainBatch(trees=trees, advantages_B=nothing, weights_B=nothing, group_numbers=numbers)
    logprobs, _ = continued_row(loaded.policy, prefill, batch, pack(trees), 1.0)
    recorded = torch.tensor([lp for g in answered for r in g.rollouts for lp in r.logprobs])
    torch.testing.assert_close(logprobs.detach(), recorded, atol=2e-5, rtol=0)


def test_a_rollout_runs_the_prompts_once_through_each_recurrent_layer(entry, loaded):
    encoded = prompts(loaded, entry)
    layers = [one.linear_attn for one in loaded.policy.model.model.language_model.layers if hasattr(one, "linear_attn")]
    shapes = []
    layers[1].in_proj_qkv.register_forward_hook(lambda _, args, out: shapes.append(tuple(out.shape[:2])))
    generate(loaded, encoded, 4, RolloutConfig(max_new_tokens=5, stop_at_answer=False), seed=4)
    assert shapes[0] == (len(encoded), max(len(p.token_ids) for p in encoded))
    assert 1 < len(shapes) <= 5 and {length for _, length in shapes[1:]} == {1}
    assert all(rows <= 4 * len(encoded) for rows, _ in shapes[1:])
