"""The kinds of answer: how each is read, what its truth is, how it is taught and what is correct.

A new kind is an `AnswerKind` in `KINDS` and a task in `templates.TASKS` that asks for it; everything else (training,
evaluation, data files, the report, the playground) goes by these.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vlm_r1.boxes import Box, BoxMap
from vlm_r1.prompts.parse_boxes import loc_tokens, read_boxes
from vlm_r1.prompts.parse_values import number_text, read_choice, read_interval, read_number, read_text, read_yes_no
from vlm_r1.prompts.truths import CHOICE, boxes_truth, number_truth, text_truth, yes_no_truth
from vlm_r1.records import LabelledBox, Truth

Value = tuple[LabelledBox, ...] | float | str | None
Read = Callable[[str, BoxMap, str], tuple[Value, str | None, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerKind:
    """All that is particular to one kind of answer.

    `read(text, box_map, question)` is `(value, failure kind, dropped boxes)` of what stands in the answer block, and
    never raises. `truth(text, value, task)` is what a row's solution states (its text, if it is one, and the JSON
    value it holds), None where it is not `wanted`. `target(truth, box_map)` is what supervised fine-tuning writes
    into the answer block, None where there is nothing. `accuracy` names the reward (`rewards.registry`) that tells
    how right an answer is; from `correct_from` on it counts as correct, and where that is None every box must be
    found and no other be answered. `suite` names the numbers that describe a split (`eval.suites`). `boxes` says that
    truths are boxes, `written` that a truth is text as it stands.

    Example: `KINDS["number"].read("about 4 cats", BoxMap(), "")` is `(4.0, None, 0)`.
    """

    name: str
    read: Read
    truth: Callable[[str | None, Any, str], Truth | None]
    wanted: str
    target: Callable[[Truth, BoxMap], str | None]
    accuracy: str
    correct_from: float | None = 1.0
    suite: str = "accuracy"
    boxes: bool = False
    written: bool = False


def _plain(read: Callable[[str], tuple[float | str | None, str | None]]) -> Read:
    """A reader of values that are no boxes."""
    return lambda text, box_map, question: (*read(text), 0)


def _read_boxes(text: str, box_map: BoxMap, question: str) -> tuple[Value, str | None, int]:
    return read_boxes(text, box_map)


def _read_point(text: str, box_map: BoxMap, question: str) -> tuple[Value, str | None, int]:
    return read_boxes(text, box_map, points=True)


def _read_choice(text: str, box_map: BoxMap, question: str) -> tuple[Value, str | None, int]:
    return (*read_choice(text, question), 0)


def _one_box(text: str | None, value: Any, task: str) -> Truth | None:
    boxes = boxes_truth(value, single=task)
    return None if boxes is None else Truth(boxes=boxes)


def _boxes(text: str | None, value: Any, task: str) -> Truth | None:
    boxes = boxes_truth(value)
    return None if boxes is None else Truth(boxes=boxes)


def _number(text: str | None, value: Any, task: str) -> Truth | None:
    number = number_truth(value)
    return None if number is None else Truth(number=number)


def _choice(text: str | None, value: Any, task: str) -> Truth | None:
    letter = None if text is None else CHOICE.match(text)
    return None if letter is None else Truth(choice=letter.group(1).upper())


def _yes_no(text: str | None, value: Any, task: str) -> Truth | None:
    word = yes_no_truth(value)
    return None if word is None else Truth(text=word)


def _text(text: str | None, value: Any, task: str) -> Truth | None:
    written = text_truth(text, value)
    return None if written is None else Truth(text=written)


def _interval(text: str | None, value: Any, task: str) -> Truth | None:
    written = read_interval(json.dumps(value) if isinstance(value, (list, dict)) else str(text))[0]
    return None if written is None else Truth(text=written)


def value_target(truth: Truth, box_map: BoxMap) -> str | None:
    """The number, letter or text of a truth as it is written; None where it has none of them."""
    if truth.number is not None:
        return number_text(truth.number)
    return truth.choice if truth.choice is not None else truth.text


def box_target(truth: Truth, box_map: BoxMap) -> str | None:
    """The first box of a truth as `[x1, y1, x2, y2]`, or location tokens, in the model's coordinates."""
    if not truth.boxes:
        return value_target(truth, box_map) if truth.boxes is None else "None"
    first = truth.boxes[0]
    return _tokens([first], box_map) if box_map.loc else json.dumps(_rounded(first.box, box_map))


def boxes_target(truth: Truth, box_map: BoxMap) -> str | None:
    """All boxes of a truth as JSON with labels, or as `<loc0128><loc0256><loc0768><loc0512> cat ; ...`."""
    if not truth.boxes:
        return value_target(truth, box_map) if truth.boxes is None else "None"
    if box_map.loc:
        return _tokens(truth.boxes, box_map)
    rows = [{"bbox_2d": _rounded(b.box, box_map), "label": b.label} for b in truth.boxes]
    return json.dumps(rows, ensure_ascii=False)


def _tokens(boxes: tuple[LabelledBox, ...] | list[LabelledBox], box_map: BoxMap) -> str:
    return " ; ".join(f"{loc_tokens(box_map.to_model(b.box))} {b.label}".strip() for b in boxes)


def _rounded(box: Box, box_map: BoxMap) -> list[float]:
    return [round(v, box_map.digits or None) for v in box_map.to_model(box)]


_BOX_LIKE: dict[str, Any] = {"wanted": "a box or a list of boxes", "boxes": True}
_TEXT_LIKE: dict[str, Any] = {"truth": _text, "wanted": "a text", "target": value_target, "read": _plain(read_text)}

KINDS: dict[str, AnswerKind] = {
    kind.name: kind
    for kind in (
        AnswerKind(
            name="box",
            read=_read_boxes,
            truth=_one_box,
            target=box_target,
            accuracy="iou",
            correct_from=0.5,  # Acc@0.5
            suite="rec",
            **_BOX_LIKE,
        ),
        AnswerKind(
            name="boxes",
            read=_read_boxes,
            truth=_boxes,
            target=boxes_target,
            accuracy="od_map",
            correct_from=None,
            suite="ovd",
            **_BOX_LIKE,
        ),
        AnswerKind(
            name="point",
            read=_read_point,
            truth=_one_box,
            target=box_target,
            accuracy="point_in_box",
            **_BOX_LIKE,
        ),
        AnswerKind(
            name="number",
            read=_plain(read_number),
            truth=_number,
            wanted="a number",
            target=value_target,
            accuracy="number",
        ),
        AnswerKind(
            name="choice",
            read=_read_choice,
            truth=_choice,
            wanted="a letter",
            target=value_target,
            accuracy="choice",
        ),
        AnswerKind(
            name="yes_no",
            read=_plain(read_yes_no),
            truth=_yes_no,
            wanted="yes or no",
            target=value_target,
            accuracy="yes_no",
        ),
        AnswerKind(
            name="interval",
            read=_plain(read_interval),
            truth=_interval,
            wanted="an interval in seconds, [start, end]",
            target=value_target,
            accuracy="tiou",
            correct_from=0.5,
        ),
        AnswerKind(name="math", accuracy="math", written=True, **_TEXT_LIKE),
        AnswerKind(name="text", accuracy="exact_text", written=True, **_TEXT_LIKE),
    )
}
"""Name -> kind of answer."""
