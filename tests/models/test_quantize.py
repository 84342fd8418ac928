"""Weights in 4 and 8 bits: which layers, the update over them, and gradients after an evaluation."""

import pytest
import torch
import zoo
from support import PLAIN, assert_same_gradients, gradients, row_of
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText

from vlm_r1.config import ModelConfig, TrainConfig
from vlm_r1.models.adapters import adapt, linear_layers
from vlm_r1.models.load import load_policy
from vlm_r1.models.quantize import keep_trainable, quantization

pytest.importorskip("bitsandbytes")
ENTRY = zoo.zoo()["qwen3_vl"]
LANGUAGE = TrainConfig(language="lora")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("quantised") / "model"
    found.mkdir()
    ENTRY.build(found)
    return found


def quantised(folder, kind, device="cpu"):
    loaded = zoo.load(folder, device, quantize=kind)
    adapt(loaded.family, LANGUAGE, None, 0)
    loaded.policy.to(device)
    return loaded


def logprobs(loaded):
    return loaded.policy(row_of(loaded, zoo.groups(loaded, ENTRY)))[0]


@pytest.mark.parametrize(("kind", "layer"), [("nf4", "Linear4bit"), ("int8", "Linear8bitLt")])
def test_only_linear_layers_of_the_language_model_are_quantised(folder, kind, layer):
    loaded = load_policy(ModelConfig(path=str(folder), quantize=kind), PLAIN)
    found = {n: type(m).__name__ for n, m in loaded.policy.model.named_modules() if isinstance(m, nn.Linear)}
    assert {n for n, name in found.items() if name == layer} == set(linear_layers(loaded.family, ["language"]))
    assert set(found.values()) == {layer, "Linear"}
    assert found["lm_head"] == "Linear"


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_the_packed_update_over_quantised_weights_equals_the_plain_one(session_device, folder, kind):
    loaded = quantised(folder, kind, session_device)
    settings = quantization(
        ModelConfig(path=str(folder), quantize=kind),
        AutoConfig.from_pretrained(folder),
        loaded.processor,
        torch.float32,
    )
    model = AutoModelForImageTextToText.from_pretrained(folder, quantization_config=settings)
    keep_trainable(nn.Module.to(model, session_device))  # the model's own `to` refuses 8 bits
    with torch.no_grad():
        expected = zoo.plain_logprobs(model, loaded, zoo.groups(loaded, ENTRY))
        found = logprobs(loaded).cpu()
    torch.testing.assert_close(found, expected, atol=1e-3 if kind == "int8" else 2e-5, rtol=0)
    whole = logprobs(zoo.load(folder)).detach()
    assert 1e-3 < (found - whole).abs().max() < 1


def test_gradients_are_the_same_before_and_after_an_evaluation(session_device, folder):
    loaded = quantised(folder, "nf4", session_device)
    seen = []
    for _ in range(2):
        loaded.policy.train()
        logprobs(loaded).sum().backward()
        seen.append({n: g for n, g in gradients(loaded.policy).items() if "lora_" in n})
        loaded.policy.eval()
        with torch.no_grad():
            logprobs(loaded)
    assert any(g.abs().max() > 0 for n, g in seen[0].items() if "lora_B" in n)
    assert_same_gradients(*seen, relative=1e-6)
