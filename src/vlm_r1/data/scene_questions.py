"""Questions about generated scenes, with the reasoning that answers them.

In-domain questions name attributes ("the red circle"). Out-of-domain ones need a step that attribute questions
never need: a relation, a superlative, the odd one out, or counting. `list`, `detect` and `count` are whole-scene tasks.
Every referring expression has exactly one right object, by a margin.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from vlm_r1.boxes import Box
from vlm_r1.data.scene_things import COLOURS, SHAPES, Thing
from vlm_r1.records import LabelledBox, Truth

MARGIN = 6.0
"""Pixels by which a relation must hold, or fail, to be asked about."""
SIZE_RATIO = 1.25
"""How much larger the largest must be than the second largest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question, its truth, the reasoning that leads there, and its task and kind. `look` is where to look closer,
    `comes` what is there in some frames of a video alone."""

    question: str
    truth: Truth
    think: str
    task: str
    kind: str
    look: Box | None = None
    comes: Thing | None = None


def where(thing: Thing) -> str:
    """A coarse place in a 3 x 3 grid of the image: "top left", "middle", "bottom right"."""
    x = (thing.box[0] + thing.box[2]) / 2 / 32
    y = (thing.box[1] + thing.box[3]) / 2 / 32
    words = (
        ("top", "middle", "bottom")[min(int(y), 2)],
        ("left", "center", "right")[min(int(x), 2)],
    )
    return " ".join(words)


def _refer(kind: str, question: str, think: str, thing: Thing) -> Question:
    truth = Truth(boxes=(LabelledBox(box=thing.box, label=thing.name),))
    return Question(question=question, truth=truth, think=think, task="rec", kind=kind)


def _expressions(things: Sequence[Thing]) -> list[tuple[str, Thing]]:
    """Every attribute expression that fits exactly one thing."""
    found: list[tuple[str, Thing]] = []
    names = Counter(t.name for t in things)
    colours = Counter(t.colour for t in things)
    shapes = Counter(t.shape for t in things)
    for t in things:
        if names[t.name] == 1:
            found.append((f"the {t.name}", t))
        if colours[t.colour] == 1:
            found.append((f"the {t.colour} object", t))
        if shapes[t.shape] == 1:
            found.append((f"the {t.shape}", t))
    for size, sides in (("small", (0.0, 20.0)), ("large", (30.0, 99.0))):
        clear = [t for t in things if t.side < 18 or 22 < t.side < 28 or t.side > 32]
        if len(clear) == len(things):
            for shape in sorted(shapes):
                fits = [t for t in things if t.shape == shape and sides[0] <= t.side <= sides[1]]
                if len(fits) == 1 and shapes[shape] > 1:
                    found.append((f"the {size} {shape}", fits[0]))
    return found


def attribute(things: Sequence[Thing], rng: np.random.Generator) -> Question | None:
    """ "the red circle", "the blue object", "the large square": colour, shape and size name one object."""
    found = _expressions(things)
    if not found:
        return None
    text, thing = found[int(rng.integers(len(found)))]
    return _refer("attribute", text, f"{thing.name}, {where(thing)}", thing)


_RELATIONS: dict[str, Callable[[Thing, Thing], float]] = {
    "left of": lambda t, anchor: (anchor.box[0] + anchor.box[2] - t.box[0] - t.box[2]) / 2,
    "right of": lambda t, anchor: (t.box[0] + t.box[2] - anchor.box[0] - anchor.box[2]) / 2,
    "above": lambda t, anchor: (anchor.box[1] + anchor.box[3] - t.box[1] - t.box[3]) / 2,
    "below": lambda t, anchor: (t.box[1] + t.box[3] - anchor.box[1] - anchor.box[3]) / 2,
}


def relation(things: Sequence[Thing], rng: np.random.Generator) -> Question | None:
    """ "the circle left of the blue square", where more than one circle exists or "object" needs the relation."""
    names = Counter(t.name for t in things)
    found = []
    for anchor in things:
        if names[anchor.name] > 1:
            continue
        for words, distance in _RELATIONS.items():
            for noun in ("object", *sorted({t.shape for t in things})):
                others = [t for t in things if t is not anchor and noun in ("object", t.shape)]
                gaps = [distance(t, anchor) for t in others]
                fits = [t for t, gap in zip(others, gaps, strict=True) if gap > 0]
                if len(others) > 1 and len(fits) == 1 and min(abs(g) for g in gaps) >= MARGIN:
                    found.append((noun, words, anchor, fits[0]))
    if not found:
        return None
    noun, words, anchor, thing = found[int(rng.integers(len(found)))]
    think = f"{anchor.name}, {where(anchor)}; {noun} {words} it: {thing.name}, {where(thing)}"
    return _refer("relation", f"the {noun} {words} the {anchor.name}", think, thing)


_SUPERLATIVES: dict[str, Callable[[Thing], float]] = {
    "largest": lambda t: t.side,
    "smallest": lambda t: -t.side,
    "leftmost": lambda t: -(t.box[0] + t.box[2]) / 2,
    "rightmost": lambda t: (t.box[0] + t.box[2]) / 2,
    "topmost": lambda t: -(t.box[1] + t.box[3]) / 2,
    "lowest": lambda t: (t.box[1] + t.box[3]) / 2,
}


def superlative(things: Sequence[Thing], rng: np.random.Generator) -> Question | None:
    """ "the largest triangle", "the leftmost object": the first of several by a clear margin."""
    found = []
    for noun in (
        "object",
        *sorted({t.shape for t in things}),
        *sorted({t.colour for t in things}),
    ):
        group = [t for t in things if noun in ("object", t.shape, t.colour)]
        if len(group) < 2:
            continue
        for word, key in _SUPERLATIVES.items():
            first, second = sorted(group, key=key, reverse=True)[:2]
            if word in ("largest", "smallest"):
                clear = max(first.side, second.side) / min(first.side, second.side) >= SIZE_RATIO
            else:
                clear = key(first) - key(second) >= MARGIN
            if clear:
                found.append((word, noun, first))
    if not found:
        return None
    word, noun, thing = found[int(rng.integers(len(found)))]
    tail = f"{noun} object" if noun in {t.colour for t in things} else noun
    return _refer(
        "superlative",
        f"the {word} {tail}",
        f"{word} {tail}: {thing.name}, {where(thing)}",
        thing,
    )


def _only(things: Sequence[Thing], trait: Callable[[Thing], str]) -> Thing | None:
    """The one thing that shares its trait with no other; None where there is none, or several."""
    counts = Counter(trait(t) for t in things)
    alone = [t for t in things if counts[trait(t)] == 1]
    return alone[0] if len(alone) == 1 else None


def odd_one_out(things: Sequence[Thing], rng: np.random.Generator) -> Question | None:
    """ "the object that differs from all the others": one name among alike ones (arrangement "odd")."""
    thing = _only(things, lambda t: t.name)
    if thing is None or len({t.name for t in things}) != 2:
        return None
    return _refer(
        "odd_one_out",
        "the object that differs from all the others",
        f"{thing.name}, {where(thing)}",
        thing,
    )


def counting(things: Sequence[Thing], rng: np.random.Generator) -> Question | None:
    """ "the object whose colour appears only once" (arrangement "pairs")."""
    thing = _only(things, lambda t: t.colour)
    if thing is None:
        return None
    return _refer(
        "counting",
        "the object whose color appears only once",
        f"{thing.name}, {where(thing)}",
        thing,
    )


def list_all(things: Sequence[Thing], rng: np.random.Generator) -> Question | None:
    """Every object with its box, top to bottom."""
    ordered = sorted(things, key=lambda t: (t.box[1], t.box[0]))
    truth = Truth(boxes=tuple(LabelledBox(box=t.box, label=t.name) for t in ordered))
    return Question(
        question="list every object",
        truth=truth,
        think=f"{len(things)} objects",
        task="list",
        kind="list",
    )


def detect(things: Sequence[Thing], rng: np.random.Generator, *, absent: bool = True) -> Question | None:
    """Named categories, one or two of which are not there; every instance of the present ones is to be found.

    Without `absent` all of them are there, at least one. Boxes come in the order of the names, those of one name from
    top to bottom, and the thought says where each is.
    """
    present = sorted({t.name for t in things})
    asked = [str(n) for n in rng.permutation(present)[: int(rng.integers(not absent, min(3, len(present)) + 1))]]
    if absent:
        missing = [f"{c} {s}" for c in COLOURS for s in SHAPES if f"{c} {s}" not in present]
        asked += [str(n) for n in rng.choice(missing, int(rng.integers(1, 3)), replace=False)]
    names = [str(n) for n in rng.permutation(asked)]
    # The place of a name in question and thought leads to its box: with all boxes from top to bottom, the model would
    # have to find the topmost of several objects and write its box before it names it.
    here = sorted((t for t in things if t.name in names), key=lambda t: (names.index(t.name), t.box[1], t.box[0]))
    truth = Truth(boxes=tuple(LabelledBox(box=t.box, label=t.name) for t in here))
    think = "present: " + ("; ".join(f"{t.name}, {where(t)}" for t in here) or "none")
    return Question(
        question="detect " + ", ".join(names),
        truth=truth,
        think=think,
        task="ovd",
        kind="detect",
    )


def count(things: Sequence[Thing], rng: np.random.Generator) -> Question | None:
    """How many objects of a colour or shape there are (0 included)."""
    noun = str(rng.choice([*COLOURS, *SHAPES, "object"]))
    fits = [t for t in things if noun in ("object", t.colour, t.shape)]
    plural = f"{noun} objects" if noun in COLOURS else ("crosses" if noun == "cross" else f"{noun}s")
    think = "; ".join(where(t) for t in fits) or "none"
    return Question(
        question=f"how many {plural}",
        truth=Truth(number=float(len(fits))),
        think=think,
        task="count",
        kind="count",
    )


def mark(things: Sequence[Thing], rng: np.random.Generator) -> Question | None:
    """ "the mark on the red circle": too small to be seen in an image that was made small, for those who look closer.

    The answer is a word.
    """
    found = _expressions(things)
    if not found:
        return None
    text, thing = found[int(rng.integers(len(found)))]
    return Question(
        question=f"the mark on {text}",
        truth=Truth(text=thing.mark),
        think=f"{thing.name}, {where(thing)}",
        task="text",
        kind="mark",
        look=thing.box,
    )


def when(things: Sequence[Thing], rng: np.random.Generator) -> Question | None:
    """ "when is the red circle there": in the frames of a video from one time to another; the truth comes with them."""
    found = _expressions(things)
    if not found:
        return None
    text, thing = found[int(rng.integers(len(found)))]
    think = f"{thing.name}, {where(thing)}"
    return Question(question=f"when is {text} there", truth=Truth(), think=think, task="when", kind="when", comes=thing)


KINDS: dict[str, Callable[[Sequence[Thing], np.random.Generator], Question | None]] = {
    "attribute": attribute,
    "relation": relation,
    "superlative": superlative,
    "odd_one_out": odd_one_out,
    "counting": counting,
    "list": list_all,
    "detect": detect,
    "count": count,
    "mark": mark,
    "when": when,
}


def arrangement_for(kind: str) -> str:
    """The arrangement of a scene (see `make_scene`) in which a kind of question can be asked."""
    return {"odd_one_out": "odd", "counting": "pairs"}.get(kind, "free")


def ask(kind: str, things: Sequence[Thing], rng: np.random.Generator) -> Question | None:
    """A question of a kind about these things, or None where none fits."""
    return KINDS[kind](things, rng)
