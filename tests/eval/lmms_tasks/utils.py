"""A task of lmms-eval as RefCOCO's is: the expression at the end of a text, boxes as shares of the image."""

import io
import json

from PIL import Image

ASKED = "Boxes are [x1, y1, x2, y2] between 0 and 1. Please give the box of the region this sentence describes: "


def visual(doc):
    return [Image.open(io.BytesIO(doc["png"])).convert("RGB")]


def text(doc, kwargs=None):
    return ASKED + doc["question"]


def messages(doc, kwargs=None):
    content = [{"type": "image", "url": visual(doc)[0]}, {"type": "text", "text": text(doc)}]
    return [{"role": "user", "content": content}]


def results(doc, answers):
    """The IoU by plain arithmetic, and whether the answer is a box at all."""
    try:
        a, b = json.loads(answers[0]), doc["box"]
        width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
        shared = max(width, 0) * max(height, 0)
        areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
        return {"iou": shared / (sum(areas) - shared), "seen": 1.0}
    except (ValueError, TypeError):
        return {"iou": 0.0, "seen": 0.0}
