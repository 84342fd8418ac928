"""Tools: functions of what a model has seen, that answer with a text, an image or both. Those for pictures are here."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image, ImageDraw

from vlm_r1.boxes import Box
from vlm_r1.envs.call import Call, CallError
from vlm_r1.errors import nearest
from vlm_r1.records import Sample, SampleImage

OVERVIEW_SIDE = 336
"""Pixels of the longer side of an overview."""
MARK = "#ff2d2d"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What is answered to a model: a text, and images. `box` is the part of the first image that it looked at, in its
    pixels, for people to see."""

    text: str = ""
    image: Image.Image | None = None
    images: tuple[Image.Image, ...] = ()
    box: Box | None = None


@dataclass(slots=True, kw_only=True)
class Seen:
    """What one answer has seen so far: its sample, and all images in order, the sample's own first.

    `to_pixels` turns a box as the model writes it into pixels of the first image; `notes` is a tool's own to write in.
    """

    sample: Sample
    images: list[SampleImage]
    to_pixels: Callable[[Box], Box]
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def image(self) -> Image.Image:
        """The first image as it is stored: in full resolution, whatever the model was shown. Raises `CallError`."""
        if not self.images:
            raise CallError("bad_arguments", "there is no image.")
        return self.images[0].open()


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A function `(seen, **arguments) -> Reply | str | Image` by its name, with what a model is told of it.

    Arguments called `box` and `point` reach it in pixels of the first image. `required` and `known` are the names of
    its arguments; `known` None: it takes any.
    """

    name: str
    description: str
    function: Callable[..., Any]
    signature: str
    required: frozenset[str]
    known: frozenset[str] | None

    def __call__(self, seen: Seen, arguments: Mapping[str, Any]) -> Reply:
        """The tool's reply. Raises `CallError` where it does not take these arguments."""
        missing = sorted(self.required - arguments.keys())
        extra = [] if self.known is None else sorted(arguments.keys() - self.known)
        if missing or extra:
            wrong = f"{missing[0]} is missing" if missing else f"there is no argument {extra[0]}"
            raise CallError("bad_arguments", f"{wrong}. {self.name} takes {self.signature}.")
        values = dict(arguments)
        if "box" in values:
            values["box"] = pixels_of(seen, values["box"], 4)
        if "point" in values:
            values["point"] = pixels_of(seen, values["point"], 2)
        reply = self.function(seen, **values)
        if isinstance(reply, Image.Image):
            return Reply(image=reply)
        return reply if isinstance(reply, Reply) else Reply(text=str(reply))


def pixels_of(seen: Seen, value: Any, count: int) -> tuple[float, ...]:
    """A box or a point in pixels of the first image, within it. Raises `CallError` for anything else."""
    name = "box" if count == 4 else "point"
    numbers = isinstance(value, list) and len(value) == count
    if not numbers or not all(isinstance(x, (int, float)) and math.isfinite(x) for x in value):
        raise CallError("bad_arguments", f"a {name} is {count} numbers.")
    width, height = seen.image.size
    box = seen.to_pixels(tuple(map(float, value if count == 4 else [*value, *value])))  # type: ignore[arg-type]
    inside = (max(0.0, box[0]), max(0.0, box[1]), min(float(width), box[2]), min(float(height), box[3]))
    if count == 4 and (inside[2] - inside[0] < 1 or inside[3] - inside[1] < 1):
        raise CallError("bad_arguments", "the box has no area within the image; it is [x1, y1, x2, y2].")
    return inside[:count]


def make_tool(function: Callable[..., Any]) -> Tool:
    """A function `(seen, ...)`, or an object that is called so, as a tool; its name, docstring and parameters tell what
    it is, or an attribute `schema` does, in OpenAI's form of function tools."""
    schema = getattr(function, "schema", None)
    if isinstance(schema, Mapping):
        return function_tool(schema, function)
    called = function if inspect.isroutine(function) else type(function)
    _, *parameters = list(inspect.signature(function).parameters.values())
    named = [p for p in parameters if p.kind is not p.VAR_KEYWORD]
    return Tool(
        name=getattr(function, "name", called.__name__.lower()),
        description=" ".join((inspect.getdoc(called) or "").split("\n\n")[0].split()),
        function=function,
        signature=", ".join(p.name if p.default is p.empty else f"{p.name} (optional)" for p in named)
        or "no arguments",
        required=frozenset(p.name for p in named if p.default is p.empty),
        known=None if len(named) < len(parameters) else frozenset(p.name for p in named),
    )


def function_tool(schema: Mapping[str, Any], function: Callable[..., Any]) -> Tool:
    """A tool in OpenAI's form (`{"type": "function", "function": {"name", "description", "parameters"}}`, or what is
    inside), and what runs it: `function(seen, **arguments)`."""
    inner = schema.get("function", schema)
    parameters = inner.get("parameters", {})
    properties, required = parameters.get("properties", {}), parameters.get("required", [])
    told = [f"{name} ({value.get('type', 'any')})" for name, value in properties.items()]
    return Tool(
        name=inner["name"],
        description=str(inner.get("description", "")),
        function=function,
        signature=", ".join(told) or "no arguments",
        required=frozenset(required),
        known=None if parameters.get("additionalProperties") else frozenset(properties),
    )


def run_call(tools: Mapping[str, Tool], call: Call, seen: Seen) -> Reply:
    """The reply of the tool that a call names. Raises `CallError` where there is none."""
    if call.name not in tools:
        raise CallError("unknown_tool", f"there is no tool {call.name[:40]}: {nearest(call.name, tools)}.")
    return tools[call.name](seen, call.arguments)


# -- tools for pictures ------------------------------------------------------------------------------------------------


def zoom(seen: Seen, box: Box) -> Reply:
    """Shows a part of the image, box [x1, y1, x2, y2], in full resolution."""
    return Reply(image=_cut(seen.image, box), box=box)


def crop(seen: Seen, box: Box) -> Reply:
    """Shows a part of the image, box [x1, y1, x2, y2], in full resolution, and the whole image with the part marked."""
    whole = _marked(seen.image, [box])
    whole.thumbnail((OVERVIEW_SIDE, OVERVIEW_SIDE))
    return Reply(text="The part, and where it lies.", images=(_cut(seen.image, box), whole), box=box)


def point(seen: Seen, point: Sequence[float]) -> Reply:
    """Marks a point [x, y] in the image, with those marked before, and shows it."""
    marks = seen.notes.setdefault("points", [])
    marks.append(tuple(point))
    image = seen.image.copy()
    radius = max(3, round(max(image.size) / 80))
    pen = ImageDraw.Draw(image)
    for number, (x, y) in enumerate(marks, 1):
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), outline=MARK, width=max(2, radius // 3))
        pen.text((x + radius, y - 2 * radius), str(number), fill=MARK)
    return Reply(text=f"Points marked: {len(marks)}.", image=image)


def draw(seen: Seen, box: Box) -> Reply:
    """Draws a box [x1, y1, x2, y2] into the image, with those drawn before, and shows it."""
    drawn = seen.notes.setdefault("boxes", [])
    drawn.append(box)
    return Reply(text=f"Boxes drawn: {len(drawn)}.", image=_marked(seen.image, drawn), box=box)


def _cut(image: Image.Image, box: Box) -> Image.Image:
    x1, y1, x2, y2 = box
    return image.crop((math.floor(x1), math.floor(y1), math.ceil(x2), math.ceil(y2)))


def _marked(image: Image.Image, boxes: Sequence[Box]) -> Image.Image:
    image = image.copy()
    pen = ImageDraw.Draw(image)
    for box in boxes:
        pen.rectangle(box, outline=MARK, width=max(2, round(max(image.size) / 160)))
    return image


TOOLS: dict[str, Callable[..., Reply]] = {"zoom": zoom, "crop": crop, "point": point, "draw": draw}
"""The built-in tools by name."""
