"""The HTML of answers: what was written is escaped, unfinished texts are split, rewards are summed up."""

import pytest

from vlm_r1.play.answers import Progress
from vlm_r1.play.cards import Column, finished_card, growing_cards, split_unfinished, summary
from vlm_r1.records import Answer, LabelledBox, ParseFailure, Score


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ("", "")),
        ("<thi", ("", "")),
        ("<think>red", ("red", "")),
        ("<think>red</th", ("red", "")),
        ("<think>red</think>", ("red", "")),
        ("<think>red</think>\n<answer>[1, 2", ("red", "[1, 2")),
        ("<think>red</think><answer>[1]</answer>", ("red", "[1]")),
        ("no tags < at all", ("", "no tags < at all")),
    ],
)
def test_an_unfinished_text_is_split_without_half_tags(text, parts):
    assert split_unfinished(text) == parts


def test_what_is_written_is_escaped_everywhere():
    evil = "<img src=x onerror=alert(1)>"
    answer = Answer(
        raw=evil,
        think=evil,
        text=evil,
        value=(LabelledBox(box=(1, 2, 3, 4), label=evil),),
        failure=ParseFailure(kind="unreadable", detail=evil),
    )
    card = finished_card(answer, "file.png", Score(total=1.0, parts={evil: 1.0}))
    page = Column(name=evil, cards=(card, card), note=evil, asked=evil, template=evil, summary=(evil,)).html()
    page += Column(name="m", cards=growing_cards(Progress(asked="", texts=(evil,))), busy=True).html()
    assert "<img src=x" not in page and page.count("&lt;img src=x") >= 10


def test_a_card_says_why_an_answer_is_short_and_what_its_boxes_are():
    boxes = (LabelledBox(box=(1, 2.25, 3, 4), label="cat"), LabelledBox(box=(5, 6, 7, 8)))
    answer = Answer(raw="", text="x", value=boxes, truncated=True, dropped=2, n_tokens=7)
    card = finished_card(answer, "", Score(total=None, parts={"iou": -0.25, "math": None}))
    assert card.boxes == ("cat: (1.0, 2.2, 3.0, 4.0)", "(5.0, 6.0, 7.0, 8.0)")
    assert card.facts == "7 tokens, cut at the token limit, 2 malformed boxes left out"
    assert card.reward == "iou \N{MINUS SIGN}0.250"
    assert [bar[:2] for bar in card.bars] == [("iou", "\N{MINUS SIGN}0.250"), ("math", "not scored")]
    assert finished_card(answer, "", None, stopped=True).facts.startswith("7 tokens, stopped")


def test_the_rewards_of_several_answers_are_summed_up():
    scores = [Score(total=1.0, parts={"iou": x, "format": 1.0, "math": None}) for x in (0.25, 0.5, 0.75)]
    assert summary(scores) == ("iou: mean 0.500, from 0.250 to 0.750", "format: 1.000 each")
    assert summary(scores[:1]) == ()
