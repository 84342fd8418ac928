import pytest

from vlm_r1.errors import DataError
from vlm_r1.prompts.solution import infer_task, read_solution, split_answer
from vlm_r1.records import LabelledBox, Truth


def boxes(*items):
    return Truth(boxes=tuple(LabelledBox(box=box, label=label) for box, label in items))


ONE = boxes(((1.0, 2.0, 3.0, 4.5), ""))
PLAIN = LabelledBox(box=(1.0, 2.0, 3.0, 4.0))
CAT = boxes(((1.0, 2.0, 3.0, 4.0), "cat"))


@pytest.mark.parametrize(
    ("solution", "task", "truth"),
    [
        ([1, 2, 3, 4.5], "rec", ONE),
        ("[1, 2, 3, 4.5]", "rec", ONE),
        ("<answer> [1, 2, 3, 4.5] </answer>", "rec", ONE),
        ("<think>the answer</think><answer>```json\n[1, 2, 3, 4.5]\n```</answer>", "reasoning", ONE),
        ({"bbox_2d": [1, 2, 3, 4], "label": "cat"}, "rec", CAT),
        ([{"bbox": [1, 2, 3, 4], "label": "cat"}], "rec", CAT),
        ([[1, 2, 3, 4.5]], "gui", ONE),
        ('[{"bbox_2d": [1, 2, 3, 4], "label": "cat"}]', "ovd", CAT),
        ('```json\n[{"bbox_2d": [1, 2, 3, 4], "label": "cat"}]\n```', "ovd", CAT),
        ([{"bbox_2d": [1, 2, 3, 4], "label": None}], "ovd", boxes(((1.0, 2.0, 3.0, 4.0), ""))),
        ([[1, 2, 3, 4], [5, 6, 7, 8]], "ovd", boxes(((1.0, 2.0, 3.0, 4.0), ""), ((5.0, 6.0, 7.0, 8.0), ""))),
        ([], "ovd", boxes()),
        (None, "ovd", boxes()),
        ("None", "ovd", boxes()),
        ("<answer>none.</answer>", "ovd", boxes()),
        ("[]", "rec", boxes()),
        ("B", "choice", Truth(choice="B")),
        ("(b)", "choice", Truth(choice="B")),
        ("C. a cat", "choice", Truth(choice="C")),
        ('"D"', "choice", Truth(choice="D")),
        ("Yes.", "yes_no", Truth(text="yes")),
        (False, "yes_no", Truth(text="no")),
        (4, "count", Truth(number=4.0)),
        ("4", "number", Truth(number=4.0)),
        ("12345678901234567891", "number", Truth(number=12345678901234567891)),
        (12345678901234567891, "number", Truth(number=12345678901234567891)),
        ("-1,234.5", "number", Truth(number=-1234.5)),
        ("3/4", "number", Truth(number=0.75)),
        ("$12", "number", Truth(number=12.0)),
        ("50%", "number", Truth(number=50.0)),
        ("1e3", "number", Truth(number=1000.0)),
        (7, "text", Truth(text="7")),
        ("007", "text", Truth(text="007")),
        (r"\frac{1}{2}", "math", Truth(text=r"\frac{1}{2}")),
        ('"a cat"', "text", Truth(text="a cat")),
        ("true", "yes_no", Truth(text="yes")),
        (["a", "b"], "text", Truth(text='["a", "b"]')),
    ],
)
def test_truth_of_a_solution(solution, task, truth):
    assert read_solution(solution, task) == truth


@pytest.mark.parametrize(
    ("solution", "task", "kind", "words"),
    [
        ([3, 2, 1, 4], "rec", "box_reversed", "[3, 2, 1, 4] is reversed"),
        ([1, 2, 1, 4], "rec", "box_empty", "no area"),
        ([1, 2, 3], "rec", "box_shape", "not four numbers"),
        ([1, 2, 3, "4"], "rec", "box_number", "not a finite number"),
        ([1, 2, 3, float("nan")], "rec", "box_number", "not a finite number"),
        ([1, 2, 3, 10**400], "rec", "box_number", "not a finite number"),
        ([1, 2, 3, True], "rec", "box_number", "True"),
        ([{"label": "cat"}], "ovd", "box_shape", "None is not four numbers"),
        ([{"bbox": [1, 2, 3, 4], "label": 7}], "ovd", "label", "7 is not text"),
        ([[1, 2, 3, 4], [1, 2, 3, 4]], "rec", "solution_type", "the solution has 2"),
        ("a cat", "rec", "solution_type", "a box"),
        ("E or F", "choice", "solution_type", "a letter"),
        ("maybe", "yes_no", "solution_type", "yes or no"),
        ("four", "number", "solution_type", "a number"),
        ("", "number", "solution_type", "a number"),
        (True, "number", "solution_type", "a number"),
        (None, "text", "solution_type", "a text"),
        ("x", "recc", "task", 'did you mean "rec"'),
    ],
)
def test_a_wrong_solution_is_one_message_with_value_and_remedy(solution, task, kind, words):
    with pytest.raises(DataError) as caught:
        read_solution(solution, task)
    assert [fault.kind for fault in caught.value.faults] == [kind]
    assert words in str(caught.value)
    assert caught.value.faults[0].remedy


def test_every_bad_box_of_a_list_is_named():
    with pytest.raises(DataError) as caught:
        read_solution([[9, 0, 1, 5], [0, 0, 4, 4], [1, 1, 1, 5]], "ovd")
    assert [fault.kind for fault in caught.value.faults] == ["box_reversed", "box_empty"]


@pytest.mark.parametrize(
    ("solution", "question", "task"),
    [
        ([1, 2, 3, 4], "", "rec"),
        ("[9, 2, 3, 4]", "", "rec"),
        ({"bbox": [1, 2, 3, 4]}, "", "rec"),
        ([{"bbox": [1, 2, 3, 4]}], "", "ovd"),
        ("[]", "", "ovd"),
        (None, "", "ovd"),
        ("<answer>None</answer>", "", "ovd"),
        ("B", "Which?\nA. cat\nB. dog", "choice"),
        ("(B)", "Which? (A) cat (B) dog", "choice"),
        ("B", "Name a vitamin.", "text"),
        ("yes", "", "yes_no"),
        (True, "", "yes_no"),
        ("<answer> 4 </answer>", "", "number"),
        (4.5, "", "number"),
        ("4 cats", "", "text"),
        ("a cat", "", "text"),
        (["a"], "", "text"),
        ("true", "", "text"),
        ([1, 2, 3], "", "rec"),
        (float("nan"), "", "number"),
    ],
)
def test_the_task_that_a_solution_suggests(solution, question, task):
    assert infer_task(solution, question) == task


@pytest.mark.parametrize(
    ("value", "truth"),
    [
        ([1, 2, 3, 4], Truth(boxes=(PLAIN,))),
        ("[1, 2, 3, 4]", Truth(boxes=(PLAIN,), text="[1, 2, 3, 4]")),
        ("<answer> [1, 2, 3, 4] </answer>", Truth(boxes=(PLAIN,), text="[1, 2, 3, 4]")),
        (
            "<think>it is [9, 9, 10, 10]</think><answer>[1, 2, 3, 4]</answer>",
            Truth(boxes=(PLAIN,), text="[1, 2, 3, 4]"),
        ),
        ([{"bbox_2d": [1, 2, 3, 4], "label": "cat"}], Truth(boxes=CAT.boxes)),
        ([{"bbox": [1, 2, 3, 4], "label": "cat"}, {"bbox": [1, 2, 3, 4]}], Truth(boxes=(*CAT.boxes, PLAIN))),
        ({"bbox_2d": [1, 2, 3, 4]}, Truth(boxes=(PLAIN,))),
        ([[1, 2, 3, 4]], Truth(boxes=(PLAIN,))),
        ([], Truth(boxes=())),
        (None, Truth(boxes=())),
        ("None", Truth(boxes=(), text="None")),
        ("```json\nNone\n```", Truth(boxes=(), text="None")),
        (4, Truth(number=4.0, text="4")),
        ("-4.5", Truth(number=-4.5, text="-4.5")),
        ("B", Truth(text="B")),
        ('"B"', Truth(text="B")),
        ("true", Truth(text="true")),
        (True, Truth(text="yes")),
        ("<answer>no</answer>", Truth(text="no")),
        ("-1,234.5", Truth(number=-1234.5, text="-1,234.5")),
        ("NaN", Truth(text="NaN")),
        ('["a", "b"]', Truth(text='["a", "b"]')),
        ({"a": 1}, Truth(text='{"a": 1}')),
        ("[unclosed", Truth(text="[unclosed")),
    ],
)
def test_solutions_as_json_or_as_a_string_that_holds_it(value, truth):
    assert read_solution(value) == truth


def test_a_fenced_list_is_a_list():
    truth = read_solution('```json\n[{"bbox_2d": [1, 2, 3, 4], "label": "cat"}]\n```')
    assert truth.boxes == CAT.boxes


@pytest.mark.parametrize(
    "value", [[3, 2, 1, 4], [1, 2, 3], [1, 2, 3, "4"], [{"label": "a"}], [[1, 2, 1, 4]], float("nan"), "[1, 2, 3]"]
)
def test_a_false_truth_is_refused(value):
    with pytest.raises(DataError, match="solution"):
        read_solution(value)


@pytest.mark.parametrize(
    ("text", "think", "answer"),
    [
        ("4", None, "4"),
        ("<think> a </think> <answer> 4 </answer>", "a", "4"),
        ("<answer>3</answer><answer>4</answer>", None, "4"),
        ("<think>a</think> 4", "a", "4"),
        ("```json\n[1]\n```", None, "[1]"),
        ("x ```y``` z", None, "y"),
        ("<answer>1<answer>2</answer>", None, "2"),
        ("<answer>4", None, "<answer>4"),
    ],
)
def test_split_answer(text, think, answer):
    assert split_answer(text) == (think, answer)
