"""Answers as the page shows them: an image with its boxes coloured by score, and a card for each answer."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vlm_r1.errors import UserError
from vlm_r1.report.findings import boxes_words, number, signed
from vlm_r1.report.gallery import bars
from vlm_r1.report.images import View, data_uri, labelled, stroke
from vlm_r1.report.looks import Look, looks
from vlm_r1.runtime.runlog import boxes_from_json

Row = Mapping[str, Any]

LARGE, SMALL = 720, 168
"""Longest side of an image in pixels, as shown alone and in a strip."""

RAMP = ((215, 58, 73), (245, 133, 54), (251, 210, 92), (140, 200, 240), (47, 125, 246))
"""Red, orange, yellow, light blue, blue: from the lowest score to the highest. None is the green of true boxes."""

UNSCORED = "#8b95a1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One answer. `parts` holds (name, value as text, percent of the bar); `lean` is the advantage from -100 to 100."""

    answer: int
    colour: str
    score: str
    advantage: str
    lean: float
    parts: tuple[tuple[str, str, float], ...]
    think: str | None
    text: str
    failure: str | None
    facts: tuple[str, ...]
    boxes: str
    looks: tuple[Look, ...] = ()


def score_of(row: Row) -> tuple[str, float | None]:
    """What an answer was given: its reward in training, its IoU or its score in an evaluation."""
    if "reward" in row:
        return ("reward", _number(row["reward"]))
    for column, name in (("iou", "IoU"), ("score", "score"), ("correct", "correct")):
        if row.get(column) is not None:
            return (name, _number(row[column]))
    return ("score", None)


def span(rows: Sequence[Row]) -> tuple[float, float]:
    """The lowest and the highest score: the ends of the colours. An evaluation's scores run from 0 to 1."""
    known = [value for _, value in map(score_of, rows) if value is not None]
    if not any("reward" in row for row in rows):
        return (0.0, 1.0)
    return (min(known, default=0.0), max(known, default=1.0))


def colour(value: float | None, ends: tuple[float, float]) -> str:
    """A score's colour between two ends; equal ends have the colour of the middle.

    >>> colour(1.0, (0.0, 1.0)), colour(None, (0.0, 1.0))
    ('#2f7df6', '#8b95a1')
    """
    if value is None:
        return UNSCORED
    low, high = ends
    steps = len(RAMP) - 1
    place = steps * min(1.0, max(0.0, (value - low) / (high - low))) if high > low else steps / 2
    left = min(int(place), steps - 1)
    mixed = (a + (b - a) * (place - left) for a, b in zip(RAMP[left], RAMP[left + 1], strict=True))
    return "#" + "".join(f"{round(part):02x}" for part in mixed)


def drawing(
    rows: Sequence[Row], find: Callable[[], bytes], ends: tuple[float, float], longest_side: int = LARGE
) -> View:
    """The image of some answers to one question, with the true boxes and those of every answer under its number.

    `find` has the encoded image; what it raises is told on the page.
    """
    first = rows[0]
    width, height = first.get("image_width") or 1, first.get("image_height") or 1
    uri, missing = "", ""
    try:
        uri = data_uri(find(), longest_side)
    except (UserError, OSError) as error:
        missing = str(error)
    true = boxes_from_json(first.get("true_boxes"))
    answered = [(place, row, boxes_from_json(row.get("pred_boxes"))) for place, row in enumerate(rows, start=1)]
    named = len(true) > 1 or any(len(boxes) > 1 for _, _, boxes in answered)
    strokes = [stroke("true", box, width, height, named) for box in true]
    for place, row, boxes in answered:
        for box in boxes:
            item = stroke("pred", box, width, height, named)
            if item is not None:
                shown = colour(score_of(row)[1], ends)
                strokes.append(replace(item, answer=place, colour=shown, label=f"{place} {item.label}".rstrip()))
    text = max(width, height) / 26
    return View(
        width=width,
        height=height,
        uri=uri,
        missing=missing,
        strokes=labelled(strokes, (width, height), text),
        text=text,
    )


def cards(rows: Sequence[Row], ends: tuple[float, float]) -> list[Card]:
    """A card for each answer, in the order given."""
    return [_card(place, row, ends) for place, row in enumerate(rows, start=1)]


def _card(place: int, row: Row, ends: tuple[float, float]) -> Card:
    name, value = score_of(row)
    advantage = _number(row.get("advantage"))
    facts = [f"{row['n_tokens']} tokens"] if row.get("n_tokens") is not None else []
    facts += ["cut at the token limit"] if row.get("finish") == "length" else []
    facts += ["not exactly in form"] if row.get("well_formed") is False else []
    return Card(
        answer=place,
        colour=colour(value, ends),
        score=f"{name} {number(value)}" if value is not None else "not scored",
        advantage="" if advantage is None else signed(advantage),
        lean=0.0 if advantage is None else round(100 * max(-1.0, min(1.0, advantage / 2)), 1),
        parts=bars(_parts(row)),
        think=row.get("think"),
        text=row["answer"] if row.get("answer") is not None else row.get("completion") or "",
        failure=row.get("failure"),
        facts=tuple(facts),
        boxes=boxes_words(boxes_from_json(row.get("pred_boxes"))),
        looks=looks(row),
    )


def _parts(row: Row) -> dict[str, float | None]:
    parts = json.loads(row["parts"]) if row.get("parts") else {}
    return {name: _number(value) for name, value in parts.items()}


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
