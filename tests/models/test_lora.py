"""Adapters on every family: the plain padded forward of peft's own model is what everything is compared with."""

import json

import peft
import pytest
import torch
import zoo
from support import PLAIN, assert_same_gradients, gradients, row_of
from torch import nn

from vlm_r1.config import LoraConfig, ModelConfig, TrainConfig
from vlm_r1.errors import ConfigError, ModelError
from vlm_r1.models.adapters import VARIANTS, adapt, linear_layers, switched, trained_parameters
from vlm_r1.models.freeze import freeze
from vlm_r1.models.load import load_policy
from vlm_r1.runtime.export import export
from vlm_r1.runtime.model_folder import save_model

ZOO = zoo.zoo()
LANGUAGE = TrainConfig(language="lora")
EVERYWHERE = TrainConfig(vision="lora", connector="lora", language="lora")
PEFT_READS_AS_EXPERTS = {"glm4v_moe"}
"""Dense gate, up and down projections beside experts of the same names: peft cannot address them."""


@pytest.fixture(scope="module", params=ZOO)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def folder(tmp_path_factory, name):
    return zoo.built(name, tmp_path_factory.mktemp("zoo"))


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    return zoo.built("qwen3_vl", tmp_path_factory.mktemp("lora"))


def adapted(folder, train=LANGUAGE, device="cpu", **lora):
    """The model with an adapter that says something: its second matrices start at zero and are moved."""
    loaded = zoo.load(folder)
    freeze(loaded.family, train)
    adapt(loaded.family, train, LoraConfig(rank=4, **lora), seed=3)
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in loaded.policy.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    loaded.policy.to(device)
    return loaded


def saved(loaded, target):
    target.mkdir()
    save_model(target, loaded.policy.model, loaded.processor, loaded.family.settings)
    return target


def logprobs(loaded):
    with torch.no_grad():
        return loaded.policy(row_of(loaded, zoo.groups(loaded, ZOO["qwen3_vl"])))[0]


def of_adapter(found: dict) -> dict:
    return {key.split("base_model.model.")[-1]: value for key, value in found.items() if "lora_" in key}


def test_the_packed_update_equals_the_plain_one_of_peft(record_property, tmp_path, device, folder, name):
    entry, bare = ZOO[name], zoo.load(folder)
    parts = {part: "lora" if linear_layers(bare.family, [part]) else "frozen" for part in bare.family.modules()}
    loaded = adapted(folder, TrainConfig(**parts), device)
    adapter = saved(loaded, tmp_path / "adapter")
    model = peft.PeftModel.from_pretrained(zoo.plain(folder, entry, device), adapter, is_trainable=True)
    answered = zoo.groups(loaded, entry)
    expected = zoo.plain_logprobs(model, loaded, answered, 0.8)
    found = loaded.policy(row_of(loaded, answered), 0.8)[0].cpu()
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)
    weights = torch.randn(len(expected), generator=torch.Generator().manual_seed(5))
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    ours, theirs = of_adapter(gradients(loaded.policy)), of_adapter(gradients(model))
    adapters = [n for n, m in loaded.policy.model.named_modules() if hasattr(m, "lora_A")]
    assert len(ours) == 2 * len(adapters)
    if name not in PEFT_READS_AS_EXPERTS:
        assert len(adapters) == sum(len(linear_layers(bare.family, [part])) for part in parts if parts[part] == "lora")
    record_property("lora_difference", assert_same_gradients(ours, theirs))
    plain_folder = tmp_path / "plain"
    export(adapter, plain_folder, merge=True)
    with torch.no_grad():
        merged = zoo.plain_logprobs(zoo.plain(plain_folder, entry, device), loaded, answered, 0.8)
    torch.testing.assert_close(merged, expected.detach(), atol=1e-5, rtol=0)


def test_layers_are_found_by_the_part_they_are_in(folder):
    family = zoo.load(folder).family
    model, parts = family.model, {p: linear_layers(family, [p]) for p in family.modules()}
    names = [n for found in parts.values() for n in found]
    assert len(names) == len(set(names))
    head = model.get_output_embeddings()
    linear = {n for n, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head}
    assert set(names) == linear
    inside = {id(m) for m in model.model.get_decoder().modules()}
    assert parts["language"] and all(id(model.get_submodule(n)) in inside for n in parts["language"])
    assert not any(id(model.get_submodule(n)) in inside for n in parts["vision"] + parts["connector"])


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_adapter_comes_back_and_merges(tmp_path, qwen, variant):
    loaded = adapted(qwen, EVERYWHERE, variant=variant)
    expected = logprobs(loaded)
    adapter = saved(loaded, tmp_path / "adapter")
    again = load_policy(ModelConfig(path=str(adapter)), PLAIN)
    assert torch.equal(logprobs(again), expected)
    export(adapter, tmp_path / "merged", merge=True)
    torch.testing.assert_close(logprobs(zoo.load(tmp_path / "merged")), expected, atol=1e-5, rtol=0)
    assert (expected - logprobs(zoo.load(qwen))).abs().max() > 1e-2
    with torch.no_grad():
        for name, weight in again.policy.named_parameters():
            weight.mul_(0 if "lora_B" in name else 1)
    assert variant == "dora" or torch.equal(logprobs(again), logprobs(zoo.load(qwen)))


def test_the_folder_is_small_and_in_pefts_layout(tmp_path, qwen):
    adapter = saved(adapted(qwen), tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(qwen) and config["peft_type"] == "LORA"
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (4, 32, 0.0)
    assert not (adapter / "config.json").exists() and not (adapter / "model.safetensors").exists()
    assert {"vlm_r1.json", "tokenizer.json", "processor_config.json"} <= {f.name for f in adapter.iterdir()}
    size = (adapter / "adapter_model.safetensors").stat().st_size
    assert size < (qwen / "model.safetensors").stat().st_size / 10


def test_adapters_are_float32_and_the_base_does_not_move(qwen):
    loaded = load_policy(ModelConfig(path=str(qwen), dtype="bfloat16"), PLAIN)
    freeze(loaded.family, LANGUAGE)
    adapt(loaded.family, LANGUAGE, None, seed=0)
    trained = {n: p for n, p in loaded.policy.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in n and p.dtype == torch.float32 for n, p in trained.items())
    # Two layers: q, o (32 to 64 and back), k, v (32 to 32), gate, up and down (32 to 48 and back); rank 16.
    count = 2 * 16 * (2 * (32 + 64) + 2 * (32 + 32) + 3 * (32 + 48))
    assert sum(p.numel() for p in trained.values()) == count
    said = trained_parameters(loaded.family, LANGUAGE)
    assert f"language {count:,} (lora)" in said and "vision none" in said


def test_an_adapter_is_drawn_from_the_seed(qwen):
    def matrices(seed):
        loaded = zoo.load(qwen)
        torch.rand(seed + 1)
        adapt(loaded.family, LANGUAGE, None, seed)
        return torch.cat([p.flatten() for n, p in loaded.policy.named_parameters() if "lora_A" in n])

    assert torch.equal(matrices(1), matrices(1)) and not torch.equal(matrices(1), matrices(2))


def test_only_the_named_layers_are_adapted(qwen):
    loaded = adapted(qwen, layers=["q_proj", "v_proj"])
    found = {n.split(".lora_A")[0] for n, _ in loaded.policy.model.named_parameters() if "lora_A" in n}
    expected = {f"model.language_model.layers.{i}.self_attn.{k}_proj" for i in (0, 1) for k in "qv"}
    assert found == expected
    with pytest.raises(ConfigError, match=r'lora\.layers: no linear layer of language is called "qkv"'):
        adapt(zoo.load(qwen).family, LANGUAGE, LoraConfig(layers=["qkv"]), 0)
    with pytest.raises(ConfigError, match=r"train\.connector: lora, but no linear layer there"):
        adapt(zoo.load(qwen).family, EVERYWHERE, LoraConfig(layers=["q_proj", "qkv"]), 0)


def test_without_its_adapter_the_model_is_its_base(qwen):
    loaded = adapted(qwen)
    with switched(loaded.policy.model, None):
        assert torch.equal(logprobs(loaded), logprobs(zoo.load(qwen)))
    assert not torch.equal(logprobs(loaded), logprobs(zoo.load(qwen)))
    assert any(p.requires_grad for p in loaded.policy.parameters())


def loaded_adapter(tmp_path, qwen, train=LANGUAGE, **lora):
    return load_policy(ModelConfig(path=str(saved(adapted(qwen, train, **lora), tmp_path / "adapter"))), PLAIN)


@pytest.mark.parametrize(
    ("train", "lora", "message"),
    [
        (TrainConfig(), None, "model.path: is an adapter; to train it further set train.language to lora"),
        (LANGUAGE, LoraConfig(rank=8), "lora.rank: is 8, but the adapter of model.path has 4"),
        (LANGUAGE, LoraConfig(rank=4, alpha=8), "lora.alpha: is 8, but the adapter of model.path has 32"),
        (LANGUAGE, LoraConfig(rank=4, variant="dora"), "lora.variant: is dora, but .* has lora"),
        (LANGUAGE, LoraConfig(rank=4, layers=["q_proj"]), "lora.layers: the adapter of model.path adapts other"),
        (EVERYWHERE, None, "train.vision: lora, but the adapter of model.path has no layer there"),
    ],
)
def test_a_recipe_that_contradicts_its_adapter(tmp_path, qwen, train, lora, message):
    loaded = loaded_adapter(tmp_path, qwen)
    with pytest.raises(ConfigError, match=message):
        adapt(loaded.family, train, lora, 0)


def test_an_adapter_reaches_into_a_frozen_part(tmp_path, qwen):
    loaded = loaded_adapter(tmp_path, qwen, EVERYWHERE)
    with pytest.raises(ConfigError, match=r"train: the adapter of model.path also adapts model\.visual\.\S+, whose"):
        adapt(loaded.family, LANGUAGE, None, 0)


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=4)])
def test_an_adapter_is_trained_further(tmp_path, qwen, lora):
    loaded = loaded_adapter(tmp_path, qwen)
    before = logprobs(loaded)
    freeze(loaded.family, LANGUAGE)
    adapt(loaded.family, LANGUAGE, lora, 0)
    assert torch.equal(logprobs(loaded), before)
    assert {"lora_" in n for n, p in loaded.policy.named_parameters() if p.requires_grad} == {True}


def test_dropout_is_the_runs_own(tmp_path, qwen):
    loaded = loaded_adapter(tmp_path, qwen)
    adapt(loaded.family, LANGUAGE, LoraConfig(rank=4, dropout=0.5), 0)
    loaded.policy.train()
    assert not torch.equal(logprobs(loaded), logprobs(loaded))
    loaded.policy.eval()
    assert torch.equal(logprobs(loaded), logprobs(loaded))


def damaged(adapter, kind):
    config = json.loads((adapter / "adapter_config.json").read_text())
    if kind == "no json":
        (adapter / "adapter_config.json").write_text("{")
    elif kind == "no weights":
        (adapter / "adapter_model.safetensors").unlink()
    elif kind == "cut":
        whole = (adapter / "adapter_model.safetensors").read_bytes()
        (adapter / "adapter_model.safetensors").write_bytes(whole[: len(whole) // 2])
    else:
        change = {"no base": {"base_model_name_or_path": "/nowhere/base"}, "other layers": {"target_modules": ["qkv"]}}
        (adapter / "adapter_config.json").write_text(json.dumps(config | change[kind]))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("no json", "is not an adapter configuration of peft"),
        ("no weights", "cannot be loaded"),
        ("cut", "cannot be loaded"),
        ("no base", 'the base model "/nowhere/base" is not there; write its folder into base_model_name_or_path'),
        ("other layers", "are not those that its adapter_config.json describes"),
    ],
)
def test_a_damaged_adapter_is_refused(tmp_path, qwen, kind, message):
    adapter = saved(adapted(qwen), tmp_path / "adapter")
    damaged(adapter, kind)
    with pytest.raises(ModelError, match=message):
        load_policy(ModelConfig(path=str(adapter)), PLAIN)
