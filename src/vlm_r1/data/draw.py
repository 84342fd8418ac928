"""True and predicted boxes drawn on a copy of an image."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from vlm_r1.boxes import Box
from vlm_r1.records import LabelledBox

TRUE_COLOR = "#12b76a"
PREDICTED_COLOR = "#ff7a1a"
MIN_SIDE = 320
"""An image whose longer side is below this is enlarged by a whole factor until it is not."""

_HALO = "#101418"
_LABEL_LENGTH = 32


def draw_boxes(
    image: Image.Image,
    true: Sequence[LabelledBox] = (),
    predicted: Sequence[LabelledBox] = (),
    scale: float | None = None,
    colors: Sequence[str] | None = None,
) -> Image.Image:
    """A new RGB image with the true boxes in solid green and the predicted ones dashed, orange or in `colors`.

    Boxes are in pixels of `image`; what lies outside the image is drawn at its edge, and a box with a side that is
    not finite is left out. `scale` enlarges the image; by default small images grow to at least `MIN_SIDE`.
    """
    scale = scale if scale is not None else fitting_scale(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    canvas = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    pen = ImageDraw.Draw(canvas)
    width = max(2, round(max(size) / 130))
    placed: list[Box] = []
    colors = colors if colors is not None else [PREDICTED_COLOR] * len(predicted)
    drawn = [(item, TRUE_COLOR, False) for item in true]
    drawn += [(item, color, True) for item, color in zip(predicted, colors, strict=True)]
    shown = [(_on_canvas(item.box, scale, size), item.label, color, dashed) for item, color, dashed in drawn]
    for box, _, color, dashed in shown:
        if box is not None:
            _outline(pen, box, color, width, dashed)
    for box, label, color, _ in shown:
        if box is not None and label and (place := _label(pen, box, label, color, size, placed)):
            placed.append(place)
    return canvas


def fitting_scale(size: tuple[int, int]) -> int:
    """The whole factor that brings the longer side of `size` to at least `MIN_SIDE`; 1 for large images."""
    return max(1, math.ceil(MIN_SIDE / max(1, *size)))


@lru_cache(maxsize=16)
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """A scalable font: DejaVu Sans as matplotlib ships it (it knows more scripts), else Pillow's own."""
    spec = importlib.util.find_spec("matplotlib")
    if spec is not None and spec.origin is not None:
        path = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
        if path.is_file():
            return ImageFont.truetype(str(path), size)
    return ImageFont.load_default(size)


def _on_canvas(box: Box, scale: float, size: tuple[int, int]) -> Box | None:
    if not all(math.isfinite(x) for x in box):
        return None
    xs = sorted(min(max(x * scale, 0.0), size[0] - 1.0) for x in (box[0], box[2]))
    ys = sorted(min(max(y * scale, 0.0), size[1] - 1.0) for y in (box[1], box[3]))
    return (round(xs[0]), round(ys[0]), round(xs[1]), round(ys[1]))


def _outline(pen: ImageDraw.ImageDraw, box: Box, color: str, width: int, dashed: bool) -> None:
    x1, y1, x2, y2 = box
    pen.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline=_HALO, width=width + 2)
    if not dashed:
        pen.rectangle(box, outline=color, width=width)
        return
    dash = 4 * width
    far_x, far_y = max(x1, x2 - width + 1), max(y1, y2 - width + 1)
    for start in range(int(x1), int(x2) + 1, 2 * dash):
        end = min(start + dash, x2)
        pen.rectangle((start, y1, end, min(y1 + width - 1, y2)), fill=color)
        pen.rectangle((start, far_y, end, y2), fill=color)
    for start in range(int(y1), int(y2) + 1, 2 * dash):
        end = min(start + dash, y2)
        pen.rectangle((x1, start, min(x1 + width - 1, x2), end), fill=color)
        pen.rectangle((far_x, start, x2, end), fill=color)


def _label(
    pen: ImageDraw.ImageDraw, box: Box, text: str, color: str, size: tuple[int, int], placed: Sequence[Box]
) -> Box | None:
    """Write a label where it finds room (`free_place`); returns its place."""
    text = " ".join(text.split())
    text = text if len(text) <= _LABEL_LENGTH else text[: _LABEL_LENGTH - 1] + "…"
    face = font(max(11, min(22, round(max(size) / 26))))
    left, top, right, bottom = pen.textbbox((0, 0), text, font=face)
    wide, high = right - left + 6, bottom - top + 6
    place = free_place(box, (wide, high), size, placed)
    if place is None:
        return None
    pen.rectangle((*place[:2], place[2] - 1, place[3] - 1), fill=color)
    pen.text((place[0] + 3 - left, place[1] + 3 - top), text, fill=_HALO, font=face)
    return place


def free_place(
    box: Box, label: tuple[float, float], size: tuple[float, float], placed: Sequence[Box], gap: float = 2.0
) -> Box | None:
    """Where a label of (width, height) stands beside a box: the first place that no earlier label (`placed`) takes.

    It is tried at the corners outside and inside the box, then along its edges. None where all are taken: labels over
    labels are read by nobody. All in pixels of an image of `size`; a label never leaves it.
    """
    (x1, y1, x2, y2), (wide, high) = box, label
    above, below, inside = (y1 - high - gap), (y2 + gap), (y1 + gap, y2 - high - gap)
    xs, middle = (x1, x2 - wide), (x1 + x2 - wide) / 2
    corners = [(x, y) for y in (above, below) for x in xs]
    corners += [(x1 + gap, inside[0]), (x2 - wide - gap, inside[1]), (middle, above), (middle, below)]
    corners += [(x, y) for x in (x1 - wide - gap, x2 + gap) for y in (y1, y2 - high, (y1 + y2 - high) / 2)]
    for x, y in corners:
        x, y = max(0.0, min(x, size[0] - wide)), max(0.0, min(y, size[1] - high))
        place = (x, y, x + wide, y + high)
        if not any(_touch(place, other) for other in placed):
            return place
    return None


def _touch(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def side_by_side(images: Sequence[Image.Image], gap: int = 6) -> Image.Image:
    """Images in one row, top edges level."""
    width = sum(image.width for image in images) + gap * (len(images) - 1)
    sheet = Image.new("RGB", (width, max(image.height for image in images)), "white")
    x = 0
    for image in images:
        sheet.paste(image, (x, 0))
        x += image.width + gap
    return sheet
