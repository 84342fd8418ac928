"""Families that cut a picture into tiles: limits in pixels, and where boxes lie."""

import pytest
import zoo

from vlm_r1.errors import ConfigError


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
    """How many tiles a picture is shown in."""
    family = zoo.load(folder, **limits).family
    prompt = family.encode(zoo.sample("q", zoo.picture(width, height)))
    return prompt.pictures[0].tensors["pixel_values"].shape[0]


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


@pytest.mark.parametrize("name", ["internvl"])
def test_boxes_are_thousandths_of_the_picture(folders, name):
    family = zoo.load(folders(name)).family
    box_map = family.encode(zoo.sample("q", zoo.picture(640, 480))).box_map
    assert box_map.to_pixels((500, 250, 1000, 1000)) == pytest.approx((320, 120, 640, 480))
