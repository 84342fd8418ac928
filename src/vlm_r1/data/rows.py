"""One row becomes one `Sample`, or a list of what is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vlm_r1.boxes import Box
from vlm_r1.data.images import ImageFinder
from vlm_r1.data.shapes import MISSING, RawRow, read_shape
from vlm_r1.data.video import read_video
from vlm_r1.errors import Fault, RowError, nearest, shown
from vlm_r1.prompts.solution import infer_task, read_solution, split_answer
from vlm_r1.prompts.templates import TASKS
from vlm_r1.records import LabelledBox, Sample, SampleImage, Truth

OUTSIDE_TOLERANCE = 1.0
"""Pixels by which a true box may reach out of its image: annotations round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowContext:
    """What holds for all rows of a file: its name, where its images are, and the task of rows that name none.

    Of a clip up to `max_frames` frames are taken. `images=False` leaves images out (and all checks of them): for a
    first pass over rows that embed bytes.
    """

    name: str
    finder: ImageFinder
    task: str | None = None
    images: bool = True
    max_frames: int = 16


def read_row(row: Any, context: RowContext, number: int) -> tuple[Sample | None, list[Fault]]:
    """A row as a sample and `[]`, or None and every fault that can be found without decoding the images."""
    sample, faults, _ = examine_row(row, context, number)
    return sample, faults


def examine_row(row: Any, context: RowContext, number: int) -> tuple[Sample | None, list[Fault], list[SampleImage]]:
    """What `read_row` finds, and the images that could be located even where the row has faults.

    `number` is the line (or row) number, from 1; it makes the id of rows without one. Boxes must lie within one
    of the row's images, whose sizes are read from their headers.
    """
    if not isinstance(row, Mapping):
        what = f"the row is {shown(row)}, not an object"
        remedy = 'Write {"image": ..., "problem": ..., "solution": ...}'
        return None, [Fault(kind="not_object", what=what, remedy=remedy)], []
    try:
        raw = read_shape(row)
    except RowError as error:
        return None, list(error.faults), []
    faults = _field_faults(raw)
    images: list[SampleImage] = []
    for value in raw.images if context.images else ():
        try:
            images.append(context.finder.find(value))
        except RowError as error:
            faults += error.faults
    times: tuple[float, ...] = ()
    if raw.video is not None and context.images:
        try:
            frames, times = read_video(raw, context.finder, context.max_frames)
            images += frames
        except RowError as error:
            faults += error.faults
    if context.images and raw.tags > len(raw.images):
        what = f"the question has {raw.tags} <image> tags and the row {len(raw.images)} images"
        faults.append(Fault(kind="image_tags", what=what, remedy="Add the images, or take the tags out"))
    truth, task = None, ""
    try:
        truth, task = _truth(raw, context)
        if truth.boxes and context.images:
            truth = _place(truth.boxes, raw, images, context.finder)
    except RowError as error:
        faults += error.faults
    if faults or truth is None:
        return None, faults, images
    think = raw.think
    if think is None and isinstance(raw.solution, str):
        think = split_answer(raw.solution)[0]
    sample = Sample(
        id=str(raw.id) if raw.id is not None else f"{context.name}:{number}",
        question=raw.question,
        truth=truth,
        images=tuple(images),
        task=task,
        source=str(raw.source) if raw.source is not None else context.name,
        reward=raw.reward,
        think=think,
        columns=raw.columns,
        times=times,
    )
    return sample, [], images


def _field_faults(raw: RawRow) -> list[Fault]:
    faults = []
    if not isinstance(raw.question, str) or not raw.question:
        what = f"the question is {shown(raw.question)}"
        faults.append(Fault(kind="question", what=what, remedy='Put the text to ask into "problem"'))
    if raw.reward is not None and not isinstance(raw.reward, str):
        what = f"the reward is {shown(raw.reward)}, not a name"
        faults.append(Fault(kind="reward", what=what, remedy='Write one name ("iou"), or leave it out'))
    if raw.think is not None and not isinstance(raw.think, str):
        what = f"think is {shown(raw.think)}, not a string"
        faults.append(Fault(kind="field", what=what, remedy="Put the thought in quotes, or leave it out"))
    for name, value in (("id", raw.id), ("source", raw.source)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, (str, int))):
            what = f"{name} is {shown(value)}, neither a string nor an integer"
            faults.append(Fault(kind="field", what=what, remedy="Put it in quotes, or leave it out"))
    return faults


def _truth(raw: RawRow, context: RowContext) -> tuple[Truth, str]:
    question = raw.question if isinstance(raw.question, str) else ""
    task = raw.task if raw.task is not None else context.task
    if task is not None and (not isinstance(task, str) or task not in TASKS):
        remedy = f"Name a task: {nearest(task, TASKS) if isinstance(task, str) else ', '.join(sorted(TASKS))}"
        raise RowError([Fault(kind="task", what=f"unknown task {shown(task)}", remedy=remedy)])
    if raw.solution is MISSING:
        remedy = 'Add "solution" (null or [] where nothing is there)'
        raise RowError([Fault(kind="solution_missing", what="the row has no solution", remedy=remedy)])
    if task is None:
        task = infer_task(raw.solution, question)
    return read_solution(raw.solution, task), task


def _place(boxes: tuple[LabelledBox, ...], raw: RawRow, images: list[SampleImage], finder: ImageFinder) -> Truth:
    """Boxes in pixels, checked to lie in an image of the row; unchanged where not all its images are readable.

    Boxes given as shares of an image belong to the first one.
    """
    if not images or len(images) != len(raw.images):
        return Truth(boxes=boxes)
    sizes = [finder.size(image) for image in images]
    if raw.box_scale != "pixels":
        unit = 1.0 if raw.box_scale == "norm1" else 1000.0
        x, y = sizes[0][0] / unit, sizes[0][1] / unit
        boxes = tuple(LabelledBox(box=_scaled(item.box, x, y), label=item.label) for item in boxes)
    faults = []
    for item in boxes:
        if not any(_inside(item.box, size) for size in sizes):
            pixels = " and ".join(f"{width}x{height}" for width, height in sizes)
            what = f"box {list(item.box)} reaches out of its image of {pixels} pixels"
            remedy = "Write boxes in pixels of the original image, or clip them"
            faults.append(Fault(kind="box_outside", what=what, remedy=remedy))
    if faults:
        raise RowError(faults)
    return Truth(boxes=boxes)


def _inside(box: Box, size: tuple[int, int]) -> bool:
    low, high = -OUTSIDE_TOLERANCE, OUTSIDE_TOLERANCE
    return min(box[:2]) >= low and box[2] <= size[0] + high and box[3] <= size[1] + high


def _scaled(box: Box, x: float, y: float) -> Box:
    return (box[0] * x, box[1] * y, box[2] * x, box[3] * y)
