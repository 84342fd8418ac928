"""Boxes and points out of the answer block."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from vlm_r1.boxes import Box, BoxMap
from vlm_r1.prompts.parse_values import MAX_CHARS, unfence
from vlm_r1.records import LabelledBox

_BOX_KEYS = ("bbox_2d", "bbox", "box_2d", "box", "bounding_box")
_POINT_KEYS = ("point_2d", "point", "coordinate", "coordinates", "click")
_LABEL_KEYS = ("label", "name", "category", "class")
_NOTHING = ("none", "null", "[]", "none.", "null.", "[].")
MAX_REPAIRED = 2000
"""Longest broken JSON, in characters, that is repaired as one piece."""

MAX_DEPTH = 6
"""Lists and objects deeper than this hold no boxes: real answers use three levels."""

# One number of bounded length per place: no backtracking to speak of.
_NUM = r"\s*([+-]?(?:\d{1,12}(?:\.\d{0,12})?|\.\d{1,12}))\s*"
_PLAIN_BOX = re.compile(rf"\[{_NUM},{_NUM},{_NUM},{_NUM}\]", re.ASCII)
_PAIR_BOX = re.compile(rf"\(\s*{_NUM},{_NUM}\)\s*,?\s*\({_NUM},{_NUM}\)", re.ASCII)
_ROUND_BOX = re.compile(rf"\({_NUM},{_NUM},{_NUM},{_NUM}\)", re.ASCII)
_BARE_BOX = re.compile(rf"^{_NUM},{_NUM},{_NUM},{_NUM}$", re.ASCII)
_LOC_BOX = re.compile(r"(?:<loc(\d{4})>)" * 4 + r"(?:\s*<seg\d{3}>){0,16}([^<;]*)", re.ASCII)
_FLAT_OBJECT = re.compile(r"\{[^{}]*\}")
_POINT = re.compile(rf"[\[(]{_NUM},{_NUM}[\])]", re.ASCII)

Found = tuple[list[tuple[Box, str]], int]
"""Boxes in model coordinates with their labels, and how many items were dropped."""


def read_boxes(
    text: str, box_map: BoxMap, *, points: bool = False
) -> tuple[tuple[LabelledBox, ...] | None, str | None, int]:
    """Boxes of an answer in original pixels: `(boxes, failure kind, dropped)`; `()` says that nothing is there.

    Read: JSON (`[x1, y1, x2, y2]`, a list of those, `{"bbox_2d": ..., "label": ...}`, a list of those), repaired
    where it is broken; else boxes in running text; else PaliGemma's `<loc>` tokens (y before x). With `points`, a
    point `[x, y]` is read as a box without extent.
    """
    body = unfence(text)[:MAX_CHARS]
    if body.casefold() in _NOTHING or body.strip("\"' ").casefold() in ("none", "null"):
        return (), None, 0
    parsed = _load(body)
    found, dropped = _collect(parsed, points) if parsed is not None else ([], 0)
    if not found and dropped == 0:
        parsed = None
        found, dropped = _from_text(body, points)
    if not found and dropped == 0:
        found, dropped = _collect(_repair(body), points)
    if not found:
        return None, "no_valid_box" if dropped else "unreadable", dropped
    return tuple(LabelledBox(box=box_map.to_pixels(box), label=label) for box, label in found), None, dropped


def loc_tokens(box: Box) -> str:
    """A box in 1024ths of the image as PaliGemma's location tokens: `(256, 128, 512, 768)` is
    `<loc0128><loc0256><loc0768><loc0512>`."""
    x1, y1, x2, y2 = (min(max(round(side), 0), 1023) for side in box)
    return "".join(f"<loc{side:04d}>" for side in (y1, x1, y2, x2))


def _load(text: str) -> Any:
    """Strict JSON, or None. Deep nesting and numbers of thousands of digits are refused, not raised."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _repair(text: str) -> Any:
    """Broken JSON from its first bracket on, repaired where it can be; None where there is none.

    The repairer's time grows with the square of some texts' length (12 s for 20,000 characters), so a longer text is
    taken apart into its flat objects first.
    """
    starts = [index for index in (text.find("["), text.find("{")) if index >= 0]
    if not starts:
        return None
    text = text[min(starts) :]
    if len(text) <= MAX_REPAIRED:
        return _repair_whole(text)
    items: list[Any] = []
    repaired = 0
    for match in _FLAT_OBJECT.finditer(text):
        item = _load(match.group())
        if item is None and len(match.group()) <= MAX_REPAIRED // 4 and repaired < 32:
            item, repaired = _repair_whole(match.group()), repaired + 1
        items.append(item)
    return items


def _repair_whole(text: str) -> Any:
    # Imported here: most answers are clean, and start-up stays fast.
    import json_repair

    try:
        return json_repair.loads(text, skip_json_loads=True)
    except (ValueError, RecursionError, IndexError, KeyError, TypeError, AttributeError):
        # The repairer is a heuristic over arbitrary text: where it trips, the answer is unreadable.
        return None


def _numbers(item: Any, n: int) -> bool:
    return (
        isinstance(item, list)
        and len(item) == n
        and all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in item)
    )


def _proper(item: list[float], points: bool) -> Box | None:
    """The box of four numbers (or of a point), or None where it is not finite, reversed or empty."""
    try:
        values = [float(x) for x in item]
    except OverflowError:
        return None
    if not all(math.isfinite(x) and abs(x) < 1e9 for x in values):
        return None
    if len(values) == 2:
        return (values[0], values[1], values[0], values[1])
    x1, y1, x2, y2 = values
    if (x2 > x1 and y2 > y1) or (points and x2 >= x1 and y2 >= y1):
        return (x1, y1, x2, y2)
    return None


def _collect(value: Any, points: bool) -> Found:
    """Boxes anywhere in a JSON value, in the order written; what looks like an item and is not one is dropped."""
    found: list[tuple[Box, str]] = []
    dropped = 0

    def take(item: list[float], label: str) -> None:
        nonlocal dropped
        box = _proper(item, points)
        if box is None:
            dropped += 1
        else:
            found.append((box, label.encode("utf-8", "replace").decode()))  # JSON can hold half a character

    def visit(item: Any, label: str, depth: int) -> None:
        nonlocal dropped
        if depth > MAX_DEPTH:
            dropped += 1
        elif _numbers(item, 4) or (points and _numbers(item, 2)):
            take(item, label)
        elif isinstance(item, list):
            if item and not any(isinstance(part, (list, dict)) for part in item):
                dropped += 1
                return
            for part in item:
                if isinstance(part, (list, dict)):
                    visit(part, label, depth + 1)
                else:
                    dropped += 1
        elif isinstance(item, dict):
            visit_object(item, label, depth)

    def visit_object(item: dict[str, Any], label: str, depth: int) -> None:
        nonlocal dropped
        name = next((item[key] for key in _LABEL_KEYS if isinstance(item.get(key), str)), label)
        keys = [key for key in (*_BOX_KEYS, *(_POINT_KEYS if points else ())) if key in item]
        if keys:
            inner = item[keys[0]]
            if isinstance(inner, list):
                visit(inner, name, depth + 1)
            else:
                dropped += 1
        elif points and _numbers([item.get("x"), item.get("y")], 2):
            take([item["x"], item["y"]], name)
        elif any(key in item for key in _LABEL_KEYS):
            dropped += 1
        else:
            inner_values = [inner for inner in item.values() if isinstance(inner, (list, dict))]
            if not inner_values and depth > 0:
                dropped += 1
            for inner in inner_values:
                visit(inner, label, depth + 1)

    visit(value, "", 0)
    return found, dropped


def _from_text(text: str, points: bool) -> Found:
    """Boxes in running text, of the first form found: brackets, `(x, y), (x, y)`, `(x, y, x, y)`, bare, `<loc>`."""
    if "{" in text and any(key in text for key in _BOX_KEYS):
        # Broken JSON with labels: the repairer keeps the labels, a pattern would lose them.
        return [], 0
    items: list[tuple[list[float], str]] = []
    for pattern in (_PLAIN_BOX, _PAIR_BOX, _ROUND_BOX, _BARE_BOX):
        items = [([float(x) for x in match.groups()], "") for match in pattern.finditer(text)]
        if items:
            break
    if not items:
        for match in _LOC_BOX.finditer(text):
            y1, x1, y2, x2 = (float(x) for x in match.groups()[:4])
            items.append(([x1, y1, x2, y2], match.group(5).strip()))
    if not items and points:
        items = [([float(x) for x in match.groups()], "") for match in _POINT.finditer(text)]
    boxes = [(_proper(item, points), label) for item, label in items]
    return [(box, label) for box, label in boxes if box is not None], sum(box is None for box, _ in boxes)
