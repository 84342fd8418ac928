"""A truth as a person types it on the page: boxes line by line, or the text, letter or number itself."""

from __future__ import annotations

import re

from vlm_r1.data.rows import OUTSIDE_TOLERANCE
from vlm_r1.errors import DataError, RowError, shown
from vlm_r1.prompts.parse_values import number_text
from vlm_r1.prompts.solution import read_solution
from vlm_r1.prompts.templates import TASKS
from vlm_r1.records import Truth

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)"
_GAP = r"(?:\s*,\s*|\s+)"
_BOX = re.compile(
    rf"[\[(]?\s*({_NUMBER}){_GAP}({_NUMBER}){_GAP}({_NUMBER}){_GAP}({_NUMBER})\s*[\])]?[\s,:]*(.*)", re.ASCII
)


def read_truth(text: str, task: str, size: tuple[int, int]) -> Truth | None:
    """The truth that `text` states about an image of `size` (width, height), None where it is blank.

    A box is `x1, y1, x2, y2` in pixels of the image, with its label behind it where there is one; several stand in
    lines or between semicolons. Boxes may also be JSON, as in a data file. Raises `DataError` for what cannot be read
    as the task's truth, and for a box that reaches out of the image.
    """
    if not text.strip():
        return None
    solution: object = text.strip()
    if TASKS[task].kind.boxes and not text.strip().startswith(("[{", "[[", "{")):
        solution = _boxes(text) or solution
    try:
        truth = read_solution(solution, task)
    except RowError as error:
        raise DataError(
            "The truth cannot be read: " + "; ".join(f"{f.what}. {f.remedy}" for f in error.faults)
        ) from None
    width, height = size
    for item in truth.boxes or ():
        x1, y1, x2, y2 = item.box
        if min(x1, y1) < -OUTSIDE_TOLERANCE or x2 > width + OUTSIDE_TOLERANCE or y2 > height + OUTSIDE_TOLERANCE:
            box = ", ".join(f"{side:g}" for side in item.box)
            raise DataError(f"The true box {box} reaches out of the image, which has {width} x {height} pixels")
    return truth


def _boxes(text: str) -> list[dict[str, object]]:
    """Boxes written one a line (or between semicolons); nothing where the text says that nothing is there.

    Raises `DataError` for a line that is not a box.
    """
    if text.strip(" .\"'").casefold() in ("none", "null", "[]"):
        return []
    found: list[dict[str, object]] = []
    for line in filter(None, (line.strip() for line in re.split(r"[;\n]", text))):
        match = _BOX.fullmatch(line)
        if match is None:
            raise DataError(
                f"The true box {shown(line)} cannot be read: write x1, y1, x2, y2 in pixels of the image, as in "
                "12, 30, 48, 66, with a label behind it where there are several"
            )
        found.append({"bbox_2d": [float(side) for side in match.groups()[:4]], "label": match.group(5).strip()})
    return found


def written(truth: Truth) -> str:
    """A truth as `read_truth` reads it; blank where there is none."""
    if truth.boxes is not None:
        lines = [", ".join(f"{side:g}" for side in item.box) + f" {item.label}".rstrip() for item in truth.boxes]
        return "\n".join(lines) or "none"
    if truth.number is not None:
        return number_text(truth.number)
    return truth.choice or truth.text or ""
