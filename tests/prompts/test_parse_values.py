import pytest

from vlm_r1.prompts.parse_values import read_choice, read_number, read_text, read_yes_no, unfence


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("b", "B"),
        ("(A)", "A"),
        ("[C]", "C"),
        ("A) cat", "A"),
        ("b) cat", "B"),
        ("A. cat", "A"),
        ("A: cat", "A"),
        ("A.", "A"),
        ("**C**", "C"),
        (r"\boxed{D}", "D"),
        (r"\boxed{\text{D}}", "D"),
        ("answer is B because", "B"),
        ("The answer is B because C is too small.", "B"),
        ("The correct answer is (B).", "B"),
        ("Answer: c", "C"),
        ("Option B", "B"),
        ("option (b)", "B"),
        ("I think B", "B"),
        ("I would choose D.", "D"),
        ("B. I am sure", "B"),
        ("A is right", "A"),
        ("B (the answer is B)", "B"),
        ("\uff22", "B"),
        ("B, not a cat", "B"),
        ("A - cat", "A"),
        ("A red", "A"),
        ("A 12.", "A"),
        # Chinese, Japanese and Korean leave no space beside the letter.
        ("答案是A", "A"),
        ("答案是b", "B"),
        ("选A。", "A"),
        ("正确答案为(C)", "C"),
        ("A是正确的", "A"),
        ("答えはBです", "B"),
        ("정답은 A입니다", "A"),
    ],
)
def test_choices_as_people_and_models_write_them(text, letter):
    assert read_choice(text) == (letter, None)


@pytest.mark.parametrize(
    "text",
    [
        "A or B",
        "A and B",
        "A, B",
        "A/B",
        "(A) or (C)",
        "A) cat, B) dog",
        "either C or D",
        "not B",
        "The answer isn't (B)",
        "A或B",
        "答案不是A",
    ],
)
def test_a_hedged_choice_is_a_failure(text):
    assert read_choice(text) == (None, "ambiguous")


OPTIONS = "Which?\nA. red car\nB. blue\n(C) a red car park"


@pytest.mark.parametrize(
    ("text", "question", "letter"),
    [
        ("A cat", "Which? (A) cat (B) dog", "A"),
        ("A  Cat.", "Which? A) cat, B) dog", "A"),
        ("I cat", "Which?\nH: dog\nI: cat", "I"),
        ("A dog", "Which? (A) cat (B) dog", None),
        ("A cat or B dog", "Which? (A) cat (B) dog", None),
        ("A red car", "Which?\nA. red car\nB. blue", "A"),
        # Here it may as well be the beginning of C.
        ("A red car", OPTIONS, None),
        ("B", OPTIONS, "B"),
    ],
)
def test_a_letter_before_its_option_is_no_article(text, question, letter):
    assert read_choice(text, question)[0] == letter


@pytest.mark.parametrize(
    "text", ["A cat", "A red car", "A 12-year-old", "T恤", "I know", "the cat", "AB", "The answer is a dog", "", "42"]
)
def test_articles_and_words_are_no_choice(text):
    assert read_choice(text) == (None, "unreadable")


@pytest.mark.parametrize(
    ("text", "word", "failure"),
    [
        ("yes", "yes", None),
        ("No.", "no", None),
        ("I know, yes", "yes", None),
        ("nothing, yes", "yes", None),
        ("YES because no cat is there", "yes", None),
        ("no, no, no", "no", None),
        ("yes and no", None, "ambiguous"),
        ("maybe", None, "unreadable"),
        ("noyes", None, "unreadable"),
    ],
)
def test_yes_and_no_are_whole_words(text, word, failure):
    assert read_yes_no(text) == (word, failure)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("4", 4.0),
        ("-3", -3.0),
        ("+3", 3.0),
        ("\u22125", -5.0),
        ("- 5", -5.0),
        ("3.14", 3.14),
        (".5", 0.5),
        ("5.", 5.0),
        ("1,234", 1234.0),
        ("1,234,567.5", 1234567.5),
        ("$1,234.50", 1234.5),
        ("1{,}000", 1000.0),
        ("1e3", 1000.0),
        ("3.5 cm", 3.5),
        ("12 m2", 12.0),
        ("12 m^2", 12.0),
        ("50%", 50.0),
        ("20\u00b0C", 20.0),
        ("1/2", 0.5),
        ("-1/2", -0.5),
        (r"\frac{3}{4}", 0.75),
        (r"\boxed{7}", 7.0),
        ("x = -5", -5.0),
        ("There are 4 cats.", 4.0),
        ("4, since 2 and 2 make it", 4.0),
        ("4 (4)", 4.0),
        ("```\n9\n```", 9.0),
        ("\uff14", 4.0),
    ],
)
def test_numbers_with_signs_thousands_and_units(text, value):
    assert read_number(text) == (pytest.approx(value, abs=1e-12), None)


@pytest.mark.parametrize(
    "text", ["3 or 4", "3-4", "1, 2", "12,5", "1234,567", "10:30", "2 + 2 = 4", "between 3 and 5", "not 5"]
)
def test_a_hedged_number_is_a_failure(text):
    assert read_number(text) == (None, "ambiguous")


@pytest.mark.parametrize("text", ["12345678901234567891", "-12,345,678,901,234,567,891", "9007199254740993"])
def test_integers_that_a_float_would_round_stay_exact(text):
    value, failure = read_number(text)
    assert (str(value), failure) == (text.replace(",", ""), None)


@pytest.mark.parametrize("text", ["four", "", "m2", "9" * 400, "NaN", "1.2.3", "1/0 of it? no number: x"])
def test_what_is_no_number_is_unreadable(text):
    value, failure = read_number(text)
    assert value is None
    assert failure in ("unreadable", "ambiguous")


def test_the_last_fenced_block_is_the_answer():
    assert unfence("a ```x``` b ```json\ny\n``` c") == "y"
    assert unfence(" plain ") == "plain"
    assert unfence("```json\n[1]") == "[1]"
    assert unfence("```x```\n```y") == "x"
    assert read_text("```\n\n```") == (None, "empty_answer")
    assert read_text(" two words ") == ("two words", None)
