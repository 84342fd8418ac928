"""Families that cut an image into tiles: limits in pixels, and where boxes lie."""

import pytest
import zoo

from vlm_r1.errors import ConfigError
from vlm_r1.runtime.model_folder import save_model
from vlm_r1.sft.targets import answer_text


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Name -> a checkpoint of that family, made when it is asked for."""
    made = {}

    def folder(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp("tiles") / name
            made[name].mkdir()
            zoo.zoo()[name].build(made[name])
        return made[name]

    return folder


def tiles(folder, width, height, **limits) -> int:
    """How many tiles an image is shown in."""
    family = zoo.load(folder, **limits).family
    prompt = family.encode(zoo.sample("q", zoo.noise_image(width, height)))
    return prompt.images[0].tensors["pixel_values"].shape[0]


def test_internvl_takes_limits_as_numbers_of_tiles(folders):
    # A tile is 16 x 16 = 256 pixels; 96 x 32 is 6 x 2 tiles, and a thumbnail comes with them.
    folder = folders("internvl")
    assert tiles(folder, 96, 32) == 12 + 1
    assert tiles(folder, 96, 32, max_pixels=1024) == 3 + 1
    assert tiles(folder, 96, 32, max_pixels=511) == 1
    assert tiles(folder, 16, 16) == 1
    assert tiles(folder, 16, 16, min_pixels=769) == 4 + 1
    with pytest.raises(ConfigError, match=r"model.min_pixels, model.max_pixels: .* a tile is 256 pixels: raise"):
        tiles(folder, 96, 32, max_pixels=255)


def test_idefics_takes_the_largest_square_of_whole_tiles(folders):
    # Images are enlarged to 48 pixels, their longest side, in tiles of 16: 96 x 32 becomes 3 x 1 tiles and the whole.
    folder = folders("smolvlm")
    assert tiles(folder, 96, 32) == 3 + 1
    assert tiles(folder, 8, 8) == 9 + 1
    assert tiles(folder, 8, 8, max_pixels=48 * 48 - 1) == 4 + 1
    assert tiles(folder, 96, 32, max_pixels=256) == 1
    with pytest.raises(ConfigError, match=r"model.max_pixels: 255 is less than one tile of this model, 256 pixels"):
        tiles(folder, 8, 8, max_pixels=255)
    with pytest.raises(ConfigError, match=r"model.min_pixels: smolvlm resizes every image"):
        tiles(folder, 8, 8, min_pixels=256)


def test_onevision_takes_limits_as_a_choice_of_resolutions(folders, tmp_path):
    # Of 16, 32 and 48 pixels a side, 90 x 40 fits 48 x 32 best: 3 x 2 tiles and the whole.
    folder = folders("llava_onevision")
    assert tiles(folder, 90, 40) == 6 + 1
    assert tiles(folder, 90, 40, max_pixels=1535) == 3 + 1
    assert tiles(folder, 90, 40, max_pixels=256) == 1 + 1
    assert tiles(folder, 8, 8, min_pixels=2000) == 9 + 1
    with pytest.raises(ConfigError, match="they have 256, 512, 768, 1024, 1536, 2304 pixels"):
        tiles(folder, 8, 8, max_pixels=255)
    limited = zoo.load(folder, max_pixels=256)
    save_model(tmp_path, limited.policy.model, limited.processor, limited.family.settings)
    assert tiles(tmp_path, 90, 40) == 1 + 1


def test_images_of_one_onevision_prompt_are_one_tile_each(folders):
    family = zoo.load(folders("llava_onevision")).family
    two = family.encode(zoo.sample("q", zoo.noise_image(90, 40), zoo.noise_image(16, 48)))
    one = family.encode(zoo.sample("q", zoo.noise_image(90, 40)))
    [together], [alone] = two.images, one.images
    assert together.tensors["pixel_values"].shape == (2, 3, 16, 16)
    assert together.tensors["batch_num_images"].tolist() == [2]
    assert alone.tensors["batch_num_images"].tolist() == [1]
    assert two.token_ids.count(family.model.config.image_token_id) == 2 * (16 + 1)  # a newline behind each
    assert together.key != alone.key


def test_llava_writes_shares_of_the_image_with_decimals(folders):
    for name in ("llava_next", "llava_onevision"):
        prompt = zoo.load(folders(name)).family.encode(zoo.sample("q", zoo.noise_image(640, 480)))
        assert prompt.box_map.to_pixels((0.5, 0.25, 1, 1)) == pytest.approx((320, 120, 640, 480))
        # The sample's box is 8, 8, 24, 24 pixels.
        assert answer_text(prompt.sample, prompt.box_map) == "[0.013, 0.017, 0.037, 0.05]"


@pytest.mark.parametrize("name", ["internvl", "smolvlm", "idefics3"])
def test_boxes_are_thousandths_of_the_image(folders, name):
    family = zoo.load(folders(name)).family
    box_map = family.encode(zoo.sample("q", zoo.noise_image(640, 480))).box_map
    assert box_map.to_pixels((500, 250, 1000, 1000)) == pytest.approx((320, 120, 640, 480))
