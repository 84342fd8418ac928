"""Images inside a page: small, with boxes drawn over them as vector graphics, and labels where there is room."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from PIL import Image

from vlm_r1.boxes import Box
from vlm_r1.data.draw import free_place
from vlm_r1.errors import DataError
from vlm_r1.records import LabelledBox, SampleImage

MAX_SIDE = 448
"""Larger images are shrunk to this many pixels: a phone or a card shows no more."""

MAX_BOXES = 60
"""Boxes of a kind that are drawn over one image."""

MAX_LABELS = 16
"""With more boxes than this in all, their labels would hide the image."""

KEPT_AS_THEY_ARE = 24_000
"""Bytes up to which a small image is embedded unchanged; a larger one becomes JPEG."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stroke:
    """A box as SVG attributes, in pixels of the original image; `kind` is "true" or "pred".

    `at` is where its label begins (the left end of the baseline), None where other labels take all places. `answer` is
    the number of the answer that a predicted box is of, among several, and `colour` that answer's colour.
    """

    kind: str
    x: float
    y: float
    width: float
    height: float
    label: str = ""
    at: tuple[float, float] | None = None
    answer: int = 0
    colour: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One showing of an image. `uri` is its data URI where it is shown first, empty where `anchor` refers back.

    Both are empty where the image was not found (`missing` may say why) or the page is full. `undrawn` boxes were too
    many to draw. `text` is the height of labels in pixels of the image.
    """

    width: int
    height: int
    anchor: str = ""
    uri: str = ""
    strokes: tuple[Stroke, ...] = ()
    undrawn: int = 0
    boxes: tuple[int, int] = (0, 0)
    missing: str = ""
    text: float = 1.0

    @property
    def content(self) -> str:
        """What is drawn over the image, in words: "1 true box, 2 predicted"."""
        true, predicted = self.boxes
        return f"{true or 'no'} true box{'es' * (true != 1)}, {predicted or 'none'} predicted"


@dataclass(slots=True)
class Album:
    """Hands out views and keeps the page under `budget` bytes of images.

    Example: `Album().view(png_bytes, (96, 96), true=boxes).uri` begins with "data:image/png;base64,".
    """

    budget: int = 3_200_000
    left_out: int = 0
    _seen: dict[bytes, str] = field(default_factory=dict)

    def view(
        self,
        image: bytes | None,
        size: tuple[int | None, int | None],
        true: Sequence[LabelledBox] = (),
        predicted: Sequence[LabelledBox] = (),
    ) -> View:
        """An image of `size` (width, height; original pixels) with its boxes, labelled where they are a few."""
        width, height = size[0] or 1, size[1] or 1
        named = max(len(true), len(predicted)) > 1 and len(true) + len(predicted) <= MAX_LABELS
        text = min(width / 14, height / 4)
        strokes = [stroke("true", item, width, height, named) for item in true[:MAX_BOXES]]
        strokes += [stroke("pred", item, width, height, named) for item in predicted[:MAX_BOXES]]
        view = View(
            width=width,
            height=height,
            text=text,
            strokes=labelled(strokes, (width, height), text),
            undrawn=sum(max(0, len(boxes) - MAX_BOXES) for boxes in (true, predicted)),
            boxes=(len(true), len(predicted)),
        )
        if image is None:
            return view
        anchor = self._seen.get(image)
        if anchor is not None:
            return replace(view, anchor=anchor)
        try:
            uri = data_uri(image)
        except DataError:
            uri = ""
        if not uri or len(uri) > self.budget:
            self.left_out += 1
            return view
        self.budget -= len(uri)
        anchor = self._seen.setdefault(image, f"image-{len(self._seen)}")
        return replace(view, anchor=anchor, uri=uri)


def data_uri(image: bytes, longest_side: int = MAX_SIDE) -> str:
    """An encoded image as a data URI, shrunk where a side is above `longest_side` pixels. Raises `DataError`."""
    opened = SampleImage(data=image).open()
    kind = "png" if image.startswith(b"\x89PNG") else "jpeg" if image.startswith(b"\xff\xd8") else ""
    if not kind or len(image) > KEPT_AS_THEY_ARE or max(opened.size) > longest_side:
        opened.thumbnail((longest_side, longest_side), Image.Resampling.LANCZOS)
        sink = io.BytesIO()
        opened.save(sink, "JPEG", quality=82)
        image, kind = sink.getvalue(), "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


def stroke(kind: str, item: LabelledBox, width: int, height: int, named: bool) -> Stroke | None:
    """A box of an image of `width` by `height` pixels, kept inside it; None where a side is not finite."""
    if not all(math.isfinite(x) for x in item.box):
        return None
    xs = sorted(min(max(x, 0.0), float(width)) for x in (item.box[0], item.box[2]))
    ys = sorted(min(max(y, 0.0), float(height)) for y in (item.box[1], item.box[3]))
    return Stroke(
        kind=kind,
        x=round(xs[0], 2),
        y=round(ys[0], 2),
        width=round(xs[1] - xs[0], 2),
        height=round(ys[1] - ys[0], 2),
        label=item.label[:28] if named else "",
    )


def labelled(strokes: Iterable[Stroke | None], size: tuple[float, float], text: float) -> tuple[Stroke, ...]:
    """The boxes with a place for each label, of `text` pixels in height, that finds room beside those before it."""
    placed: list[Box] = []
    found = []
    for item in strokes:
        if item is None:
            continue
        if item.label:
            box = (item.x, item.y, item.x + item.width, item.y + item.height)
            wide = text / 3 + text * sum(0.72 if ord(sign) < 0x2E80 else 1.05 for sign in item.label)
            place = free_place(box, (wide, text), size, placed, gap=text / 8)
            if place is not None:
                placed.append(place)
                item = replace(item, at=(round(place[0], 2), round(place[3] - text / 8, 2)))
        found.append(item)
    return tuple(found)
