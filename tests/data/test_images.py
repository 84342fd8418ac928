import pytest
from PIL import Image, ImageFile

from vlm_r1.data.images import ImageFinder
from vlm_r1.errors import RowError
from vlm_r1.records import SampleImage


def kind_of(finder, value):
    with pytest.raises(RowError) as caught:
        finder.find(value)
    return caught.value.faults[0].kind


@pytest.fixture
def finder(folder):
    root = folder / "root"
    (root / "sub").mkdir(parents=True)
    Image.new("RGB", (8, 6)).save(root / "in.png")
    Image.new("RGB", (8, 6)).save(root / "sub" / "deep.png")
    (root / "out_link.png").symlink_to(folder / "a.png")
    (root / "in_link.png").symlink_to(root / "in.png")
    return ImageFinder(root)


def test_what_lies_under_the_root_is_found(finder):
    root = finder.root
    for name in (
        "in.png",
        "sub/deep.png",
        "sub/../in.png",
        "in_link.png",
        str(root / "in.png"),
        f"file://{root}/in.png",
    ):
        assert finder.find(name).open().size == (8, 6)


def test_nothing_outside_the_root_is_found(finder, folder):
    for name in ("../a.png", "sub/../../a.png", str(folder / "a.png"), "out_link.png", "/etc/passwd"):
        assert kind_of(finder, name) == "image_outside_root"


def test_a_wider_root_admits_them(finder, folder):
    wider = ImageFinder(folder)
    assert wider.find("root/out_link.png").open().size == (64, 48)
    assert wider.find(str(folder / "a.png")).open().size == (64, 48)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("nope.png", "image_missing"),
        ("sub", "image_missing"),
        ("https://example.org/a.png", "image_url"),
        ("data:image/png;base64,@@@", "image_data"),
        ("a\0b.png", "image_type"),
        ("x" * 5000, "image_type"),
        ("", "image_type"),
        (7, "image_type"),
        ({}, "image_type"),
        (b"", "image_data"),
    ],
)
def test_values_that_are_no_image(finder, value, kind):
    assert kind_of(finder, value) == kind


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize(("orientation", "size"), [(None, (30, 20)), (3, (30, 20)), (6, (20, 30))])
def test_size_comes_from_the_header_and_follows_the_orientation(tmp_path, monkeypatch, suffix, orientation, size):
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    Image.new("RGB", (30, 20)).save(tmp_path / f"turned.{suffix}", exif=exif)
    finder = ImageFinder(tmp_path)
    image = finder.find(f"turned.{suffix}")
    assert image.open().size == size
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("the whole file was decoded"))
    assert finder.size(image) == image.size == size


def test_bytes_that_are_no_image(finder):
    with pytest.raises(RowError, match="image bytes cannot be read"):
        finder.size(SampleImage(data=b"not an image"))
