"""Pictures: a folder that nothing leads out of, uploads that are checked, boxes drawn where they are."""

import pytest
from PIL import Image, ImageColor

from vlm_r1.data.draw import PREDICTED_COLOR
from vlm_r1.errors import DataError, UserError
from vlm_r1.play.pictures import Pictures
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
def pictures(root, tmp_path):
    (tmp_path / "private").mkdir()
    return Pictures((tmp_path / "private").resolve(), root)


def test_the_list_holds_what_lies_in_the_root_and_no_way_out(pictures):
    assert pictures.listed() == ["a.png", "own.png", "inner/b.jpg"]


def test_a_picture_of_the_root_is_copied(pictures, root):
    copy = pictures.from_root("inner/b.jpg")
    assert copy.is_relative_to(pictures.folder) and copy.read_bytes() == (root / "inner" / "b.jpg").read_bytes()


@pytest.mark.parametrize(
    "name",
    ["../outside/secret.png", "link.png", "folder/secret.png", "inner/../../outside/secret.png", "/etc/passwd", "~"],
)
def test_a_way_out_of_the_root_is_refused(pictures, name, tmp_path):
    for asked in (name, str(tmp_path / "outside" / "secret.png"), f"file://{tmp_path}/outside/secret.png"):
        with pytest.raises(DataError, match=r"leads out of|There is no picture"):
            pictures.from_root(asked)
    assert not (pictures.folder / "folder").exists()


@pytest.mark.parametrize("name", ["data:image/png;base64,iVBORw0KGgo=", "http://127.0.0.1/a.png", "", "nothing.png"])
def test_what_is_no_file_of_the_root_is_refused(pictures, name):
    with pytest.raises(DataError):
        pictures.from_root(name)


def test_without_a_root_nothing_is_offered(tmp_path):
    pictures = Pictures(tmp_path)
    assert pictures.listed() == []
    with pytest.raises(DataError, match="--image-root"):
        pictures.from_root("a.png")
    with pytest.raises(UserError, match="is no folder"):
        Pictures(tmp_path, tmp_path / "missing")


def test_an_upload_must_lie_in_the_private_folder(pictures, root):
    for value in (None, {}, {"path": ""}):
        with pytest.raises(DataError, match="There is no picture"):
            pictures.uploaded(value)
    (pictures.folder / "link.png").symlink_to(root / "a.png")
    for path in (root / "a.png", pictures.folder / "link.png", pictures.folder / "missing.png"):
        with pytest.raises(DataError, match="not uploaded here"):
            pictures.uploaded({"path": str(path)})
    Image.new("RGB", (30, 20)).save(pictures.folder / "own.png")
    assert pictures.uploaded({"path": str(pictures.folder / "own.png")})[1].size == (30, 20)


def test_a_broken_and_a_huge_picture_are_told_by_their_own_name(pictures, huge_png):
    path = pictures.folder / "x.png"
    path.write_bytes(b"no picture")
    with pytest.raises(DataError, match=r'picture "cat\.png" cannot be used') as error:
        pictures.uploaded({"path": str(path), "orig_name": "cat.png"})
    assert str(pictures.folder) not in str(error.value)
    for side in (10_001, 14_000):  # over the package's limit, and over twice Pillow's own
        path.write_bytes(huge_png(side))
        with pytest.raises(DataError, match="over the limit of 100000000 pixels"):
            pictures.uploaded({"path": str(path), "orig_name": "cat.png"})


@pytest.mark.parametrize("size", [(96, 96), (3000, 1500)])
def test_boxes_are_drawn_where_they_are_at_the_scale_that_is_shown(pictures, size):
    image = Image.new("RGB", size, "white")
    box = (size[0] * 0.25, size[1] * 0.5, size[0] * 0.75, size[1] * 0.875)
    drawn = Image.open(pictures.draw(image, (), (LabelledBox(box=box, label="not written"),)))
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
