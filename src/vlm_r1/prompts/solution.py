"""The `solution` of a row as a `Truth`: the one reader of training data and of files to score.

A solution is a box `[x1, y1, x2, y2]`, a list of `{"bbox" | "bbox_2d", "label"}`, a number or a text, as JSON or as
a string that holds it. `[]`, null and "None" say that nothing is there. Tags and fences are read as in answers: the
last complete `<answer>`, and in it the last fenced block, else the whole.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

from vlm_r1.boxes import Box
from vlm_r1.errors import Fault, RowError, nearest, shown
from vlm_r1.prompts.parse import extract_blocks
from vlm_r1.prompts.parse_values import exact_number, lettered_options, unfence
from vlm_r1.prompts.templates import TASKS
from vlm_r1.records import LabelledBox, Truth

BOX_KEYS = ("bbox_2d", "bbox")
_BOX_REMEDY = "Write boxes as [x1, y1, x2, y2] in pixels of the original picture"
_THINK = re.compile(r"<think>.*?</think>", re.DOTALL)
_CHOICE = re.compile(r"^[(\[]?\s*([A-Za-z])\s*(?:[)\].:](?:\s.*)?)?$", re.DOTALL)
_NUMBER = re.compile(r"^[$€£]?\s*([+-]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d*)?(?:[eE][+-]?\d+)?)\s*%?$", re.ASCII)
_FRACTION = re.compile(r"([+-]?\d{1,15})\s?/\s?([1-9]\d{0,14})", re.ASCII)


def split_answer(text: str) -> tuple[str | None, str]:
    """`(think, answer)` of a written solution: the first think block, and the last answer block or all the rest.

    Of an answer with a fenced block, the last one is the answer.
    """
    blocks = extract_blocks(text)
    think = None if blocks.think is None else blocks.think.strip()
    return think, unfence(_THINK.sub("", text) if blocks.answer is None else blocks.answer)


def read_solution(solution: Any, task: str | None = None) -> Truth:
    """The truth that a solution states: what the task asks for or, without a task, all that can be read from it.

    Without a task the text as written is kept beside boxes and numbers, so that any reward finds its truth. Boxes are
    pixels of the original picture. Raises `DataError` for an unknown task, for a solution that is not what the task
    asks for, and for a malformed, reversed or empty box; the message names the value and the form to write it in, and
    no file or line.
    """
    if task is None:
        return _read_any(solution)
    if task not in TASKS:
        fault = Fault(kind="task", what=f"unknown task {shown(task)}", remedy=f"Name a task: {nearest(task, TASKS)}")
        raise RowError([fault])
    kind = TASKS[task].kind
    text, value = _stated(solution)
    if kind in ("box", "boxes", "point"):
        boxes = _read_boxes(value, single=None if kind == "boxes" else task)
        if boxes is None:
            raise _wrong(solution, task, "a box or a list of boxes")
        return Truth(boxes=boxes)
    if kind == "number":
        number = _number_of(value)
        if number is None:
            raise _wrong(solution, task, "a number")
        return Truth(number=number)
    if kind == "choice":
        choice = None if text is None else _CHOICE.match(text)
        if choice is None:
            raise _wrong(solution, task, "a letter")
        return Truth(choice=choice.group(1).upper())
    word = _yes_or_no(value) if kind == "yes_no" else _text_of(text, value)
    if word is None:
        raise _wrong(solution, task, "yes or no" if kind == "yes_no" else "a text")
    return Truth(text=word)


def infer_task(solution: Any, question: str = "") -> str:
    """The task that a solution suggests: a single box is rec, a list of boxes (or nothing) ovd, a letter with
    lettered options in the question choice, yes or no yes_no, a number number, anything else text.
    """
    _, value = _stated(solution)
    if value is None or value == []:
        return "ovd"
    if isinstance(value, bool):
        return "yes_no"
    if isinstance(value, (int, float)):
        return "number"
    if isinstance(value, dict):
        return "rec" if any(key in value for key in BOX_KEYS) else "text"
    if isinstance(value, list):
        if any(isinstance(item, (list, dict)) for item in value):
            return "ovd"
        # A list of numbers that is no box is a fault rather than a text.
        return "rec" if len(value) == 4 or any(isinstance(item, (int, float)) for item in value) else "text"
    if not isinstance(value, str):
        return "text"
    if value.strip(" .").casefold() in ("yes", "no"):
        return "yes_no"
    letters = lettered_options(question)
    choice = _CHOICE.match(value)
    if choice and len(letters) > 1 and choice.group(1).upper() in letters:
        return "choice"
    return "number" if _number_of(value) is not None else "text"


def _read_any(solution: Any) -> Truth:
    task = infer_task(solution)
    text, value = _stated(solution)
    if task in ("rec", "ovd"):
        return Truth(boxes=_read_boxes(value), text=text)
    if task == "number":
        number = _number_of(value)
        if number is None:
            raise _wrong(solution, task, "a finite number")
        return Truth(number=number, text=text if text is not None else str(value))
    written = text if text is not None else _yes_or_no(value) if task == "yes_no" else _text_of(text, value)
    if written is None:
        raise _wrong(solution, task, "a text")
    return Truth(text=written)


def _stated(solution: Any) -> tuple[str | None, Any]:
    """`(text, value)`: what a string says as text, and the JSON value it holds, else the text; no text for others.

    Strings that hold a string are that string; true, false and numbers without end are texts that happen to be JSON.
    """
    if not isinstance(solution, str):
        return None, solution
    text = split_answer(solution)[1]
    if text.strip("\"' .").casefold() in ("none", "null"):
        return text, None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text, text
    if isinstance(value, str):
        return _stated(value)
    if isinstance(value, bool) or (isinstance(value, (int, float)) and not _finite(value)):
        return text, text
    return text, value


def _wrong(solution: Any, task: str, wanted: str) -> RowError:
    what = f'solution {shown(solution)} is not {wanted}, which task "{task}" asks for'
    return RowError([Fault(kind="solution_type", what=what, remedy="Correct it, or name another task")])


def _read_boxes(value: Any, single: str | None = None) -> tuple[LabelledBox, ...] | None:
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
        if isinstance(side, bool) or not isinstance(side, (int, float)) or not _finite(side):
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


def _finite(value: float) -> bool:
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def _number_of(value: Any) -> float | None:
    if isinstance(value, str):
        text = value.strip().strip("\"'")
        fraction = _FRACTION.fullmatch(text)
        if fraction:
            return int(fraction.group(1)) / int(fraction.group(2))
        match = _NUMBER.match(text)
        value = exact_number(match.group(1).replace(",", "")) if match else None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not _finite(value):
        return None
    return exact_number(str(value))


def _yes_or_no(value: Any) -> str | None:
    if isinstance(value, bool):
        return "yes" if value else "no"
    word = value.strip(" \t\n.\"'").casefold() if isinstance(value, str) else ""
    word = {"true": "yes", "false": "no"}.get(word, word)
    return word if word in ("yes", "no") else None


def _text_of(text: str | None, value: Any) -> str | None:
    """The text as written; another JSON value as JSON, None where it says nothing or cannot be written."""
    if text is not None or value is None:
        return text
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        return None
