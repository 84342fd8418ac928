"""Annotation files that `vlm-r1 data convert` reads: COCO's layout and what others made of it, and pickles."""

import json
import pickle
from pathlib import Path

from hostile import Case, damaged
from vlm_r1.data.convert import convert

COCO = {
    "images": [{"id": 1, "file_name": "a.png", "width": 30, "height": 20, "caption": "a cat"} | {"text": ["cat"]}],
    "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    "annotations": [
        {"id": 7, "image_id": 1, "category_id": 1, "bbox": [1, 2, 9, 9], "caption": "a cat", "caption_quality": 1},
        {"id": 8, "image_id": 1, "category_id": 2, "bbox": [3, 2, 9, 9], "caption": "a dog", "caption_quality": 1},
    ],
}
LAYOUT = r"not in .* layout|give the annotation file as published|is a list of labels"


def with_value(part: str, key: str, value: object) -> bytes:
    """The good file with another value in the first entry of a part."""
    return json.dumps(COCO | {part: [COCO[part][0] | {key: value}, *COCO[part][1:]]}).encode()


CASES = [
    Case("a list", b"[]", LAYOUT),
    Case("deep nesting", b"[" * 100_000, "not JSON"),
    Case("bytes that are not UTF-8", b"\xff", "not text in"),
    Case("an image's id that is a text", with_value("images", "id", "x"), LAYOUT),
    Case("ids below 0", json.dumps(COCO).replace('id": 1', 'id": -5').encode(), None),
    Case("an image's id without end", with_value("images", "id", float("inf")), LAYOUT),
    Case("a width that is a text", with_value("images", "width", "x"), LAYOUT),
    Case("a width without end", with_value("images", "width", 10**400), LAYOUT),
    Case("a box of texts", with_value("annotations", "bbox", ["a", "b", "c", "d"]), LAYOUT),
    Case("a box of two sides", with_value("annotations", "bbox", [1, 2]), LAYOUT),
    Case("a box without a number", with_value("annotations", "bbox", [float("nan")] * 4), LAYOUT),
    Case("a huge box", with_value("annotations", "bbox", [10**400, 1, 2, 3]), LAYOUT),
    Case("ids that are floats", json.dumps(COCO).replace('"image_id": 1', '"image_id": 1e999').encode(), LAYOUT),
    Case("half a character", with_value("images", "file_name", "\ud83d.png"), "half a character"),
]


def _door(name: str, file: str, **options):
    def door(content: bytes, folder: Path) -> None:
        (folder / file).write_bytes(content)
        convert(name, [folder / file], folder / "rows.jsonl", **options)

    return door


DOORS = {
    "coco": _door("coco", "a.json"),
    "coco with negatives": _door("coco", "a.json", negatives=2),
    "ovdeval": _door("ovdeval", "a.json"),
    "refcoco_reviewed": _door("refcoco_reviewed", "refcoco_val_reviewed.json"),
}
OTHERWISE: dict[str, str | None] = {}
CONTENTS = damaged([json.dumps(COCO).encode(), pickle.dumps(COCO)])
EXAMPLES = 50
