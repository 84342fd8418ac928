"""Rollouts of a step for the trackers: images with true and answered boxes, and a table of the answers."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any, TypeVar

from PIL import Image, ImageColor, ImageDraw

from vlm_r1.data.draw import TRUE_COLOR, draw_boxes, fitting_scale, font
from vlm_r1.data.show import truth_text
from vlm_r1.records import Answer, LabelledBox, RolloutGroup, Score
from vlm_r1.rl.experience import Experience

T = TypeVar("T")

MAX_GROUPS = 4
MAX_SIDE, MIN_WIDTH = 640, 320
"""Pixels: larger images are shrunk, and a caption is never narrower."""
MAX_ANSWERS = 8
"""Answers that are shown of a group: of more, the best and the worst halves of these."""

LOW, MIDDLE, HIGH, UNSCORED = "#6a1fb0", "#f0563a", "#ffe14d", "#9aa3af"
"""Colours of a group's lowest, middle and highest reward: the brighter, the better, for colour-blind people too."""

_LINE, _MARGIN = 20, 8


def rollout_images(experience: Experience) -> list[tuple[int, Image.Image]]:
    """The first `MAX_GROUPS` groups that have an image, with their numbers, drawn; fewer where there are fewer."""
    drawn: list[tuple[int, Image.Image]] = []
    for group, answers, scores in zip(experience.groups, experience.answers, experience.scores, strict=True):
        if group.prompt.sample.images and len(drawn) < MAX_GROUPS:
            drawn.append((group.prompt.number, draw_group(group, answers, scores)))
    return drawn


def answer_rows(experience: Experience) -> list[tuple[int, dict[str, Any]]]:
    """The answers of the same groups, each with its group's number, as rows of a table.

    `image` holds the true boxes and those of this answer; of a group there are at most `MAX_ANSWERS`, best first.
    """
    rows: list[tuple[int, dict[str, Any]]] = []
    groups = list(zip(experience.groups, experience.answers, experience.scores, experience.advantages_PG, strict=True))
    for group, answers, scores, advantages_G in [row for row in groups if row[0].prompt.sample.images][:MAX_GROUPS]:
        sample = group.prompt.sample
        image = sample.images[0].open()
        ranked = sorted(zip(answers, scores, advantages_G.tolist(), strict=True), key=lambda row: -_total(row[1]))
        for answer, score, advantage in _best_and_worst(ranked):
            drawn = _draw(image, sample.truth.boxes or (), answer.value if isinstance(answer.value, tuple) else ())
            row = {"question": sample.question, "truth": truth_text(sample.truth), "image": drawn}
            row |= {"completion": answer.raw, "reward": score.total, "advantage": advantage}
            rows.append((group.prompt.number, row))
    return rows


def _best_and_worst(ranked: Sequence[T]) -> list[T]:
    """All of them, or of more than `MAX_ANSWERS` the first and the last ones."""
    half = MAX_ANSWERS // 2
    return list(ranked) if len(ranked) <= MAX_ANSWERS else [*ranked[:half], *ranked[-half:]]


def _draw(
    image: Image.Image, true: Sequence[LabelledBox], predicted: Sequence[LabelledBox], **drawing: Any
) -> Image.Image:
    scale = min(fitting_scale(image.size), MAX_SIDE / max(image.size))
    true = true if len(true) > 1 else [LabelledBox(box=b.box) for b in true]
    return draw_boxes(image, true, [LabelledBox(box=b.box) for b in predicted], scale=scale, **drawing)


def draw_group(group: RolloutGroup, answers: Sequence[Answer], scores: Sequence[Score]) -> Image.Image:
    """The first image of a prompt with its true boxes and those of its answers, and a caption below.

    The caption holds the question, the truth and the answers from the highest to the lowest reward.
    """
    sample = group.prompt.sample
    image = sample.images[0].open()
    ranked = sorted(zip(answers, scores, reward_colors(scores), strict=True), key=lambda row: -_total(row[1]))
    shown, more = _best_and_worst(ranked), len(ranked) - MAX_ANSWERS
    boxes = [(b, color) for a, _, color in reversed(shown) for b in (a.value if isinstance(a.value, tuple) else ())]
    drawn = _draw(image, sample.truth.boxes or (), [b for b, _ in boxes], colors=[color for _, color in boxes])
    lines = [(line, "") for line in textwrap.wrap(sample.question, max(drawn.width, MIN_WIDTH) // 7)[:3]]
    lines += [(f"truth  {truth_text(sample.truth)}", TRUE_COLOR)]
    lines += [(_told(answer, score), color) for answer, score, color in shown]
    if more > 0:
        lines.insert(len(lines) - MAX_ANSWERS // 2, (f"... {more} more ...", ""))
    return _with_caption(drawn, lines)


def reward_colors(scores: Sequence[Score]) -> list[str]:
    """A colour an answer: between `LOW` and `HIGH` by its place between the group's lowest and highest reward."""
    totals = [score.total for score in scores]
    known = [total for total in totals if total is not None]
    low, span = min(known, default=0.0), max(known, default=0.0) - min(known, default=0.0)
    return [UNSCORED if total is None else _between((total - low) / span if span else 0.5) for total in totals]


def _between(share: float) -> str:
    first, second = (LOW, MIDDLE) if share < 0.5 else (MIDDLE, HIGH)
    part = 2 * share - (share >= 0.5)
    pairs = zip(ImageColor.getrgb(first), ImageColor.getrgb(second), strict=True)
    return "#" + "".join(f"{round(a + part * (b - a)):02x}" for a, b in pairs)


def _total(score: Score) -> float:
    return float("-inf") if score.total is None else score.total


def _told(answer: Answer, score: Score) -> str:
    reward = "none" if score.total is None else f"{score.total:.3f}"
    text = answer.text if answer.text is not None else answer.raw
    failure = f"{answer.failure.kind}: " if answer.failure else ""
    return f"{reward}  {failure}{' '.join(text.split())}"


def _with_caption(image: Image.Image, lines: Sequence[tuple[str, str]]) -> Image.Image:
    """The image above lines of text; a line with a colour has a swatch of it, a line that is too long is cut."""
    width = max(image.width, MIN_WIDTH)
    sheet = Image.new("RGB", (width, image.height + _LINE * len(lines) + 2 * _MARGIN), "white")
    sheet.paste(image, (0, 0))
    pen, face = ImageDraw.Draw(sheet), font(13)
    for place, (text, color) in enumerate(lines):
        y = image.height + _MARGIN + place * _LINE
        x = _MARGIN + (_LINE if color else 0)
        while pen.textlength(text, font=face) > width - x - _MARGIN:
            text = text[: -max(2, len(text) // 8)] + "…"
        if color:
            pen.rectangle((_MARGIN, y + 3, _MARGIN + 12, y + 15), fill=color)
        pen.text((x, y), text, fill="#101418", font=face)
    return sheet
