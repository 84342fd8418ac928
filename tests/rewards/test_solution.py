import pytest

from vlm_r1.errors import DataError
from vlm_r1.records import LabelledBox, Truth
from vlm_r1.rewards.solution import read_solution

BOX = LabelledBox(box=(1.0, 2.0, 3.0, 4.0))
CAT = LabelledBox(box=(1.0, 2.0, 3.0, 4.0), label="cat")


@pytest.mark.parametrize(
    ("value", "truth"),
    [
        ([1, 2, 3, 4], Truth(boxes=(BOX,))),
        ("[1, 2, 3, 4]", Truth(boxes=(BOX,), text="[1, 2, 3, 4]")),
        ("<answer> [1, 2, 3, 4] </answer>", Truth(boxes=(BOX,), text="[1, 2, 3, 4]")),
        ("<think>it is [9, 9, 10, 10]</think><answer>[1, 2, 3, 4]</answer>", Truth(boxes=(BOX,), text="[1, 2, 3, 4]")),
        ([{"bbox_2d": [1, 2, 3, 4], "label": "cat"}], Truth(boxes=(CAT,))),
        ([{"bbox": [1, 2, 3, 4], "label": "cat"}, {"bbox": [1, 2, 3, 4]}], Truth(boxes=(CAT, BOX))),
        ({"bbox_2d": [1, 2, 3, 4]}, Truth(boxes=(BOX,))),
        ([[1, 2, 3, 4]], Truth(boxes=(BOX,))),
        ([], Truth(boxes=())),
        (None, Truth(boxes=())),
        ("None", Truth(boxes=(), text="None")),
        ("```json\nNone\n```", Truth(boxes=(), text="```json\nNone\n```")),
        (4, Truth(number=4.0, text="4")),
        ("-4.5", Truth(number=-4.5, text="-4.5")),
        ("B", Truth(text="B")),
        ('"B"', Truth(text="B")),
        ("true", Truth(text="true")),
        ("[unclosed", Truth(text="[unclosed")),
    ],
)
def test_solutions_as_json_or_as_a_string_that_holds_it(value, truth):
    assert read_solution(value) == truth


def test_a_fenced_list_is_a_list():
    truth = read_solution('```json\n[{"bbox_2d": [1, 2, 3, 4], "label": "cat"}]\n```')
    assert truth.boxes == (CAT,)


@pytest.mark.parametrize(
    "value", [[3, 2, 1, 4], [1, 2, 3], [1, 2, 3, "4"], [{"label": "a"}], [[1, 2, 1, 4]], float("nan")]
)
def test_a_false_truth_is_refused(value):
    with pytest.raises(DataError, match="solution"):
        read_solution(value)
