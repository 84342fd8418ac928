"""Truths as they are typed: every form of a box, the other kinds, and what is refused."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_r1.errors import DataError
from vlm_r1.play.images import example_scenes
from vlm_r1.play.truth import read_truth, written
from vlm_r1.prompts.templates import TASKS
from vlm_r1.records import LabelledBox, Truth

SIZE = (96, 64)


@pytest.mark.parametrize(
    "text", ["1,2,30,40", " 1, 2, 30, 40 ", "1 2 30 40", "[1, 2, 30, 40]", "(1,2, 30 40)", "1.0,2.,30.0,40"]
)
def test_a_box_is_four_numbers_however_they_are_set(text):
    assert read_truth(text, "rec", SIZE) == Truth(boxes=(LabelledBox(box=(1, 2, 30, 40)),))


@pytest.mark.parametrize(
    "text",
    [
        "1,2,3,4 red circle\n5,6,7,8 cat",
        "1,2,3,4 red circle; 5,6,7,8: cat",
        '[{"bbox_2d": [1, 2, 3, 4], "label": "red circle"}, {"bbox_2d": [5, 6, 7, 8], "label": "cat"}]',
    ],
)
def test_several_boxes_stand_in_lines_with_their_labels(text):
    boxes = (LabelledBox(box=(1, 2, 3, 4), label="red circle"), LabelledBox(box=(5, 6, 7, 8), label="cat"))
    assert read_truth(text, "ovd", SIZE) == Truth(boxes=boxes)


@pytest.mark.parametrize(
    ("text", "task", "truth"),
    [
        ("none", "ovd", Truth(boxes=())),
        ("3", "count", Truth(number=3.0)),
        ("b", "choice", Truth(choice="B")),
        ("Yes", "yes_no", Truth(text="yes")),
        ("two cats", "text", Truth(text="two cats")),
        ("  ", "rec", None),
        ("", "text", None),
    ],
)
def test_other_kinds_are_read_as_a_data_file_writes_them(text, task, truth):
    assert read_truth(text, task, SIZE) == truth


@pytest.mark.parametrize(
    ("text", "task", "told"),
    [
        ("over there", "rec", '"over there" cannot be read: write x1, y1, x2, y2'),
        ("1,2,3", "rec", '"1,2,3" cannot be read'),
        ("30,40,1,2", "rec", "is reversed"),
        ("1,2,1,9", "rec", "has no area"),
        ("1,2,97.5,40", "rec", "1, 2, 97.5, 40 reaches out of the image, which has 96 x 64 pixels"),
        ("1,2,3,4;5,6,7,8", "rec", 'task "rec" has one box'),
        ("many", "count", "is not a number"),
        ("maybe", "choice", "is not a letter"),
    ],
)
def test_what_is_no_truth_is_told(text, task, told):
    with pytest.raises(DataError) as error:
        read_truth(text, task, SIZE)
    assert told in str(error.value)


@pytest.mark.parametrize("sample", example_scenes(), ids=lambda sample: sample.task + " " + sample.question[:20])
def test_what_the_page_writes_it_reads_again(sample):
    width, height = sample.images[0].size
    assert read_truth(written(sample.truth), sample.task, (width, height)) == sample.truth


@given(text=st.text(alphabet='0123456789.,;- \n[](){}"aé:', max_size=40), task=st.sampled_from(sorted(TASKS)))
def test_any_text_is_a_truth_or_an_error_that_is_told(text, task):
    with contextlib.suppress(DataError):
        read_truth(text, task, SIZE)
