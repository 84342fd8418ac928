"""COCO's instances layout, which RefCOCO, COCO, OVDEval and D3 share: images, categories, boxes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm_r1.boxes import Box, is_proper, xywh_to_xyxy
from vlm_r1.errors import DataError
from vlm_r1.prompts.templates import word_question


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """One annotation; `box` is None where it has no area inside its image."""

    id: int
    image_id: int
    category_id: int
    box: Box | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Instances:
    """An annotation file: records of images by id, names of categories by id, annotations by image id."""

    images: Mapping[int, Mapping[str, Any]]
    categories: Mapping[int, str]
    by_image: Mapping[int, Sequence[Instance]]

    def file_name(self, image_id: int) -> str:
        """The image's file name as the annotations give it."""
        return str(self.images[image_id]["file_name"])


def load_json(path: Path, encodings: Sequence[str] = ("utf-8",)) -> Any:
    """A JSON file, tried in each encoding in turn. Raises `DataError`."""
    for encoding in encodings:
        try:
            return json.loads(path.read_text(encoding=encoding), parse_constant=_refuse)
        except UnicodeDecodeError:
            continue
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error}); give the annotation file as published") from None
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}: not JSON ({error}); give the annotation file as published") from None
    raise DataError(f"{path}: not text in {' or '.join(encodings)}; give the annotation file as published")


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not a number")


def load_instances(path: Path, *, crowds: bool = False) -> Instances:
    """Read an annotation file. Boxes become corner form in pixels, clipped to their image; crowds are left out
    unless asked for. Raises `DataError` where the file does not have the layout.
    """
    value = load_json(path)
    try:
        images = {int(image["id"]): image for image in value["images"]}
        categories = {int(category["id"]): str(category["name"]) for category in value["categories"]}
        by_image: dict[int, list[Instance]] = {image_id: [] for image_id in images}
        for row in value["annotations"]:
            if row.get("iscrowd", 0) and not crowds:
                continue
            image = images[int(row["image_id"])]
            instance = Instance(
                id=int(row["id"]),
                image_id=int(row["image_id"]),
                category_id=int(row["category_id"]),
                box=clipped(row["bbox"], float(image["width"]), float(image["height"])),
            )
            by_image[instance.image_id].append(instance)
        for image in images.values():
            str(image["file_name"])
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DataError(
            f"{path}: not in COCO's instances layout ({type(error).__name__}: {error}); "
            "it holds images, categories and annotations"
        ) from None
    return Instances(images=images, categories=categories, by_image=by_image)


def clipped(xywh: Sequence[float], width: float, height: float) -> Box | None:
    """COCO's box in corner form inside its image of this size in pixels; None where it has no area there."""
    x1, y1, x2, y2 = xywh_to_xyxy(xywh)
    box = (max(x1, 0.0), max(y1, 0.0), min(x2, width), min(y2, height))
    return (round(box[0], 2), round(box[1], 2), round(box[2], 2), round(box[3], 2)) if is_proper(box) else None


def detection_row(
    row_id: str, image: str, asked: Sequence[str], found: Sequence[tuple[Box, str]], source: str, *, bare: bool = False
) -> dict[str, Any]:
    """A JSONL row that asks for `asked` in an image and states the boxes of those that are there.

    With `bare` the question is the names alone, without the task's wording.
    """
    names = ", ".join(asked)
    return {
        "id": row_id,
        "image": image,
        "problem": names if bare else word_question("ovd", names),
        "solution": [{"bbox_2d": list(box), "label": label} for box, label in found],
        "task": "ovd",
        "source": source,
        "categories": list(asked),
    }
