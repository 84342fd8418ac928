import pytest

from vlm_r1.config import DataSource
from vlm_r1.data.negatives import asked_names
from vlm_r1.data.source import load_source
from vlm_r1.errors import DataError
from vlm_r1.prompts.templates import word_question

ROWS = [
    {"image": "a.png", "problem": word_question("ovd", "cat"), "solution": [{"bbox": [0, 0, 5, 5], "label": "cat"}]},
    {"image": "a.png", "problem": word_question("ovd", "dog"), "solution": [{"bbox": [0, 0, 5, 5], "label": "dog"}]},
    {
        "image": "b.jpg",
        "problem": "Find bird, Fox please",
        "solution": [{"bbox": [0, 0, 5, 5], "label": "bird"}, {"bbox": [1, 1, 5, 5], "label": "Fox"}],
        "categories": ["bird", "Fox"],
    },
    {"image": "b.jpg", "problem": "the left one", "solution": [0, 0, 5, 5]},
]


def load(path, n, seed=0):
    return load_source(DataSource(path=str(path), negatives=n), seed=seed)


def test_absent_names_are_added_and_present_ones_never(write):
    samples = load(write(*ROWS), 2)
    first = samples[0]
    # The dog is in the same image by the second row, so only names of the other image are absent.
    assert sorted(first.columns["negatives"]) == ["Fox", "bird"]
    assert sorted(asked_names(first)) == ["Fox", "bird", "cat"]
    assert first.question.endswith("respond with None.")
    assert [box.label for box in first.truth.boxes] == ["cat"]
    third = samples[2]
    assert sorted(third.columns["negatives"]) == ["cat", "dog"]
    assert third.question.startswith("Find ") and third.question.endswith(" please")
    assert samples[3].question == "the left one"


def test_a_name_compares_without_case(write):
    rows = [ROWS[2], {**ROWS[0], "image": "b.jpg", "solution": [{"bbox": [0, 0, 5, 5], "label": "FOX"}]}]
    assert "FOX" not in load(write(*rows), 5)[0].columns["negatives"]


def test_the_seed_decides_and_reading_twice_agrees(write):
    rows = [
        {**ROWS[0], "problem": f"detect n{i}", "solution": [{"bbox": [0, 0, 5, 5], "label": f"n{i}"}], "image": None}
        for i in range(12)
    ]
    path = write(*rows)
    first, again, other = (load(path, 1, seed) for seed in (1, 1, 2))
    assert [sample.question for sample in first] == [sample.question for sample in again]
    assert [sample.question for sample in first] != [sample.question for sample in other]
    assert first[5] == first[-7]


def test_what_cannot_be_done_is_said(write):
    with pytest.raises(DataError, match="no sample is a detection question"):
        load(write(ROWS[3]), 1)
    unknown = {**ROWS[0], "problem": "Where is everything?"}
    with pytest.raises(DataError, match='add "categories"'):
        load(write(unknown, *ROWS[1:]), 1)
    mismatch = {**ROWS[2], "problem": "Find them"}
    with pytest.raises(DataError, match='does not hold its categories as "bird, Fox"'):
        load(write(mismatch, *ROWS[:2]), 1)
