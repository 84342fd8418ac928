"""The `solution` of a row as a `Truth`: the one reader of training data and of files to score.

A solution is a box `[x1, y1, x2, y2]`, a list of `{"bbox" | "bbox_2d", "label"}`, a number or a text, as JSON or as
a string that holds it. `[]`, null and "None" say that nothing is there. Tags and fences are read as in answers: the
last complete `<answer>`, and in it the last fenced block, else the whole.
"""

from __future__ import annotations

import json
import re
from typing import Any

from vlm_r1.errors import Fault, RowError, half_character, nearest, shown
from vlm_r1.prompts.parse import extract_blocks
from vlm_r1.prompts.parse_values import lettered_options, unfence
from vlm_r1.prompts.templates import TASKS
from vlm_r1.prompts.truths import BOX_KEYS, CHOICE, boxes_truth, is_finite, number_truth, text_truth, yes_no_truth
from vlm_r1.records import Truth

_THINK = re.compile(r"<think>.*?</think>", re.DOTALL)


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
    pixels of the original image. Raises `DataError` for an unknown task, for a solution that is not what the task
    asks for, and for a malformed, reversed or empty box; the message names the value and the form to write it in, and
    no file or line.
    """
    if task is None:
        return _read_any(solution)
    if task not in TASKS:
        fault = Fault(kind="task", what=f"unknown task {shown(task)}", remedy=f"Name a task: {nearest(task, TASKS)}")
        raise RowError([fault])
    kind = TASKS[task].kind
    truth = kind.truth(*_stated(solution), task)
    if truth is None:
        raise _wrong(solution, task, kind.wanted)
    return truth


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
        # A list of numbers that is not a box is a fault rather than a text.
        return "rec" if len(value) == 4 or any(isinstance(item, (int, float)) for item in value) else "text"
    if not isinstance(value, str):
        return "text"
    if value.strip(" .").casefold() in ("yes", "no"):
        return "yes_no"
    letters = lettered_options(question)
    choice = CHOICE.match(value)
    if choice and len(letters) > 1 and choice.group(1).upper() in letters:
        return "choice"
    return "number" if number_truth(value) is not None else "text"


def _read_any(solution: Any) -> Truth:
    task = infer_task(solution)
    text, value = _stated(solution)
    if task in ("rec", "ovd"):
        return Truth(boxes=boxes_truth(value), text=text)
    if task == "number":
        number = number_truth(value)
        if number is None:
            raise _wrong(solution, task, "a finite number")
        return Truth(number=number, text=text if text is not None else str(value))
    written = text if text is not None else yes_no_truth(value) if task == "yes_no" else text_truth(text, value)
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
        if half_character(value):
            return text, text
    except (ValueError, RecursionError):
        return text, text
    if isinstance(value, str):
        return _stated(value)
    if isinstance(value, bool) or (isinstance(value, (int, float)) and not is_finite(value)):
        return text, text
    return text, value


def _wrong(solution: Any, task: str, wanted: str) -> RowError:
    what = f'solution {shown(solution)} is not {wanted}, which task "{task}" asks for'
    return RowError([Fault(kind="solution_type", what=what, remedy="Correct it, or name another task")])
