import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_r1.boxes import BoxMap
from vlm_r1.errors import DataError
from vlm_r1.prompts.parse import FAILURE_KINDS, extract_blocks, read_answer
from vlm_r1.prompts.templates import TASKS
from vlm_r1.records import Sample, Truth

SAMPLES = {task: Sample(id="0", question="q", truth=Truth(), task=task) for task in TASKS}


def read(text, task="rec", box_map=None):
    return read_answer(text, SAMPLES[task], box_map or BoxMap())


def in_answer(text, task="rec", **kwargs):
    return read(f"<think>t</think><answer>{text}</answer>", task, **kwargs)


def boxes(answer):
    return [item.box for item in answer.value]


@pytest.mark.parametrize(
    ("text", "think", "answer", "fault"),
    [
        ("<think>a</think><answer>b</answer>", "a", "b", None),
        (" <think>a\n</think>\n\n<answer>\nb\n</answer>\n", "a\n", "\nb\n", None),
        ("", None, None, "no_answer"),
        ("just text", None, None, "no_answer"),
        ("<think>a</think> 4", "a", None, "no_answer"),
        ("<think>a</think><answer>b", "a", None, "unclosed_answer"),
        ("b</answer>", None, None, "stray_tag"),
        ("<answer>b</answer>", None, "b", "no_think"),
        ("<think>a<answer>b</answer>", None, "b", "unclosed_think"),
        ("a</think><answer>b</answer>", None, "b", "stray_tag"),
        ("<answer>b</answer><think>a</think>", "a", "b", "wrong_order"),
        ("<think>a</think><answer>b</answer><answer>c</answer>", "a", "c", "repeated_answer"),
        ("<think>a</think><answer>b</answer><answer>c", "a", "b", "unclosed_answer"),
        ("<think>a</think><think>b</think><answer>c</answer>", "a", "c", "repeated_think"),
        ("<think>a</think><answer><answer>b</answer></answer>", "a", "b", "nested_tag"),
        ("<think>x<answer>a</answer></think><answer>b</answer>", None, "b", "repeated_answer"),
        ("<think>x<answer>b</answer></think>", None, "b", "nested_tag"),
        ("<answer><think>x</think></answer>", "x", None, "nested_tag"),
        ("<think>a</think>so<answer>b</answer>", "a", "b", "text_outside"),
        ("<think>a</think><answer>b</answer> done", "a", "b", "text_outside"),
        ("<think>a</think><answer>b</answer></answer>", "a", "b", "stray_tag"),
    ],
)
def test_blocks_and_the_first_fault_of_format(text, think, answer, fault):
    blocks = extract_blocks(text)
    assert (blocks.think, blocks.answer, blocks.fault) == (think, answer, fault)
    assert blocks.well_formed is (fault is None)
    assert fault is None or fault in FAILURE_KINDS


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[1, 2, 3, 4]", [(1, 2, 3, 4)]),
        ("[1.5, 2, 3.25, 4]", [(1.5, 2, 3.25, 4)]),
        ('{"bbox_2d": [1, 2, 3, 4], "label": "a"}', [(1, 2, 3, 4)]),
        ('{"bbox": [-1, 2, 3, 4]}', [(-1, 2, 3, 4)]),
        ("[[1, 2, 3, 4], [5, 6, 7, 8]]", [(1, 2, 3, 4), (5, 6, 7, 8)]),
        ('[{"bbox_2d": [1,2,3,4]}, {"bbox": [5,6,7,8], "label": "b"}]', [(1, 2, 3, 4), (5, 6, 7, 8)]),
        ('{"objects": [{"bbox_2d": [1,2,3,4], "label": "a"}]}', [(1, 2, 3, 4)]),
        ("```json\n[1, 2, 3, 4]\n```", [(1, 2, 3, 4)]),
        ("first ```json\n[9, 9, 10, 10]\n``` no: ```\n[1, 2, 3, 4]\n``` [5, 6, 7, 8]", [(1, 2, 3, 4)]),
        ("```json [1, 2, 3, 4] ```", [(1, 2, 3, 4)]),
        ("```json\n[1, 2, 3, 4]", [(1, 2, 3, 4)]),
        ("{'bbox_2d': [1, 2, 3, 4], 'label': 'a',}", [(1, 2, 3, 4)]),
        ('[{"bbox_2d": [1, 2, 3, 4], "label": "a"}', [(1, 2, 3, 4)]),
        ("The box is [1, 2, 3, 4], I think.", [(1, 2, 3, 4)]),
        ("(1, 2), (3, 4)", [(1, 2, 3, 4)]),
        ("(1, 2, 3, 4)", [(1, 2, 3, 4)]),
        ("1, 2, 3, 4", [(1, 2, 3, 4)]),
        ("<box>[[1, 2, 3, 4]]</box>", [(1, 2, 3, 4)]),
        ("<loc0002><loc0001><loc0004><loc0003> cat", [(1, 2, 3, 4)]),
    ],
)
def test_boxes_in_the_forms_that_models_write(text, expected):
    answer = in_answer(text)
    assert boxes(answer) == expected
    assert answer.failure is None
    assert answer.dropped == 0


def test_labels_are_kept_and_may_be_missing():
    answer = in_answer('[{"bbox_2d": [1,2,3,4], "label": "Red  Circle"}, {"bbox_2d": [1,2,3,5]}]', "ovd")
    assert [item.label for item in answer.value] == ["Red  Circle", ""]
    repaired = in_answer("[{'bbox_2d': [1,2,3,4], 'label': 'a'}, {'bbox_2d': [5,6", "ovd")
    assert [item.label for item in repaired.value] == ["a"]
    assert repaired.dropped == 1


@pytest.mark.parametrize("text", ["None", "none", " null ", "[]", '"None"', "```json\nNone\n```", "None.", "[]\n"])
def test_only_these_say_that_nothing_is_there(text):
    answer = in_answer(text, "ovd")
    assert answer.value == ()
    assert answer.failure is None


@pytest.mark.parametrize(
    "text", ["nothing", "no objects", "{}", "There are none.", "[] or so", "0", "N/A", "[none]", '""', "[[]]"]
)
def test_other_words_for_nothing_are_failures(text):
    answer = in_answer(text, "ovd")
    assert answer.value is None
    assert answer.failure.kind in ("unreadable", "no_valid_box")


@pytest.mark.parametrize(
    ("text", "n_boxes", "dropped"),
    [
        ("[3, 2, 1, 4]", 0, 1),
        ("[1, 2, 1, 4]", 0, 1),
        ("[1, 2, 3]", 0, 1),
        ("[1, 2, 3, NaN]", 0, 1),
        ("[1, 2, 3, 1e999]", 0, 1),
        ("[1, 2, 3, true]", 0, 1),
        ('{"bbox_2d": "None"}', 0, 1),
        ('{"bbox_2d": null, "label": "a"}', 0, 1),
        ("[[1, 2, 3, 4], [4, 3, 2, 1], [1, 2, 3, 4, 5]]", 1, 2),
        ('[{"bbox_2d": [1,2,3,4], "label": "a"}, {"label": "b"}, null, 7]', 1, 3),
        ("[" * 9 + "1,2,3,4" + "]" * 9, 0, 1),
    ],
)
def test_what_is_no_box_is_dropped_and_counted(text, n_boxes, dropped):
    answer = in_answer(text, "ovd")
    assert len(answer.value or ()) == n_boxes
    assert answer.dropped == dropped
    assert (answer.failure is None) == (n_boxes > 0)
    assert n_boxes or answer.failure.kind == "no_valid_box"


def test_a_long_broken_list_keeps_its_sound_items():
    item = '{"bbox_2d": [1, 2, 3, 4], "label": "cat"}, '
    answer = in_answer("[" + item * 200 + "{'bbox_2d': [1, 2, 3, 5], 'label': 'dog'}, " + '{"bbox_2d": [5, 6', "ovd")
    assert len(answer.value) == 201
    assert answer.value[-1].label == "dog"


def test_boxes_come_out_in_original_pixels():
    answer = in_answer("[100, 200, 500, 1000]", box_map=BoxMap(x=0.64, y=0.48))
    assert boxes(answer)[0] == pytest.approx((64, 96, 320, 480))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[3, 4]", (3, 4, 3, 4)),
        ("(3, 4)", (3, 4, 3, 4)),
        ('{"point_2d": [3, 4]}', (3, 4, 3, 4)),
        ('{"x": 3, "y": 4}', (3, 4, 3, 4)),
        ("click(3, 4)", (3, 4, 3, 4)),
        ("[1, 2, 3, 4]", (1, 2, 3, 4)),
    ],
)
def test_a_click_is_a_point_or_a_box(text, expected):
    assert boxes(in_answer(text, "gui")) == [expected]


def test_a_point_is_no_box_where_a_box_is_asked_for():
    assert in_answer("[3, 4]").failure.kind == "no_valid_box"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("[1, 2, 3, 4]", "no_answer"),
        ("<think>[1, 2, 3, 4]</think>", "no_answer"),
        ("<answer>[1, 2, 3, 4]", "unclosed_answer"),
        ("[1, 2, 3, 4]</answer>", "stray_tag"),
        ("<answer><think>[1, 2, 3, 4]</think></answer>", "nested_tag"),
        ("<answer>  </answer>", "empty_answer"),
        ("<answer>hm</answer>", "unreadable"),
    ],
)
def test_without_a_readable_answer_there_is_a_named_failure(text, kind):
    answer = read(text)
    assert answer.failure.kind == kind
    assert answer.failure.detail == FAILURE_KINDS[kind]
    assert answer.value is None


def test_the_last_complete_answer_counts_and_of_its_boxes_the_first():
    assert boxes(read("<answer>[9,9,10,10]</answer><answer>[1,2,3,4] or [5,6,7,8]</answer><answer>[7"))[0] == (
        1,
        2,
        3,
        4,
    )


def test_what_is_known_of_the_rollout_is_kept():
    answer = read_answer("<answer>4</answer>", SAMPLES["number"], BoxMap(), n_tokens=12, truncated=True)
    assert (answer.n_tokens, answer.truncated, answer.text, answer.value) == (12, True, "4", 4.0)


def test_an_unknown_task_is_an_error_of_the_data():
    with pytest.raises(DataError, match=r'unknown task "rex".*did you mean "rec"'):
        read_answer("x", Sample(id="0", question="", truth=Truth(), task="rex"), BoxMap())


WRITTEN = """
<think> </think> <answer> </answer> ``` ```json [ ] { } "bbox_2d": "label": None null 1 -2.5 1e999 NaN , : ( ) ' "
A B) yes no or because \\frac{1}{2} $ \\boxed{ <loc0001> é ٣ ² ½
"""
WORDS = [*WRITTEN.split(), " ", "\n", "\ud800", "\x00", "9" * 400]
TEXTS = st.one_of(st.text(), st.lists(st.sampled_from(WORDS), max_size=30).map("".join))


def check_any_text(text):
    for task in TASKS:
        for whole in (text, f"<think>t</think><answer>{text}</answer>"):
            answer = read(whole, task)
            assert (answer.failure is None) or answer.failure.kind in FAILURE_KINDS
            assert (answer.value is None) == (answer.failure is not None)


@settings(max_examples=2000 // 24, deadline=None)
@given(TEXTS)
def test_reading_never_raises(text):
    check_any_text(text)


@pytest.mark.campaign
def test_reading_never_raises_on_100_000_texts():
    rng = random.Random(0)
    for _ in range(100_000):
        if rng.random() < 0.2:
            check_any_text("".join(chr(rng.randrange(0x3000)) for _ in range(rng.randrange(40))))
        else:
            check_any_text("".join(rng.choices(WORDS, k=rng.randrange(30))))


MONSTERS = [("[", 100_000), ("{", 100_000), ('{"a":', 20_000), ("9", 100_000), ("<answer>", 20_000), ("(1,", 30_000)]
MONSTERS += [("A or ", 20_000), ("$", 50_000), ("```", 30_000), ("\\boxed{", 10_000), ("1,", 40_000), ("<", 100_000)]
MONSTERS += [('["a"', 9000), ('"a" b', 9000), ("{x", 9000), ("[9", 50_000), ("\\frac{", 9000), ("no because ", 9000)]


@pytest.mark.parametrize("text", [piece * n for piece, n in MONSTERS], ids=[piece for piece, _ in MONSTERS])
def test_monstrous_texts_are_read_too(text):
    check_any_text(text)


LOC = BoxMap(x=200 / 1024, y=120 / 1024, loc=True)
BOX = "<loc0256><loc0128><loc0512><loc0384>"


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        (f"{BOX} cat", ["cat"]),
        (f"{BOX} cat ; {BOX} a dog\n", ["cat", "a dog"]),
        (f"{BOX} <seg001><seg127> cat ; {BOX}", ["cat", ""]),
        (f"<think>there</think><answer>{BOX} cat</answer>", ["cat"]),
    ],
)
def test_location_tokens_are_read_with_and_without_tags(text, labels):
    answer = read_answer(text, SAMPLES["ovd"], LOC)
    assert [b.label for b in answer.value] == labels
    assert {b.box for b in answer.value} == {(25.0, 30.0, 75.0, 60.0)}
    assert answer.well_formed is text.startswith("<think>")


@pytest.mark.parametrize("text", [f"<think>{BOX}</think>", f"<answer>{BOX}", f"{BOX}</answer>"])
def test_an_unfinished_tag_is_a_failure_with_location_tokens_too(text):
    assert read_answer(text, SAMPLES["ovd"], LOC).value is None


def test_without_location_tokens_the_tags_are_needed():
    assert read_answer(f"{BOX} cat", SAMPLES["ovd"], BoxMap()).failure.kind == "no_answer"
