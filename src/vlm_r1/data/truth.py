"""The `solution` of a row as a `Truth`: boxes, a letter, yes or no, a number or a text.

A solution is a box `[x1, y1, x2, y2]`, a list of `{"bbox" | "bbox_2d", "label"}`, a number or a text, as JSON or as
a string that holds it, possibly inside `<answer>` tags or a fenced block. `[]`, null and "None" say that nothing is
there.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

from vlm_r1.boxes import Box
from vlm_r1.data.faults import Fault, RowError, shown
from vlm_r1.errors import nearest
from vlm_r1.prompts.templates import TASKS
from vlm_r1.records import LabelledBox, Truth

BOX_KEYS = ("bbox_2d", "bbox")
_BOX_REMEDY = "Write boxes as [x1, y1, x2, y2] in pixels of the original picture"
_BLOCK = re.compile(r"<(think|answer)>(.*?)</\1>", re.DOTALL)
_FENCED = re.compile(r"^```[\w+-]*\s*\n?(.*?)\s*```$", re.DOTALL)
_CHOICE = re.compile(r"^[(\[]?\s*([A-Za-z])\s*(?:[)\].:](?:\s.*)?)?$", re.DOTALL)
_OPTION = re.compile(r"(?:^|[\s(\[])([A-Z])[)\].:]")
_NUMBER = re.compile(r"^[$€£]?\s*([+-]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d*)?(?:[eE][+-]?\d+)?)\s*%?$", re.ASCII)


def split_answer(text: str) -> tuple[str | None, str]:
    """`(think, answer)` of a written solution: the first think block, and the last answer block or the whole text.

    A fence that encloses the whole answer is taken off.
    """
    blocks = _BLOCK.findall(text)
    think = next((body.strip() for name, body in blocks if name == "think"), None)
    answers = [body for name, body in blocks if name == "answer"]
    body = (answers[-1] if answers else _BLOCK.sub("", text)).strip()
    fenced = _FENCED.match(body)
    return think, fenced.group(1).strip() if fenced else body


def truth_from_solution(solution: Any, task: str | None = None) -> Truth:
    """The truth that a solution states for a task (inferred from the solution where `task` is None).

    Boxes are pixels of the original picture. Raises `DataError` for an unknown task and for a solution that is not
    what the task asks for; the message names the value and the form to write it in, and no file or line.
    """
    if isinstance(solution, str):
        solution = split_answer(solution)[1]
    if task is None:
        task = infer_task(solution)
    if task not in TASKS:
        fault = Fault(kind="task", what=f"unknown task {shown(task)}", remedy=f"Name a task: {nearest(task, TASKS)}")
        raise RowError([fault])
    kind = TASKS[task].kind
    if kind in ("box", "boxes", "point"):
        return Truth(boxes=_read_boxes(solution, task, many=kind == "boxes"))
    if kind == "choice":
        return Truth(choice=_read_choice(solution, task))
    if kind == "yes_no":
        return Truth(text=_read_yes_no(solution, task))
    if kind == "number":
        return Truth(number=_read_number(solution, task))
    return Truth(text=_read_text(solution, task))


def infer_task(solution: Any, question: str = "") -> str:
    """The task that a solution suggests: a single box is rec, a list of boxes (or nothing) ovd, a letter with
    lettered options in the question choice, yes or no yes_no, a number number, anything else text.
    """
    if isinstance(solution, str):
        solution = split_answer(solution)[1]
    value = _decoded(solution)
    if value is None or value == []:
        return "ovd"
    if isinstance(value, bool):
        return "yes_no"
    if isinstance(value, dict):
        return "rec" if any(key in value for key in BOX_KEYS) else "text"
    if isinstance(value, list):
        if len(value) == 4 and not any(isinstance(side, (list, dict)) for side in value):
            return "rec"
        return "ovd" if any(isinstance(item, (list, dict)) for item in value) else "text"
    if isinstance(value, str):
        if value.strip(" .").casefold() in ("yes", "no"):
            return "yes_no"
        letters = set(_OPTION.findall(question))
        choice = _CHOICE.match(value.strip())
        if choice and len(letters) > 1 and choice.group(1).upper() in letters:
            return "choice"
    return "number" if _number_of(value) is not None else "text"


def _decoded(solution: Any) -> Any:
    """The JSON value that a string holds; the string itself where it holds none; None for "None"."""
    if not isinstance(solution, str):
        return solution
    text = solution.strip()
    if text.strip("\"' .").casefold() in ("none", "null"):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return solution


def _wrong(solution: Any, task: str, wanted: str) -> RowError:
    what = f'solution {shown(solution)} is not {wanted}, which task "{task}" asks for'
    return RowError([Fault(kind="solution_type", what=what, remedy="Correct it, or name another task")])


def _read_boxes(solution: Any, task: str, many: bool) -> tuple[LabelledBox, ...]:
    value = _decoded(solution)
    if value is None or value == []:
        return ()
    if isinstance(value, dict) or (isinstance(value, list) and not isinstance(value[0], (list, dict))):
        value = [value]
    if not isinstance(value, list):
        raise _wrong(solution, task, "a box or a list of boxes")
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
    if not many and len(value) > 1:
        what = f'task "{task}" has one box and the solution has {len(value)}'
        faults.append(Fault(kind="solution_type", what=what, remedy='Keep one box, or set the task to "ovd"'))
    if faults:
        raise RowError(faults)
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


def _read_choice(solution: Any, task: str) -> str:
    value = solution.strip().strip('"') if isinstance(solution, str) else solution
    match = _CHOICE.match(value) if isinstance(value, str) else None
    if match is None:
        raise _wrong(solution, task, "a letter")
    return match.group(1).upper()


def _read_yes_no(solution: Any, task: str) -> str:
    if isinstance(solution, bool):
        return "yes" if solution else "no"
    word = solution.strip(" \t\n.\"'").casefold() if isinstance(solution, str) else ""
    word = {"true": "yes", "false": "no"}.get(word, word)
    if word not in ("yes", "no"):
        raise _wrong(solution, task, "yes or no")
    return word


def _number_of(value: Any) -> float | None:
    if isinstance(value, str):
        text = value.strip().strip("\"'")
        fraction = re.fullmatch(r"([+-]?\d{1,15})\s?/\s?([1-9]\d{0,14})", text, re.ASCII)
        if fraction:
            return int(fraction.group(1)) / int(fraction.group(2))
        match = _NUMBER.match(text)
        try:
            value = float(match.group(1).replace(",", "")) if match else None
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not _finite(value):
        return None
    return float(value)


def _read_number(solution: Any, task: str) -> float:
    value = _number_of(solution)
    if value is None:
        raise _wrong(solution, task, "a number")
    return value


def _read_text(solution: Any, task: str) -> str:
    if isinstance(solution, str):
        return solution
    if solution is None:
        raise _wrong(solution, task, "a text")
    try:
        return json.dumps(solution, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        raise _wrong(solution, task, "a text") from None
