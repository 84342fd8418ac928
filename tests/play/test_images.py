"""Images: a folder that nothing leads out of, uploads that are checked, boxes drawn where they are."""

import pytest
from PIL import Image, ImageColor

from vlm_r1.data.draw import PREDICTED_COLOR
from vlm_r1.errors import DataError, UserError
from vlm_r1.play.images import Images
from vlm_r1.records import LabelledBox


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "root"
    (root / "inner").mkdir(parents=True)
    outside = tmp_path / "outside"
    outside.mkdir()
    for path in (root / "a.png", root / "inner" / "b.jpg", outside / "secret.png", root / ".hidden.txt"):
        Image.new("RGB", (30, 20), "red").save(path, "PNG")
    (root / "link.png").symlink_to(outside / "secret.png")
    (root / "folder").symlink_to(outside)
    (root / "own.png").symlink_to(root / "a.png")
    return root


@pytest.fixture
def images(root, tmp_path):
    (tmp_path / "private").mkdir()
    return Images((tmp_path / "private").resolve(), root)


def test_the_list_holds_what_lies_in_the_root_and_no_way_out(images):
    assert images.listed() == ["a.png", "own.png", "inner/b.jpg"]


def test_a_image_of_the_root_is_copied(images, root):
    copy = images.from_root("inner/b.jpg")
    assert copy.is_relative_to(images.folder) and copy.read_bytes() == (root / "inner" / "b.jpg").read_bytes()


@pytest.mark.parametrize(
    "name",
    ["../outside/secret.png", "link.png", "folder/secret.png", "inner/../../outside/secret.png", "/etc/passwd", "~"],
)
def test_a_way_out_of_the_root_is_refused(images, name, tmp_path):
    for asked in (name, str(tmp_path / "outside" / "secret.png"), f"file://{tmp_path}/outside/secret.png"):
        with pytest.raises(DataError, match=r"leads out of|There is no image"):
            images.from_root(asked)
    assert not (images.folder / "folder").exists()


@pytest.mark.parametrize("name", ["data:image/png;base64,iVBORw0KGgo=", "http://127.0.0.1/a.png", "", "nothing.png"])
def test_what_is_no_file_of_the_root_is_refused(images, name):
    with pytest.raises(DataError):
        images.from_root(name)


def test_without_a_root_nothing_is_offered(tmp_path):
    images = Images(tmp_path)
    assert images.listed() == []
    with pytest.raises(DataError, match="--image-root"):
        images.from_root("a.png")
    with pytest.raises(UserError, match="is not a folder"):
        Images(tmp_path, tmp_path / "missing")


def test_an_upload_must_lie_in_the_private_folder(images, root):
    for value in (None, {}, {"path": ""}):
        with pytest.raises(DataError, match="There is no image"):
            images.uploaded(value)
    (images.folder / "link.png").symlink_to(root / "a.png")
    for path in (root / "a.png", images.folder / "link.png", images.folder / "missing.png"):
        with pytest.raises(DataError, match="not uploaded here"):
            images.uploaded({"path": str(path)})
    Image.new("RGB", (30, 20)).save(images.folder / "own.png")
    assert images.uploaded({"path": str(images.folder / "own.png")})[1].size == (30, 20)


def test_a_broken_and_a_huge_image_are_told_by_their_own_name(images, huge_png):
    path = images.folder / "x.png"
    path.write_bytes(b"no image")
    with pytest.raises(DataError, match=r'image "cat\.png" cannot be read') as error:
        images.uploaded({"path": str(path), "orig_name": "cat.png"})
    assert str(images.folder) not in str(error.value)
    for side in (10_001, 14_000):  # over the package's limit, and over twice Pillow's own
        path.write_bytes(huge_png(side))
        with pytest.raises(DataError, match="over the limit of 100000000 pixels"):
            images.uploaded({"path": str(path), "orig_name": "cat.png"})


@pytest.mark.parametrize("size", [(96, 96), (3000, 1500)])
def test_boxes_are_drawn_where_they_are_at_the_scale_that_is_shown(images, size):
    image = Image.new("RGB", size, "white")
    box = (size[0] * 0.25, size[1] * 0.5, size[0] * 0.75, size[1] * 0.875)
    drawn = Image.open(images.draw(image, (), (LabelledBox(box=box, label="not written"),)))
    assert max(drawn.size) == (384 if size[0] == 96 else 1024)
    orange = ImageColor.getrgb(PREDICTED_COLOR)
    near = [
        (x, y)
        for y in range(drawn.height)
        for x in range(drawn.width)
        if sum(abs(a - b) for a, b in zip(drawn.getpixel((x, y)), orange, strict=True)) < 60
    ]
    found = (min(x for x, _ in near), min(y for _, y in near), max(x for x, _ in near), max(y for _, y in near))
    scale = drawn.width / size[0]
    assert found == pytest.approx([side * scale for side in box], abs=2)
