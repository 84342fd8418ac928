"""A compact figure for a README: held-out images before and after training, with true and predicted boxes."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageDraw

from vlm_r1.data.draw import PREDICTED_COLOR, TRUE_COLOR, draw_boxes, font
from vlm_r1.errors import CheckpointError, DataError
from vlm_r1.records import SampleImage
from vlm_r1.report.findings import MINUS
from vlm_r1.report.held_out import HeldOutImages
from vlm_r1.report.pairs import Pair, Row, read_pairs
from vlm_r1.runtime.runlog import boxes_from_json, eval_path, write_atomically

TILE, GAP, MARGIN = 240, 16, 76
"""Pixels: side of an image, space between two, space on the left for the words "before" and "after"."""

_PAPER, _INK, _SOFT = "#ffffff", "#1a2027", "#5b6672"


def before_after_png(run_dir: Path, out: Path, split: str = "in_domain", count: int = 5) -> Path:
    """Write the figure to `out` (PNG) and return its path: `count` questions of a split, before above after.

    The questions are spread evenly over the ranking by gain, from losses to gains, so the figure shows the typical as
    well as the best. Raises `CheckpointError` where the run has not both evaluations, or no image is found.
    """
    pairs = read_pairs(run_dir)
    asked = pairs.get(split) or next(iter(pairs.values()), [])
    images = HeldOutImages(eval_path(Path(run_dir), phase) for phase in ("after", "before"))
    try:
        found = [(pair, images.find(pair.rows)) for pair in typical(asked, count)]
    except DataError:  # the data is not here: of those whose images were kept
        kept = [pair for pair in asked if any(row.get("image") is not None for row in pair.rows)]
        found = [(pair, images.find(pair.rows)) for pair in typical(kept, count)]
    if not found:
        raise CheckpointError(
            f"{run_dir}: no held-out questions of before and after to draw; the folder of a finished training run with "
            "data.eval has eval-before.parquet and eval-after.parquet"
        )
    size = (MARGIN + len(found) * (TILE + GAP), 2 * (TILE + GAP) + 2 * 22 + 76)
    sheet = Image.new("RGB", size, _PAPER)
    pen = ImageDraw.Draw(sheet)
    for column, (pair, image) in enumerate(found):
        x, y = MARGIN + column * (TILE + GAP), 12
        y = _words(pen, (x, y), str(pair.row.get("question") or ""))
        for row in (pair.before, pair.after):
            tile = _tile(image, row or {})
            sheet.paste(tile, (x + (TILE - tile.width) // 2, y + (TILE - tile.height) // 2))
            pen.text((x, y + TILE + 4), _score(row or {}), fill=_INK, font=font(14))
            y += TILE + GAP + 22
    for place, word in enumerate(("before", "after")):
        y = 12 + 44 + place * (TILE + GAP + 22) + TILE // 2 - 8
        pen.text((12, y), word, fill=_INK, font=font(16))
    _key(pen, (MARGIN, size[1] - 26))
    sink = BytesIO()
    sheet.save(sink, "PNG", optimize=True)
    write_atomically(Path(out), sink.getvalue())
    return Path(out)


def typical(pairs: Sequence[Pair], count: int) -> list[Pair]:
    """`count` pairs at even steps of the ranking by gain, in that order; all where there are fewer."""
    ranked = sorted((p for p in pairs if p.gain is not None), key=lambda p: p.gain or 0.0)
    if len(ranked) <= count:
        return ranked
    return [ranked[int((place + 0.5) * len(ranked) / count)] for place in range(count)]


def _tile(image: bytes, row: Row) -> Image.Image:
    opened = SampleImage(data=image).open()
    scale = TILE / max(opened.size)
    true, predicted = boxes_from_json(row.get("true_boxes")), boxes_from_json(row.get("pred_boxes"))
    return draw_boxes(opened, true, predicted, scale=scale)


def _score(row: Row) -> str:
    if row.get("failure"):
        return "no readable answer"
    if row.get("iou") is not None:
        return f"IoU {row['iou']:.2f}".replace("-", MINUS)
    return "correct" if row.get("correct") else "wrong"


def _words(pen: ImageDraw.ImageDraw, at: tuple[int, int], text: str) -> int:
    """Write the question in at most two lines of a tile's width; returns where the image begins."""
    face, lines = font(14), [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and pen.textlength(longer, font=face) > TILE:
            lines.append(word)
        else:
            lines[-1] = longer
    if len(lines) > 2:
        lines = [lines[0], lines[1] + "…"]
    for place, line in enumerate(lines):
        pen.text((at[0], at[1] + 18 * place + (18 if len(lines) == 1 else 0)), line, fill=_INK, font=face)
    return at[1] + 44


def _key(pen: ImageDraw.ImageDraw, at: tuple[int, int]) -> None:
    x, y = at
    for color, word in ((TRUE_COLOR, "true box"), (PREDICTED_COLOR, "predicted box")):
        pen.rectangle((x, y + 2, x + 18, y + 14), outline=color, width=3)
        pen.text((x + 26, y), word, fill=_SOFT, font=font(13))
        x += 50 + int(pen.textlength(word, font=font(13)))
