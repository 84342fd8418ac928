"""Rows of a data file drawn with their questions and true boxes: a page or a contact sheet."""

from __future__ import annotations

import base64
import html
import io
import textwrap
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vlm_r1.data.draw import draw_boxes, side_by_side
from vlm_r1.data.images import ImageFinder
from vlm_r1.data.jsonl import empty_file, iter_rows, row_name
from vlm_r1.data.rows import RowContext, read_row
from vlm_r1.errors import DataError, Fault
from vlm_r1.prompts.parse_values import number_text
from vlm_r1.records import Sample, Truth

_STYLE = """body{font:15px/1.45 system-ui,sans-serif;margin:24px;color:#101418;background:#f6f7f9}
main{display:grid;grid-template-columns:repeat(auto-fill,minmax(300px,1fr));gap:16px}
article{background:#fff;border:1px solid #dde1e6;border-radius:8px;padding:12px;overflow-wrap:anywhere}
img{max-width:100%;height:auto;display:block;margin-bottom:8px}
small{color:#5b6470}.truth{color:#067647;font-weight:600}"""
_COLUMNS = 4
_CELL, _DRAWN = 320, 420


def show_file(path: Path, out: Path, n: int = 20, image_root: Path | None = None, seed: int = 0) -> None:
    """Draw `n` rows of a data file, picked by `seed`, into `out`: a self-contained .html page or a .png sheet.

    Rows with faults are left out; what was drawn and left out is printed. Raises `DataError` for a file that cannot
    be read or has no good row, and for another ending of `out`.
    """
    if out.suffix not in (".html", ".png"):
        raise DataError(f'"{out}": samples are drawn into a .html page or a .png sheet; use one of these endings')
    context = RowContext(name=path.name, finder=ImageFinder(image_root if image_root is not None else path.parent))
    rows = list(iter_rows(path))
    if not rows:
        raise empty_file(path)
    shown: list[tuple[int, Sample, Image.Image | None]] = []
    left_out = 0
    for index in np.random.default_rng([seed, 5]).permutation(len(rows)):
        number, row = rows[int(index)]
        sample = None if isinstance(row, Fault) else read_row(row, context, number)[0]
        try:
            image = None if sample is None else _image(sample)
        except DataError:
            # It cannot be drawn; the count below says so and names the command that tells why.
            sample = None
        if sample is None:
            left_out += 1
            continue
        shown.append((number, sample, image))
        if len(shown) == n:
            break
    if not shown:
        raise DataError(f"{path}: no row can be drawn; run: vlm-r1 data check {path}")
    shown.sort(key=lambda item: item[0])
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.suffix == ".html":
            out.write_text(_page(path, shown), encoding="utf-8")
        else:
            _sheet(path, shown).save(out)
    except OSError as error:
        raise DataError(f'"{out}" cannot be written ({error}); choose another place') from None
    note = f"; rows with faults left out: {left_out} (vlm-r1 data check {path} lists them)" if left_out else ""
    print(f"{out}: {len(shown)} of {len(rows)} rows{note}")


def truth_text(truth: Truth) -> str:
    """A truth in a few words, as a person reads it."""
    if truth.boxes is not None:
        if not truth.boxes:
            return "nothing there"
        return ", ".join(f"{item.label} {_sides(item.box)}" if item.label else _sides(item.box) for item in truth.boxes)
    if truth.number is not None:
        return number_text(truth.number)
    return truth.choice if truth.choice is not None else truth.text or ""


def _sides(box: tuple[float, float, float, float]) -> str:
    return "[" + ", ".join(f"{side:g}" for side in box) + "]"


def _image(sample: Sample) -> Image.Image | None:
    """The row's images in one, with the boxes on the first, to which they belong; None without images."""
    if not sample.images:
        return None
    images = [image.open() for image in sample.images]
    boxes = [sample.truth.boxes or (), *((),) * (len(images) - 1)]
    drawn = [draw_boxes(i, b, scale=_DRAWN / max(i.size)) for i, b in zip(images, boxes, strict=True)]
    return side_by_side(drawn)


def _page(path: Path, shown: list[tuple[int, Sample, Image.Image | None]]) -> str:
    cards = []
    for number, sample, opened in shown:
        image = ""
        if opened is not None:
            buffer = io.BytesIO()
            opened.save(buffer, "PNG")
            code = base64.b64encode(buffer.getvalue()).decode("ascii")
            image = f'<img alt="row {number} with its true boxes" src="data:image/png;base64,{code}">'
        cards.append(
            f"<article>{image}<p>{html.escape(sample.question)}</p>"
            f'<p class="truth">{html.escape(truth_text(sample.truth))}</p>'
            f"<small>{html.escape(row_name(path, number))} · {html.escape(sample.task)}</small></article>"
        )
    name = html.escape(path.name)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{name}</title><style>{_STYLE}</style>'
        f"<h1>{name}</h1><main>{''.join(cards)}</main></html>\n"
    )


def _sheet(path: Path, shown: list[tuple[int, Sample, Image.Image | None]]) -> Image.Image:
    font = ImageFont.load_default(size=14)
    cells = []
    for number, sample, image in shown:
        lines = textwrap.wrap(f"{number}. {sample.question}", 44)[:4]
        lines += textwrap.wrap(truth_text(sample.truth), 44)[:2]
        height = 0
        if image is not None:
            image.thumbnail((_CELL, _CELL))
            height = image.height
        cell = Image.new("RGB", (_CELL, height + 18 * len(lines) + 10), "white")
        if image is not None:
            cell.paste(image, (0, 0))
        ImageDraw.Draw(cell).multiline_text((0, height + 4), "\n".join(lines), fill="#101418", font=font, spacing=4)
        cells.append(cell)
    rows = [side_by_side(cells[i : i + _COLUMNS], gap=14) for i in range(0, len(cells), _COLUMNS)]
    sheet = Image.new("RGB", (max(row.width for row in rows) + 28, sum(row.height + 14 for row in rows) + 14), "white")
    y = 14
    for row in rows:
        sheet.paste(row, (14, y))
        y += row.height + 14
    return sheet
