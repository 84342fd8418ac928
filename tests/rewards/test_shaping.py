import math

import pytest

from vlm_r1.errors import ConfigError
from vlm_r1.rewards.shaping import length_cosine, repetition

TRUE = (0, 0, 10, 10)


@pytest.mark.parametrize(
    ("n_tokens", "right", "wrong"),
    [
        (1, 0.5 + 0.25 * (1 + math.cos(math.pi / 1024)), -0.25 * (1 + math.cos(math.pi / 1024))),
        (512, 0.75, -0.25),
        (1024, 0.5, 0.0),
        # The reference's cosine turns round: 2048 tokens are worth 1 again there.
        (2048, 0.5, 0.0),
    ],
)
def test_the_cosine_over_length(case, n_tokens, right, wrong):
    assert length_cosine(*case("rec", "[0,0,10,10]", boxes=[TRUE], n_tokens=n_tokens)).total == pytest.approx(right)
    assert length_cosine(*case("rec", "[0,0,5,5]", boxes=[TRUE], n_tokens=n_tokens)).total == pytest.approx(wrong)
    assert length_cosine(*case("rec", "hm", boxes=[TRUE], n_tokens=n_tokens)).total == pytest.approx(wrong)


def test_correct_is_what_the_options_say(case):
    pair = case("rec", "[0,0,10,5]", boxes=[TRUE], n_tokens=100)
    assert length_cosine(*pair, max_tokens=100).total == pytest.approx(0)
    assert length_cosine(*pair, max_tokens=100, threshold=0.5).total == pytest.approx(0.5)
    assert length_cosine(*pair, max_tokens=100, correct="iou_threshold").total == pytest.approx(0.5)
    with pytest.raises(ConfigError, match=r'unknown reward "iuo": did you mean "iou"'):
        length_cosine(*pair, correct="iuo")


def test_each_task_has_its_own_correct(case):
    assert length_cosine(*case("choice", "B", choice="B", n_tokens=512)).total == pytest.approx(0.75)
    assert length_cosine(*case("number", "4", number=5.0, n_tokens=512)).total == pytest.approx(-0.25)


def test_length_needs_tokens_and_a_truth(case):
    assert length_cosine(*case("rec", "[0,0,1,1]", boxes=[TRUE])).total is None
    assert length_cosine(*case("rec", "[0,0,1,1]", n_tokens=5)).total is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", 0),
        ("one two three four five", 0),
        ("a b c d e f g", 0),
        # Seven equal words: two equal 6-grams.
        ("x x x x x x x", -1 / 2),
        ("x X x, x x x x x x x", -4 / 5),
    ],
)
def test_repeated_words(case, text, value):
    assert repetition(*case("text", text, wrap=False, text="t")).total == pytest.approx(value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("\U0001f600" * 7, -1 / 2),
        ("\U0001f600 " * 7, -1 / 2),
        ("!" * 10, -4 / 5),
        ("_ _ _ _ _ _ _", -1 / 2),
        ("wow " + "!" * 7, -1 / 3),
        # Six words and one emoji: not enough marks in a row to be counted.
        ("a b c d e f \U0001f600", 0),
        ("[1, 2], [3, 4], [5, 6]", 0),
        # 40 characters in a row are no word: 35 6-grams, three of them distinct (0.3333, .33333, 333333).
        ("a" * 40, -34 / 35),
        ("pneumonoultramicroscopicsilicovolcanoconiosis", 0),
    ],
)
def test_repeated_marks_and_endless_words(case, text, value):
    assert repetition(*case("text", text, wrap=False, text="t")).total == pytest.approx(value)


def test_scripts_without_spaces_are_counted_by_character(case):
    assert repetition(*case("text", "\u306f" * 7, wrap=False, text="t")).total == pytest.approx(-1 / 2)


def test_repeated_boxes_and_not_the_keys_of_json(case):
    item = '{{"bbox_2d": [{0}, 0, 100, 10], "label": "cat"}}'
    distinct = "[" + ", ".join(item.format(i) for i in range(20)) + "]"
    assert repetition(*case("ovd", distinct, boxes=[])).total == 0
    same = "[" + ", ".join(item.format(1) for _ in range(4)) + "]"
    assert repetition(*case("ovd", same, boxes=[])).total == pytest.approx(-3 / 4)


def test_zero_is_not_negative_zero(case):
    assert math.copysign(1, repetition(*case("text", "a", text="t")).total) == 1


def test_repetition_is_charged_without_an_answer_too(case):
    assert repetition(*case("rec", "loop " * 100, wrap=False, boxes=[TRUE])).total == pytest.approx(-94 / 95)
