"""What GLM-4.1V and its followers state about images, boxes and answers."""

import pytest
import torch
import zoo
from support import PLAIN, noise_image, sample

from vlm_r1.config import ModelConfig
from vlm_r1.models.load import load_policy
from vlm_r1.models.packing import pack
from vlm_r1.prompts.parse import read_answer
from vlm_r1.rl.batch import as_prefix_group


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("glm4v")
    zoo.zoo()["glm4v"].build(found)
    return found


def test_limits_are_pixels_of_one_image(folder):
    model = ModelConfig(path=str(folder), min_pixels=32 * 32, max_pixels=64 * 64)
    family = load_policy(model, PLAIN).family
    grids = [
        family.encode(sample("q", noise_image(side, side))).images[0].tensors["image_grid_thw"].tolist()
        for side in (16, 48, 256)
    ]
    assert grids == [[[1, 4, 4]], [[1, 6, 6]], [[1, 8, 8]]]  # patches of 8 pixels


def test_a_marked_box_is_read_as_thousandths_of_the_image(folder):
    one = sample("q", noise_image(200, 100))
    box_map = zoo.load(folder).family.encode(one).box_map
    text = "<think>It is here.</think><answer><|begin_of_box|>[[100,200,500,700]]<|end_of_box|></answer>"
    (found,) = read_answer(text, one, box_map).value
    assert found.box == pytest.approx((20, 20, 100, 70))


def test_placeholders_are_never_written(folder):
    loaded = zoo.load(folder)
    assert loaded.tokenizer.convert_ids_to_tokens(loaded.policy.suppressed) == ["<|image|>", "<|video|>"]


def test_the_convolution_after_the_tower_belongs_to_the_connector(folder):
    connector = zoo.load(folder).family.parameters()["connector"]
    assert {name.split(".")[2] for name in connector} == {"downsample", "merger"}


def test_the_router_sends_each_token_of_a_packed_row_where_the_plain_forward_does(tmp_path):
    entry = zoo.zoo()["glm4v_moe"]
    entry.build(tmp_path)
    loaded, model = zoo.load(tmp_path), zoo.plain(tmp_path, entry)
    chosen: dict[str, list[torch.Tensor]] = {}
    for name, one in (("packed", loaded.policy.model), ("plain", model)):
        router = one.model.language_model.layers[1].mlp.gate
        kept = chosen.setdefault(name, [])
        router.register_forward_hook(lambda _, args, out, kept=kept: kept.append(out[2].sort().values))
    with torch.no_grad():
        answered = zoo.groups(loaded, entry)[:1]
        zoo.plain_logprobs(model, loaded, answered)
        loaded.policy(pack([as_prefix_group(answered[0])]))
    length = len(answered[0].prompt.token_ids)
    expected = torch.cat([chosen["plain"][0][:length], *(rows[length:-1] for rows in chosen["plain"])])
    assert torch.equal(chosen["packed"][0], expected)
