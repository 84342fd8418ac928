"""Models without a family of their own: what is said about them, and what is refused."""

from functools import partial

import pytest
import torch
import zoo
from transformers.models.aya_vision.modeling_aya_vision import AyaVisionModel
from transformers.models.aya_vision.processing_aya_vision import AyaVisionProcessor
from zoo import build, generic

from vlm_r1.errors import ConfigError, ModelError
from vlm_r1.models.family import Family
from vlm_r1.models.generic import check_forward


@pytest.fixture(scope="module")
def aya(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generic")
    generic.save_aya(folder)
    return folder


def test_what_is_assumed_is_said(aya, capfd):
    assert type(zoo.load(aya).family) is Family
    said = capfd.readouterr().err
    assert 'model.path: "aya_vision" has no family of its own. Assumed: boxes are 0-1000 of the image' in said
    assert "log-probs differ by " in said


def test_limits_in_pixels_are_refused(aya):
    with pytest.raises(ConfigError, match=r"model.max_pixels: aya_vision resizes every image to sizes of its own"):
        zoo.load(aya, max_pixels=1000)


def refused(folder) -> str:
    with pytest.raises(ModelError) as caught:
        zoo.load(folder)
    said = str(caught.value)
    assert said.endswith("; vlm-r1 docs add-a-model shows how to add a family") and "\n" not in said
    return said.removesuffix("; vlm-r1 docs add-a-model shows how to add a family").partition("cannot run it: ")[2]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ({"model_type": "lfm2", "layer_types": ["conv", "full_attention"]}, "layers of the kind conv"),
        ({"model_type": "jamba"}, "layers of the kind linear_attention"),
        ({"model_type": "gpt_oss", "layer_types": ["full_attention"] * 2}, "attention sinks are not supported"),
    ],
    ids=lambda value: value["model_type"] if isinstance(value, dict) else "",
)
def test_language_models_that_packed_rows_do_not_fit_are_refused(tmp_path, text, reason):
    generic.save_llava(tmp_path, **build.TEXT | text)
    assert reason in refused(tmp_path)


def without_a_keyword(self, input_ids=None, pixel_values=None, **kwargs):
    raise AssertionError


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (partial(pytest.MonkeyPatch.delattr, target=AyaVisionModel, name="get_image_features"), "get_image_features"),
        (
            partial(pytest.MonkeyPatch.setattr, target=AyaVisionModel, name="forward", value=without_a_keyword),
            "its forward takes no `mm_encoder_outputs`",
        ),
        (partial(pytest.MonkeyPatch.setattr, target=AyaVisionModel, name="get_decoder", value=lambda m: m), "find no"),
        (partial(pytest.MonkeyPatch.delattr, target=AyaVisionProcessor, name="replace_image_token"), "no `replace_im"),
    ],
    ids=["features", "forward", "parts", "text"],
)
def test_a_missing_convention_is_named(aya, monkeypatch, change, reason):
    change(monkeypatch)
    assert reason in refused(aya)


def test_a_forward_that_differs_is_refused(aya, monkeypatch):
    monkeypatch.setattr(Family, "positions", lambda self, ids, vision: 2 * torch.arange(len(ids)).expand(3, -1))
    assert "log-probs of a packed row differ from those of its own forward by " in refused(aya)


def test_tokens_that_differ_from_the_processors_are_refused(aya, monkeypatch):
    monkeypatch.setattr(Family, "text", lambda self, sample: "<image> " + sample.question)
    assert refused(aya) == "its processor makes other tokens of a prompt than its parts do"


def test_a_window_that_attention_is_not_told_is_refused(aya):
    loaded = zoo.load(aya)
    for layer in loaded.policy.model.model.get_decoder().layers:
        layer.self_attn.sliding_window = None
    with pytest.raises(ModelError, match="the attention of layer 0 is sliding and is not told its window"):
        check_forward(loaded.policy, loaded.family)


def test_whatever_else_goes_wrong_is_one_message(aya, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("sizes do not match\nmore lines")

    monkeypatch.setattr(AyaVisionModel, "get_image_features", broken)
    assert refused(aya) == "its check ended with RuntimeError: sizes do not match"
