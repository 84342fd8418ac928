import pytest

from vlm_r1.rewards.mathematics import math
from vlm_r1.rewards.text import choice, edit_similarity, exact_text, number, yes_no


@pytest.mark.parametrize(
    ("written", "value"),
    [("B", 1), ("(b)", 1), ("B) cat", 1), ("answer is B because", 1), ("A", 0), ("B or C", 0), ("cat", 0), ("", 0)],
)
def test_choice(case, written, value):
    assert choice(*case("choice", written, choice="B")).total == value
    assert choice(*case("choice", written, text="(B)")).total == value


@pytest.mark.parametrize(
    ("written", "true", "value"),
    [
        ("I know, yes", "Yes", 1),
        ("I know, yes", "No", 0),
        ("no", "no", 1),
        ("yes and no", "yes", 0),
        # The reference gives 1 where neither side holds yes or no.
        ("maybe", "yes", 0),
        ("maybe", "perhaps", None),
    ],
)
def test_yes_no(case, written, true, value):
    assert yes_no(*case("yes_no", written, text=true)).total == value


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("1234", 1),
        ("1,234.0", 1),
        ("1234 cm", 1),
        ("1235", 0),
        ("123", 0),
        ("1234 or 1235", 0),
        ("many", 0),
        ("-1234", 0),
    ],
)
def test_numbers_have_no_partial_credit(case, written, value):
    assert number(*case("number", written, number=1234.0)).total == value
    assert number(*case("number", written, text="1,234 cm")).total == value


def test_the_tolerance_of_a_number(case):
    pair = case("number", "104", number=100.0)
    assert number(*pair, relative=0.05).total == 1
    assert number(*pair, relative=0.03).total == 0
    assert number(*pair, tolerance=4).total == 1


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("Red Circle", 1),
        (" red\n circle. ", 1),
        ("red circles", 0),
        ("\uff32ed circle", 1),
        ("```\nred circle\n```", 1),
    ],
)
def test_exact_text(case, written, value):
    assert exact_text(*case("text", written, text="red circle")).total == value


def test_exact_text_with_case(case):
    assert exact_text(*case("text", "Red", text="red"), case=True).total == 0
    assert exact_text(*case("text", "3", number=3.0)).total == 1


BIG = 12345678901234567891


@pytest.mark.parametrize("truth", [{"text": str(BIG)}, {"number": BIG}])
def test_integers_of_twenty_digits_differ_in_the_last(case, truth):
    assert number(*case("number", str(BIG), **truth)).total == 1
    assert number(*case("number", str(BIG + 1), **truth)).total == 0
    assert number(*case("number", str(BIG + 1), **truth), relative=1e-15).total == 1
    assert math(*case("number", str(BIG + 1), **truth)).total == 0
    assert exact_text(*case("text", str(BIG), number=BIG)).total == 1


@pytest.mark.parametrize(
    ("written", "true", "value"),
    [
        ("kitten", "kitten", 1.0),
        ("sitting", "kitten", 1 - 3 / 7),
        ("abc", "xyz", 0.0),
        ("STOP", "stop", 0.0),
        ("a  b", "a b", 1.0),
        ("", "abc", 0.0),
    ],
)
def test_edit_similarity_by_hand(case, written, true, value):
    assert edit_similarity(*case("ocr", written, text=true)).total == pytest.approx(value, abs=1e-12)


def test_edit_similarity_without_case(case):
    assert edit_similarity(*case("ocr", "STOP", text="stop"), case=False).total == 1


@pytest.mark.parametrize("reward", [choice, yes_no, number, exact_text, edit_similarity])
def test_without_a_truth_it_is_not_scorable_and_without_an_answer_it_is_zero(case, reward):
    assert reward(*case("text", "x", boxes=[])).total is None
    truth = {"text": "yes" if reward is yes_no else "B" if reward is choice else "4"}
    assert reward(*case("text", truth["text"], wrap=False, **truth)).total == 0
