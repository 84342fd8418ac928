"""True boxes drawn on a picture, for a look at the data."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from vlm_r1.records import LabelledBox

COLOR = "#12b76a"
_DARK = "#101418"


def draw_truth(image: Image.Image, boxes: Sequence[LabelledBox], longest: int = 420) -> Image.Image:
    """A copy of `image` whose longer side is `longest` pixels, with its boxes (pixels of `image`) and their labels."""
    scale = longest / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    canvas = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    pen = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=13)
    for item in boxes:
        x1, y1, x2, y2 = (side * scale for side in item.box)
        # A dark line under the bright one keeps it visible on any background.
        pen.rectangle((x1, y1, x2, y2), outline=_DARK, width=4)
        pen.rectangle((x1, y1, x2, y2), outline=COLOR, width=2)
        if item.label:
            left, top, right, bottom = pen.textbbox((x1, y1), item.label, font=font)
            dy = -(bottom - y1) if y1 > bottom - y1 else 0
            pen.rectangle((left - 2, top + dy - 2, right + 2, bottom + dy + 2), fill=COLOR)
            pen.text((x1, y1 + dy), item.label, fill=_DARK, font=font)
    return canvas


def side_by_side(images: Sequence[Image.Image], gap: int = 6) -> Image.Image:
    """Pictures in one row, top edges level."""
    width = sum(image.width for image in images) + gap * (len(images) - 1)
    sheet = Image.new("RGB", (width, max(image.height for image in images)), "white")
    x = 0
    for image in images:
        sheet.paste(image, (x, 0))
        x += image.width + gap
    return sheet
