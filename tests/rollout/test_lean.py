"""Lean decoder layers: which families have them, that they are the model's own layers, and what they leave alone."""

import pytest
import torch
import zoo
from support import answered, attending, mixed_prompts, tiny

from vlm_r1.config import LoraConfig, TrainConfig
from vlm_r1.models.adapters import adapt
from vlm_r1.models.freeze import freeze
from vlm_r1.rollout import decoding
from vlm_r1.rollout.cache import DenseCache, FlashCache
from vlm_r1.rollout.lean import LeanLayers

ZOO = zoo.zoo()
FIT = {
    "idefics3",
    "internvl",
    "llava",
    "llava_next",
    "llava_onevision",
    "qwen2_5_vl",
    "qwen2_vl",
    "qwen3_vl",
    "smolvlm",
}
"""Those whose decoder is Llama's, Mistral's or Qwen's without experts: where a release of transformers calls their
layers otherwise, decoding would get slower without a word."""


@pytest.fixture(scope="module", params=ZOO)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def folder(tmp_path_factory, name):
    return zoo.built(name, tmp_path_factory.mktemp("zoo"))


def test_the_common_decoders_fit_and_the_others_do_not(name, folder):
    assert LeanLayers.fit(zoo.load(folder).policy) == (name in FIT)


def rolled(loaded, prompts, monkeypatch, *, lean: bool, **settings):
    """Rollouts with or without lean layers, and how often a step ran in them."""
    calls, call = [], LeanLayers.__call__
    with monkeypatch.context() as patch:
        patch.setattr(LeanLayers, "__call__", lambda self, *args: calls.append(1) or call(self, *args))
        if not lean:
            patch.setattr(LeanLayers, "fit", staticmethod(lambda policy: False))
        groups = answered(loaded, prompts, 4, max_new_tokens=9, temperature=0.9, **settings)
    assert bool(calls) == lean
    return [rollout for group in groups for rollout in group.rollouts]


def assert_same(ours, theirs):
    assert [r.token_ids for r in ours] == [r.token_ids for r in theirs]
    found, expected = (torch.tensor([x for r in rollouts for x in r.logprobs]) for rollouts in (ours, theirs))
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("backend", ["sdpa", "flash"])
@pytest.mark.parametrize("seed", [None, 5])
def test_they_record_what_the_models_own_layers_do(monkeypatch, name, folder, seed, backend):
    if name not in FIT:
        return
    loaded = attending(zoo.load(folder), backend)
    if seed is not None:  # answers end early
        loaded.policy.model.generation_config.eos_token_id = list(range(11, 250, 6))
    monkeypatch.setattr(decoding, "DROP_SHARE", 0.0)
    kept = []
    for kind in (DenseCache, FlashCache):
        keep = kind.keep
        monkeypatch.setattr(kind, "keep", lambda self, rows, keep=keep: kept.append(type(self)) or keep(self, rows))
    prompts = [loaded.family.encode(s) for s in zoo.samples(ZOO[name])]
    ours, theirs = (rolled(loaded, prompts, monkeypatch, lean=lean, seed=seed) for lean in (True, False))
    assert_same(ours, theirs)
    assert seed is None or set(kept) == {FlashCache if backend == "flash" else DenseCache}


def test_layers_of_a_size_that_are_not_joined_are_the_same(monkeypatch):
    loaded = tiny("qwen2_5_vl")
    prompts = mixed_prompts(loaded)
    theirs = rolled(loaded, prompts, monkeypatch, lean=False, seed=1)
    monkeypatch.setattr("vlm_r1.rollout.lean.JOINED", 0)
    assert_same(rolled(loaded, prompts, monkeypatch, lean=True, seed=1), theirs)


def test_joined_layers_take_over_new_weights(monkeypatch):
    """An update between two rollouts: what is joined is joined anew."""
    loaded = tiny()
    prompts = mixed_prompts(loaded)[:2]
    before = rolled(loaded, prompts, monkeypatch, lean=True, seed=1)
    with torch.no_grad():
        for parameter in loaded.policy.parameters():
            parameter.mul_(1.3)
    after = rolled(loaded, prompts, monkeypatch, lean=True, seed=1)
    assert_same(after, rolled(loaded, prompts, monkeypatch, lean=False, seed=1))
    assert [r.logprobs for r in before] != [r.logprobs for r in after]


def test_adapters_run_in_the_models_own_layers(monkeypatch, model_folder):
    loaded, train = zoo.load(model_folder), TrainConfig(language="lora")
    freeze(loaded.family, train)
    adapt(loaded.family, train, LoraConfig(rank=2), seed=0)
    assert not LeanLayers.fit(loaded.policy)
    rolled(loaded, mixed_prompts(loaded)[:1], monkeypatch, lean=False, seed=1)


@pytest.mark.parametrize("part", ["self_attn.q_proj", "mlp", "input_layernorm", ""])
@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_hooks_run_in_the_models_own_layers(part, register):
    policy = tiny().policy
    assert LeanLayers.fit(policy)
    layer = policy.model.model.get_decoder().layers[1]
    handle = getattr(layer.get_submodule(part), register)(lambda *args: None)
    assert not LeanLayers.fit(policy)
    handle.remove()
    assert LeanLayers.fit(policy)


def test_a_layer_of_another_kind_among_them_runs_the_models_own():
    policy = tiny().policy
    decoder = policy.model.model.get_decoder()
    mlp = decoder.layers[1].mlp
    mlp.up_proj = torch.nn.Sequential(mlp.up_proj)
    assert not LeanLayers.fit(policy)
    del mlp.up_proj
    assert not LeanLayers.fit(policy)
