"""OVDEval's subsets (COCO's layout with `text` and `neg_text` for each image) become detection rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vlm_r1.data.convert.instances import detection_row, load_instances
from vlm_r1.errors import DataError


def convert_ovdeval(
    inputs: Sequence[Path], *, image_prefix: str | None = None, negatives: bool = True
) -> Iterator[dict[str, Any]]:
    """Detection rows from OVDEval annotation files, one an image that asks for its own labels.

    An image is asked for its positive labels (`text`) and, with `negatives`, its hard negative ones (`neg_text`).
    The subset is the file's name: it is the row's source, and by default the folder before the image's name, as
    the data set is laid out. Raises `DataError` for a wrong file.
    """
    for path in inputs:
        instances = load_instances(path)
        prefix = image_prefix if image_prefix is not None else f"{path.stem}/"
        for image_id, image in instances.images.items():
            asked = [*_labels(image, "text", path), *(_labels(image, "neg_text", path) if negatives else ())]
            found = [
                (item.box, instances.categories[item.category_id])
                for item in instances.by_image[image_id]
                if item.box is not None
            ]
            asked = list(dict.fromkeys((*asked, *(label for _, label in found))))
            if asked:
                image_file = prefix + instances.file_name(image_id)
                row = detection_row(f"{path.stem}-{image_id}", image_file, asked, found, f"ovdeval/{path.stem}")
                yield row


def _labels(image: Any, key: str, path: Path) -> list[str]:
    labels = image.get(key) or []
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise DataError(f"{path}: image {image.get('id')} has {key} = {labels!r}; it is a list of labels")
    return labels
