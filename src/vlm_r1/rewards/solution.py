"""A row's `solution` as a `Truth`: a box, a list of boxes, a number, a text, or nothing there."""

from __future__ import annotations

import json
import math
from typing import Any

from vlm_r1.boxes import Box, is_proper
from vlm_r1.errors import DataError
from vlm_r1.prompts.parse import extract_blocks
from vlm_r1.prompts.parse_values import unfence
from vlm_r1.records import LabelledBox, Truth

_BOX_KEYS = ("bbox_2d", "bbox")


def read_solution(value: Any) -> Truth:
    """The truth that a solution states, as JSON or as a string that holds it (in `<answer>` tags or fenced, too).

    A box is `[x1, y1, x2, y2]` in original pixels; a list may hold those or `{"bbox" | "bbox_2d", "label"}`; `[]`,
    null and "None" say that nothing is there. A number is kept as a number and as its text, any other string as
    text. Raises `DataError` for a reversed, empty or malformed box.
    """
    if not isinstance(value, str):
        return _from_json(value, None)
    block = extract_blocks(value).answer
    text = (value if block is None else block).strip()
    body = unfence(text)
    if body.casefold() in ("none", "null"):
        return Truth(boxes=(), text=text)
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError):
        return Truth(text=text)
    # true, false and quoted strings are texts that happen to be JSON.
    if isinstance(parsed, str):
        return read_solution(parsed)
    return Truth(text=text) if isinstance(parsed, bool) else _from_json(parsed, text)


def _from_json(value: Any, text: str | None) -> Truth:
    if value is None:
        return Truth(boxes=(), text=text)
    if isinstance(value, bool):
        return Truth(text="yes" if value else "no")
    if isinstance(value, (int, float)):
        if not math.isfinite(value):
            raise DataError(f"solution {value} is not a finite number")
        return Truth(number=float(value), text=text if text is not None else str(value))
    if isinstance(value, dict):
        return Truth(boxes=(_labelled(value),), text=text)
    if isinstance(value, list):
        if value and not isinstance(value[0], (list, dict)):
            return Truth(boxes=(LabelledBox(box=_box(value)),), text=text)
        return Truth(boxes=tuple(_labelled(item) for item in value), text=text)
    raise DataError(f"solution {value!r} is neither a box, a list of boxes, a number nor a text")


def _labelled(item: Any) -> LabelledBox:
    if isinstance(item, dict):
        box = next((item[key] for key in _BOX_KEYS if key in item), None)
        return LabelledBox(box=_box(box), label=str(item.get("label") or ""))
    return LabelledBox(box=_box(item))


def _box(value: Any) -> Box:
    numbers = isinstance(value, list) and all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in value)
    if not numbers or len(value) != 4:
        raise DataError(f"solution: {json.dumps(value, default=str)} is not a box [x1, y1, x2, y2]")
    if not is_proper(value):
        raise DataError(f"solution: box {value} is reversed, empty or not finite; write [x1, y1, x2, y2] with x1 < x2")
    return tuple(float(x) for x in value)  # type: ignore[return-value]
