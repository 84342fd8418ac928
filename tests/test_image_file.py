"""The door for images: the right way up in every format, the same size from the header, one fault for all else."""

import io
import os
import subprocess

import pytest
from PIL import Image

from vlm_r1.data.images import ImageFinder
from vlm_r1.errors import DataError, RowError
from vlm_r1.image_file import FORMATS, MAX_PIXELS, decode, read_size
from vlm_r1.play.images import Images
from vlm_r1.records import SampleImage

SIZE = (34, 20)
TOP_LEFT, TOP_RIGHT, LOW_LEFT, LOW_RIGHT = (0, 0), (0, 1), (1, 0), (1, 1)
CORNERS = {
    1: (TOP_LEFT, TOP_RIGHT),
    2: (TOP_RIGHT, TOP_LEFT),
    3: (LOW_RIGHT, LOW_LEFT),
    4: (LOW_LEFT, LOW_RIGHT),
    5: (TOP_LEFT, LOW_LEFT),
    6: (TOP_RIGHT, LOW_RIGHT),
    7: (LOW_RIGHT, TOP_RIGHT),
    8: (LOW_LEFT, TOP_LEFT),
}
"""Where EXIF's definition of an orientation shows the upper left and the upper right corner of the stored pixels."""


@pytest.fixture(scope="module")
def corner() -> Image.Image:
    """Black, with its upper left corner in red and its upper right one in blue."""
    image = Image.new("RGB", SIZE)
    image.paste("red", (0, 0, 17, 10))
    image.paste("blue", (17, 0, 34, 10))
    return image


def saved(image: Image.Image, kind: str, **options) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def exif(orientation: int) -> Image.Exif:
    found = Image.Exif()
    found[0x0112] = orientation
    return found


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_an_image_is_turned_as_its_orientation_says(corner, kind, orientation):
    options = {"tiffinfo": {0x0112: orientation}} if kind == "TIFF" else {"exif": exif(orientation)}
    data = saved(corner, kind, **options)
    found = decode(data)
    assert found.mode == "RGB" and found.size == read_size(data) == (SIZE if orientation < 5 else SIZE[::-1])
    for color, corners in zip(((255, 0, 0), (0, 0, 255)), CORNERS[orientation], strict=True):
        down, right = corners
        at = found.getpixel((found.width * (1 + 2 * right) // 4, found.height * (1 + 2 * down) // 4))
        assert max(abs(a - b) for a, b in zip(at, color, strict=True)) < 60


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_of_the_list_is_read_whatever_its_name(corner, kind, tmp_path):
    (tmp_path / "image.txt").write_bytes(saved(corner, kind))
    assert decode(tmp_path / "image.txt").size == read_size(tmp_path / "image.txt") == SIZE


@pytest.mark.parametrize("ending", ["eps", "png"])
def test_no_other_program_is_started(tmp_path, monkeypatch, ending):
    file = tmp_path / f"image.{ending}"
    file.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 30 20\n%%EndComments\nshowpage\n%%EOF\n")
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a program was started"))
    for read in (decode, read_size):
        with pytest.raises(RowError, match="not a JPEG"):
            read(file)


def test_a_file_that_is_no_file_is_named(tmp_path):
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "pipe.png")
    for name in ("loop.png", "a", "a/x.png", "gone.png", "missing.png", "."):
        for read in (decode, read_size):
            with pytest.raises(RowError, match=r"does not exist|cannot be read \((Too many|Is a dir)"):
                read(tmp_path / name)
    finder = ImageFinder(tmp_path)
    for name in ("loop.png", "a", "a/x.png", "gone.png", "pipe.png"):
        with pytest.raises(RowError, match=r"is not a path|does not exist|leaves"):
            finder.find(name)
    Image.new("RGB", SIZE).save(tmp_path / "good.png")
    assert Images(tmp_path, tmp_path).listed() == ["good.png"]


def test_an_image_in_memory_that_is_decoded_late_may_be_damaged_too(corner):
    lazy = SampleImage(image=Image.open(io.BytesIO(saved(corner, "PNG")[:-30])))
    for read in (lazy.open, lambda: lazy.key, lazy.read):
        with pytest.raises(DataError, match="image in memory cannot be read"):
            read()


def test_a_file_that_went_away_is_named(tmp_path):
    image = SampleImage(path=tmp_path / "a.png")
    for read in (image.open, image.read, lambda: image.key, lambda: image.size):
        with pytest.raises(DataError, match=r'image ".*a\.png" does not exist'):
            read()


def test_names_that_cannot_be_printed_are_escaped(tmp_path):
    with pytest.raises(RowError) as error:
        decode(tmp_path / "\x1b[31m\udcff.png")
    assert r"\x1b[31m\udcff.png" in str(error.value) and str(error.value).isprintable()


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_the_limit_of_pixels_is_that_of_the_header(corner):
    side = int(MAX_PIXELS**0.5)
    data = bytearray(saved(Image.new("1", (side, side)), "PNG"))
    assert read_size(bytes(data)) == (side, side)
    wider = saved(Image.new("1", (side + 1, side)), "PNG")
    with pytest.raises(RowError, match="over the limit of 100000000 pixels"):
        read_size(wider)
