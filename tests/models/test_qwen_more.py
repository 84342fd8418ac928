"""Coordinates and published weights of Qwen2-VL, Qwen3.5 and the mixtures of experts."""

import pytest
import torch
import zoo
from safetensors.torch import load_file
from support import PLAIN, noise_image, sample

from vlm_r1.runtime.model_folder import save_model


@pytest.fixture(scope="module", params=["qwen2_vl", "qwen3_vl_moe", "qwen3_5_moe", "glm4v_moe"])
def folder(request, tmp_path_factory):
    found = tmp_path_factory.mktemp(request.param)
    zoo.zoo()[request.param].build(found)
    return found


def test_boxes_are_thousandths_of_the_image(folder):
    prompt = zoo.load(folder).family.encode(sample("q", noise_image(640, 480)))
    assert prompt.box_map.to_pixels((500, 250, 750, 500)) == pytest.approx((320, 120, 480, 240))


def test_weights_are_saved_under_the_published_names_and_shapes(folder, tmp_path):
    loaded = zoo.load(folder)
    save_model(tmp_path, loaded.policy.model, loaded.processor, PLAIN)
    published, saved = load_file(folder / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert published.keys() == saved.keys()
    assert all(torch.equal(value, saved[name]) for name, value in published.items())
