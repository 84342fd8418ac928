"""What a generated scene is made of: its objects, how they are placed, and how they are drawn, all from a seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from vlm_r1.boxes import Box

SIZE = 96
"""Side of an image in pixels."""

COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 220),
    "yellow": (240, 210, 40),
    "purple": (150, 60, 190),
    "orange": (245, 140, 30),
    "cyan": (50, 200, 215),
    "black": (25, 25, 25),
}
SHAPES = ("circle", "square", "triangle", "diamond", "cross")
BACKGROUNDS = ("plain", "gradient", "stripes", "checks")
_ROWS, _COLUMNS = np.mgrid[0:SIZE, 0:SIZE]
MIN_SIDE, MAX_SIDE = 14, 40
MARK_SIDE = 10
"""Side of an object's mark in pixels of an enlarged image: 2.5 where one of 384 pixels is shown at `SIZE` again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Thing:
    """One object of a scene: `Thing(colour="red", shape="circle", box=(10, 12, 34, 36))`.

    `mark` is the small shape on it that enlarged images show.
    """

    colour: str
    shape: str
    box: Box
    mark: str = ""

    @property
    def name(self) -> str:
        """Colour and shape: "red circle"."""
        return f"{self.colour} {self.shape}"

    @property
    def side(self) -> float:
        """Side of the object in pixels; every shape is as wide as high."""
        return self.box[2] - self.box[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """The objects of one image and the seed that draws it."""

    seed: int
    things: tuple[Thing, ...]

    def draw(self, scale: int = 1, hidden: Thing | None = None) -> Image.Image:
        """The image, `SIZE` x `SIZE` RGB times `scale`; enlarged ones show marks. `hidden` is not drawn.

        Later objects cover earlier ones where they overlap a little.
        """
        rng = np.random.default_rng([self.seed, 1])
        canvas = _background(rng).repeat(scale, 0).repeat(scale, 1)
        for thing in self.things:
            x1, y1, x2, y2 = (int(v) * scale for v in thing.box)
            colour = np.clip(np.array(COLOURS[thing.colour]) + rng.integers(-18, 19, 3), 0, 255)
            if thing is hidden:
                continue
            canvas[y1:y2, x1:x2][shape_mask(thing.shape, x2 - x1)] = colour
            if scale > 1:
                x, y = (x1 + x2 - MARK_SIDE) // 2, (y1 + y2 - MARK_SIDE) // 2
                light = 255.0 if colour.mean() < 130 else 0.0
                canvas[y : y + MARK_SIDE, x : x + MARK_SIDE][shape_mask(thing.mark, MARK_SIDE)] = light
        noise = rng.choice([0, 4, 10])
        if noise:
            canvas = canvas + rng.normal(0, noise, canvas.shape)
        return Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))


def shape_mask(shape: str, side: int) -> np.ndarray:
    """Which pixels of a `side` x `side` square a shape paints; it touches all four sides. Bool `(side, side)`."""
    centre = (np.arange(side) + 0.5) / side * 2 - 1
    x, y = np.meshgrid(centre, centre)
    if shape == "square":
        return np.ones((side, side), bool)
    if shape == "circle":
        return x**2 + y**2 <= 1
    if shape == "diamond":
        return np.abs(x) + np.abs(y) <= 1 + 1 / side
    if shape == "cross":
        return (np.abs(x) <= 0.34) | (np.abs(y) <= 0.34)
    return np.abs(x) <= (y + 1) / 2 + 1 / side  # triangle, point up


def _background(rng: np.random.Generator) -> np.ndarray:
    kind = BACKGROUNDS[rng.integers(len(BACKGROUNDS))]
    base = rng.integers(185, 250, 3).astype(float)
    other = np.clip(base + rng.integers(-30, 31, 3), 170, 255)
    rows, columns = _ROWS, _COLUMNS
    if kind == "plain":
        blend = np.zeros((SIZE, SIZE))
    elif kind == "gradient":
        blend = (rows if rng.integers(2) else columns) / SIZE
    elif kind == "stripes":
        blend = ((rows + columns * rng.integers(0, 2)) // rng.integers(4, 12)) % 2
    else:
        side = rng.integers(6, 16)
        blend = (rows // side + columns // side) % 2
    return base + (other - base) * blend[..., None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difficulty:
    """How many objects a scene has, how large they are in pixels, and of how many colors and shapes (both inclusive).

    With `distinct` no two objects share a color or a shape.
    """

    count: tuple[int, int] = (3, 6)
    side: tuple[int, int] = (MIN_SIDE, MAX_SIDE)
    colors: int = len(COLOURS)
    shapes: int = len(SHAPES)
    distinct: bool = False


DIFFICULTIES = {
    "mixed": Difficulty(),
    "easy": Difficulty(count=(3, 3), side=(28, 40), distinct=True),
    "small": Difficulty(side=(12, 24)),
    "hard": Difficulty(count=(6, 8), side=(12, 20), colors=3, shapes=2),
}


def make_scene(seed: int, arrangement: str = "free", attempt: int = 0, difficulty: str = "mixed") -> Scene:
    """The scene of a seed: 3 to 6 objects (by `difficulty`), no two sharing more than a small part of their boxes.

    `arrangement` shapes colours and shapes for questions that need it: "free", "odd" (all alike but one) or "pairs"
    (every colour twice but one). `attempt` counts the scenes of a seed that were tried for a question and did not fit
    it.
    """
    rng = np.random.default_rng([seed, 0, attempt])
    level = DIFFICULTIES[difficulty]
    boxes = _place(rng, int(rng.integers(level.count[0], level.count[1] + 1)), level.side)
    kinds = _kinds(rng, len(boxes), arrangement, level)
    marks = np.random.default_rng([seed, 4, attempt]).choice(SHAPES, len(boxes))
    things = (Thing(colour=c, shape=s, box=b, mark=str(m)) for (c, s), b, m in zip(kinds, boxes, marks, strict=True))
    return Scene(seed=seed, things=tuple(things))


def _place(rng: np.random.Generator, count: int, sides: tuple[int, int]) -> list[Box]:
    placed: list[Box] = []
    for _ in range(200):
        if len(placed) == count:
            break
        side = int(rng.integers(sides[0], sides[1] + 1))
        x, y = (int(v) for v in rng.integers(1, SIZE - side, 2))
        box = (float(x), float(y), float(x + side), float(y + side))
        if all(_overlap(box, other) < 0.12 for other in placed):
            placed.append(box)
    return placed


def _overlap(a: Box, b: Box) -> float:
    """Shared area over the smaller box's area."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / min(a[2] - a[0], b[2] - b[0]) ** 2


def _kinds(rng: np.random.Generator, count: int, arrangement: str, level: Difficulty) -> list[tuple[str, str]]:
    colours, shapes = list(COLOURS), list(SHAPES)
    if level.colors < len(colours):
        colours = [str(c) for c in rng.permutation(colours)[: level.colors]]
    if level.shapes < len(shapes):
        shapes = [str(s) for s in rng.permutation(shapes)[: level.shapes]]
    if arrangement == "odd":
        c, d = rng.permutation(colours)[:2]
        s, t = rng.permutation(shapes)[:2]
        kinds = [(str(c), str(s))] * count
        kinds[int(rng.integers(count))] = (str(d), str(s)) if rng.integers(2) else (str(c), str(t))
        return kinds
    if arrangement == "pairs":
        chosen = [str(c) for c in rng.permutation(colours)]
        picked = [chosen[i // 2] for i in range(count - (count + 1) % 2)]  # an odd number: the last colour stands alone
        picked += [chosen[0]] * (count - len(picked))
        order = rng.permutation(count)
        return [(picked[i], str(rng.choice(shapes))) for i in order]
    if level.distinct:
        pairs = zip(rng.permutation(colours), rng.permutation(shapes), strict=False)
        return [(str(c), str(s)) for c, s in pairs][:count]
    return [(str(rng.choice(colours)), str(rng.choice(shapes))) for _ in range(count)]


def loosened(box: Box, share: float, rng: np.random.Generator) -> Box:
    """Push each side of a box outward by a uniform share (0 to `share`) of its extent, kept inside the image."""
    width, height = box[2] - box[0], box[3] - box[1]
    left, top, right, bottom = rng.uniform(0, share, 4)
    return (
        max(0.0, box[0] - left * width),
        max(0.0, box[1] - top * height),
        min(float(SIZE), box[2] + right * width),
        min(float(SIZE), box[3] + bottom * height),
    )
