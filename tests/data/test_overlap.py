"""How many held-out rows are trained on too: by question and by the content of the images."""

import json
import shutil
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vlm_r1.config import DataSource, ScenesSource
from vlm_r1.data.overlap import overlap
from vlm_r1.data.sampling import rows_asked_for
from vlm_r1.data.source import load_source

BOX = [1, 1, 5, 5]


def image(folder, name, color):
    Image.new("RGB", (8, 8), color).save(folder / name)
    return name


def rows(folder, name, *pairs):
    """A data file of (image, question) pairs."""
    lines = (json.dumps({"image": i, "problem": q, "solution": BOX, "task": "rec"}) + "\n" for i, q in pairs)
    (folder / name).write_text("".join(lines))
    return load_source(DataSource(path=str(folder / name)))


@pytest.fixture
def files(tmp_path):
    """Images: a and its copy are equal, b has a's size in bytes and other pixels."""
    image(tmp_path, "a.bmp", (200, 0, 0))
    shutil.copy(tmp_path / "a.bmp", tmp_path / "copy.bmp")
    image(tmp_path, "b.bmp", (0, 200, 0))
    assert (tmp_path / "a.bmp").stat().st_size == (tmp_path / "b.bmp").stat().st_size
    return tmp_path


def test_two_ends_of_one_file_that_meet_in_the_middle(files):
    path = files / "rows.jsonl"
    rows(files, path.name, *((f"{'ab'[i % 2]}.bmp", f"question {i}") for i in range(30)))
    train = load_source(DataSource(path=str(path), sampling="first:26"))
    held = load_source(DataSource(path=str(path), sampling="end:40"))
    apart = load_source(DataSource(path=str(path), sampling="end:4"))
    assert overlap([train], {"held": held, "apart": apart}) == {"held": 26}


def test_both_the_question_and_the_content_of_the_image_must_be_the_same(files):
    train = rows(files, "train.jsonl", ("a.bmp", "left"), ("a.bmp", "right"))
    held = rows(
        files,
        "held.jsonl",
        ("copy.bmp", "left"),
        ("b.bmp", "left"),
        ("a.bmp", "up"),
        ("a.bmp", "right"),
        ("a.bmp", "right"),
    )
    assert overlap([train], {"held": held}) == {"held": 3}
    assert overlap([held], {"train": train}) == {"train": 2}
    assert overlap([], {"held": held}) == {}


def test_an_image_inside_a_table_equals_its_file_and_is_read_for_equal_questions_alone(files):
    data = [(files / name).read_bytes() for name in ("a.bmp", "b.bmp")]
    table = pa.table({"image": [{"bytes": d} for d in data], "problem": ["left", "down"], "solution": [str(BOX)] * 2})
    pq.write_table(table, files / "table.parquet")
    train = load_source(DataSource(path=str(files / "table.parquet")))
    read = []
    get = train._get_row
    train._get_row = lambda index: read.append(index) or get(index)
    held = rows(files, "held.jsonl", ("copy.bmp", "left"), ("b.bmp", "left"))
    assert overlap([train], {"held": held}) == {"held": 1}
    assert set(read) == {0}


def test_names_that_training_adds_to_a_question_do_not_hide_it(files):
    lines = []
    for name, label in (("a.bmp", "cat"), ("b.bmp", "dog")):
        row = {"image": name, "problem": f"detect {label}", "task": "ovd"}
        lines.append(json.dumps(row | {"solution": [{"bbox_2d": BOX, "label": label}]}) + "\n")
    (files / "ovd.jsonl").write_text("".join(lines))
    source = DataSource(path=str(files / "ovd.jsonl"))
    train = load_source(source.model_copy(update={"negatives": 1}))
    assert train[0].question != "detect cat"
    assert overlap([train], {"held": load_source(source)}) == {"held": 2}


@pytest.mark.parametrize(
    ("held", "sampling", "count"),
    [
        ({"split": "train", "start": 8, "n": 5}, "all", 4),  # two images of two questions
        ({"split": "train", "start": 8, "n": 5}, "end:7", 1),
        ({"split": "train", "start": 10, "n": 5}, "all", 0),
        ({"split": "tune", "n": 5}, "all", 0),
    ],
)
def test_scenes_are_compared_by_the_number_of_their_image(held, sampling, count):
    train = load_source(DataSource(scenes=ScenesSource(split="train", n=10)))
    source = DataSource(scenes=ScenesSource(**held, per_image=2), sampling=sampling)
    assert overlap([train], {"held": load_source(source)}) == ({"held": count} if count else {})


@pytest.mark.parametrize(
    ("sampling", "asked"), [("first:260", 260), ("end:4", 4), ("random:10%", 0), ("10%", 0), ("all", 0)]
)
def test_how_many_rows_a_sampling_names(sampling, asked):
    assert rows_asked_for(sampling) == asked


def test_one_question_about_thousands_of_images_takes_a_moment(tmp_path):
    """8,000 against 8,000 rows would be 64 million comparisons in pairs."""
    for name in ("a", "b"):
        image(tmp_path, f"{name}.bmp", (ord(name), 0, 0))
    train = rows(tmp_path, "train.jsonl", *[("a.bmp", "how many?")] * 8_000)
    held = rows(tmp_path, "held.jsonl", *[("a.bmp", "how many?"), ("b.bmp", "how many?")] * 4_000)
    started = time.process_time()
    assert overlap([train], {"held": held}) == {"held": 4_000}
    assert time.process_time() - started < 10
