"""What a row's `solution` may say, by kind of value: boxes, numbers, choices, yes or no, texts."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from vlm_r1.boxes import Box
from vlm_r1.errors import Fault, RowError, shown
from vlm_r1.prompts.parse_values import exact_number
from vlm_r1.records import LabelledBox

BOX_KEYS = ("bbox_2d", "bbox")
CHOICE = re.compile(r"^[(\[]?\s*([A-Za-z])\s*(?:[)\].:](?:\s.*)?)?$", re.DOTALL)
"""A letter, alone or before its option."""

_BOX_REMEDY = "Write boxes as [x1, y1, x2, y2] in pixels of the original image"
_NUMBER = re.compile(r"^[$€£]?\s*([+-]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d*)?(?:[eE][+-]?\d+)?)\s*%?$", re.ASCII)
_FRACTION = re.compile(r"([+-]?\d{1,15})\s?/\s?([1-9]\d{0,14})", re.ASCII)


def boxes_truth(value: Any, single: str | None = None) -> tuple[LabelledBox, ...] | None:
    """The boxes of a JSON value, None where it holds something else. `single` names a task that has one box.

    Raises `RowError` with every fault.
    """
    if value is None or value == []:
        return ()
    if isinstance(value, dict) or (isinstance(value, list) and not isinstance(value[0], (list, dict))):
        value = [value]
    if not isinstance(value, list):
        return None
    boxes: list[LabelledBox] = []
    faults: list[Fault] = []
    for item in value:
        sides, label = item, ""
        if isinstance(item, dict):
            sides = next((item[key] for key in BOX_KEYS if key in item), None)
            label = item.get("label", "")
        if label is None:
            label = ""
        if not isinstance(label, str):
            faults.append(Fault(kind="label", what=f"label {shown(label)} is not text", remedy="Put it in quotes"))
            label = ""
        fault = box_fault(sides)
        if fault is None:
            boxes.append(LabelledBox(box=_as_box(sides), label=label))
        else:
            faults.append(fault)
    if single is not None and len(value) > 1:
        what = f'task "{single}" has one box and the solution has {len(value)}'
        faults.append(Fault(kind="solution_type", what=what, remedy='Keep one box, or set the task to "ovd"'))
    if faults:
        raise RowError(faults, "solution")
    return tuple(boxes)


def _as_box(sides: list[float]) -> Box:
    x1, y1, x2, y2 = (float(side) for side in sides)
    return (x1, y1, x2, y2)


def box_fault(sides: Any) -> Fault | None:
    """What is wrong with a value that should be a box, or None where it is a proper one."""
    if not isinstance(sides, (list, tuple)) or len(sides) != 4:
        return Fault(kind="box_shape", what=f"box {shown(sides)} is not four numbers", remedy=_BOX_REMEDY)
    for side in sides:
        if isinstance(side, bool) or not isinstance(side, (int, float)) or not is_finite(side):
            what = f"box {shown(list(sides))} has the side {shown(side)}, which is not a finite number"
            return Fault(kind="box_number", what=what, remedy=_BOX_REMEDY)
    x1, y1, x2, y2 = sides
    if x2 < x1 or y2 < y1:
        what = f"box {shown(list(sides))} is reversed"
        return Fault(kind="box_reversed", what=what, remedy=_BOX_REMEDY + ", not [x, y, width, height]")
    if x2 == x1 or y2 == y1:
        what = f"box {shown(list(sides))} has no area"
        return Fault(kind="box_empty", what=what, remedy="Give it a width and a height, or drop it")
    return None


def is_finite(value: float) -> bool:
    """Whether a number is finite as a float; an integer may be too large for one."""
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def number_truth(value: Any) -> float | None:
    """A number, or a text that is one: "1,234.5", "$ 3", "40 %" (40), "3/4"; None for anything else."""
    if isinstance(value, str):
        text = value.strip().strip("\"'")
        fraction = _FRACTION.fullmatch(text)
        if fraction:
            return int(fraction.group(1)) / int(fraction.group(2))
        match = _NUMBER.match(text)
        value = exact_number(match.group(1).replace(",", "")) if match else None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not is_finite(value):
        return None
    return exact_number(str(value))


def yes_no_truth(value: Any) -> str | None:
    """The word yes or no for a truth value, or for one of the words yes, no, true and false; None for others."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    word = value.strip(" \t\n.\"'").casefold() if isinstance(value, str) else ""
    word = {"true": "yes", "false": "no"}.get(word, word)
    return word if word in ("yes", "no") else None


def text_truth(text: str | None, value: Any) -> str | None:
    """The text as written; another JSON value as JSON, None where it says nothing or cannot be written."""
    if text is not None or value is None:
        return text
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        return None
