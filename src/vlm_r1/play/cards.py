"""What a model says, as HTML: one card an answer, while it is written and once it is read and scored."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, Template

from vlm_r1.play.answers import Progress
from vlm_r1.records import Answer, Score
from vlm_r1.report.findings import box_words, number
from vlm_r1.report.gallery import bars
from vlm_r1.report.looks import Look, looks
from vlm_r1.runtime.rows import call_columns

_THINK = re.compile(r"\s*<think>(.*?)(?:</think>|$)", re.DOTALL)
_CUT_TAG = re.compile(r"</?[a-z]*$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One answer as it is shown; `image` is the address of the image with its boxes, empty until it has one.

    Example: `Card(think="red circle, top", answer="[1, 2, 3, 4]").failure` is "".
    """

    think: str = ""
    answer: str = ""
    image: str = ""
    boxes: tuple[str, ...] = ()
    failure: str = ""
    facts: str = ""
    reward: str = ""
    """The first reward, for the head of a card among several."""
    bars: tuple[tuple[str, str, float], ...] = ()
    looks: tuple[Look, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """All that one model says to a question.

    `question` was asked about the image named `image`, whose address is `thumb`. `ratio` is its width / height; `key`
    asks for the meaning of the boxes' colours.
    """

    name: str
    question: str = ""
    image: str = ""
    thumb: str = ""
    cards: tuple[Card, ...] = ()
    note: str = ""
    busy: bool = False
    asked: str = ""
    template: str = ""
    ratio: float = 1.0
    summary: tuple[str, ...] = ()
    key: bool = False

    def html(self) -> str:
        """The column as HTML; what a model or a person wrote is escaped."""
        return _template().render(column=self)


@cache
def _template() -> Template:
    environment = Environment(
        loader=ChoiceLoader([PackageLoader("vlm_r1.play"), PackageLoader("vlm_r1.report")]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    return environment.get_template("column.html.j2")


def split_unfinished(text: str) -> tuple[str, str]:
    """`(thought, answer)` of a text that is still being written; half a tag at its end is left out."""
    text = _CUT_TAG.sub("", text)
    thought = _THINK.match(text)
    rest = text[thought.end() :] if thought else text
    answer = rest.strip().removeprefix("<answer>").removesuffix("</answer>").strip()
    return (thought.group(1).strip() if thought else ""), answer


def growing_cards(progress: Progress) -> tuple[Card, ...]:
    """The cards of answers that have not ended."""
    parts = [split_unfinished(text) for text in progress.texts]
    return tuple(Card(think=think, answer=answer) for think, answer in parts)


def finished_card(answer: Answer, image: str, score: Score | None, *, stopped: bool = False) -> Card:
    """The card of an answer that was read, with the address of its image and its rewards."""
    think, text = split_unfinished(answer.raw)
    found = answer.value if isinstance(answer.value, tuple) else ()
    facts = [f"{answer.n_tokens} tokens"] if answer.n_tokens else []
    if answer.truncated:
        facts.append("stopped" if stopped else "cut at the token limit")
    if answer.dropped:
        facts.append(f"{answer.dropped} malformed boxes left out")
    first = next(iter(score.parts.items()), None) if score else None
    return Card(
        think=answer.think.strip() if answer.think is not None else think,
        answer=answer.text if answer.text is not None else text,
        image=image,
        boxes=tuple(map(box_words, found)),
        failure=answer.failure.detail if answer.failure else "",
        facts=", ".join(facts),
        reward=f"{first[0]} {number(first[1])}" if first and first[1] is not None else "",
        bars=bars(score.parts) if score else (),
        looks=looks(call_columns(answer)),
    )


def summary(scores: Sequence[Score]) -> tuple[str, ...]:
    """One line a reward over several answers: its mean, its best and its worst."""
    lines = []
    for name in scores[0].parts if len(scores) > 1 else ():
        values = [value for score in scores if (value := score.parts[name]) is not None]
        if values:
            mean, low, high = (number(x) for x in (sum(values) / len(values), min(values), max(values)))
            lines.append(f"{name}: mean {mean}, from {low} to {high}" if low != high else f"{name}: {low} each")
    return tuple(lines)
