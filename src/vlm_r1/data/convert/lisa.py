"""ReasonSeg, the data behind LISA-Grounding, becomes grounding rows: the box around each target's polygons."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from vlm_r1.boxes import Box, is_proper
from vlm_r1.data.convert.instances import load_json
from vlm_r1.errors import DataError
from vlm_r1.prompts.templates import word_question


def convert_lisa(
    inputs: Sequence[Path],
    *,
    task: Literal["reasoning", "rec"] = "reasoning",
    bare: bool = False,
    image_prefix: str = "",
) -> Iterator[dict[str, Any]]:
    """Grounding rows from ReasonSeg's files (`X.json` beside `X.jpg`) or folders of them, one a question.

    The box encloses all polygons labelled as target; "ignore" and "flag" regions are left out. `task` chooses the
    wording. Raises `DataError` for a wrong file.
    """
    files: list[Path] = []
    for path in inputs:
        files += sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not files:
        raise DataError(f"{', '.join(map(str, inputs))}: no .json files; give ReasonSeg's train, val or test folder")
    for path in files:
        # Some of the published files are in Windows' encoding.
        value = load_json(path, ("utf-8", "cp1252"))
        try:
            questions = [str(text) for text in value["text"]]
            box = _enclosing(value["shapes"])
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise DataError(
                f"{path}: not in ReasonSeg's layout ({type(error).__name__}: {error}); it holds text and shapes"
            ) from None
        if box is None:
            continue
        for number, question in enumerate(questions):
            yield {
                "id": f"{path.stem}-{number}",
                "image": f"{image_prefix}{path.stem}.jpg",
                "problem": question if bare else word_question(task, question),
                "solution": list(box),
                "task": task,
                "source": "lisa",
                "is_sentence": bool(value.get("is_sentence", True)),
            }


def _enclosing(shapes: Sequence[dict[str, Any]]) -> Box | None:
    """The box around the target polygons, pixels; None where there is none with an area."""
    xs: list[float] = []
    ys: list[float] = []
    for shape in shapes:
        label = str(shape["label"]).lower()
        if "ignore" in label or label == "flag":
            continue
        for x, y in shape["points"]:
            xs.append(float(x))
            ys.append(float(y))
    if not xs:
        return None
    # Points are drawn by hand and may lie just outside the image's top or left edge.
    box = (max(0.0, round(min(xs), 2)), max(0.0, round(min(ys), 2)), round(max(xs), 2), round(max(ys), 2))
    return box if is_proper(box) else None
