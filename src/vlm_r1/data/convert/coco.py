"""COCO's instances_*.json becomes detection rows, one an image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from vlm_r1.data.convert.instances import Instance, detection_row, load_instances
from vlm_r1.data.negatives import draw_absent
from vlm_r1.errors import ConfigError

MAX_BOXES = 10
"""The filters' limit, from VLM-R1's description of COCO_filtered."""


def convert_coco(
    inputs: Sequence[Path],
    *,
    filter: Literal["none", "pos_1", "pos_2", "pos_3"] = "none",
    ask: Literal["present", "all"] = "present",
    negatives: Annotated[int, Field(ge=0)] = 0,
    seed: Annotated[int, Field(ge=0)] = 0,
    bare: bool = False,
    image_prefix: str = "",
) -> Iterator[dict[str, Any]]:
    """Detection rows from COCO instances files; crowds are left out.

    `filter` follows VLM-R1 (blog of 2025-03-24): "pos_1" (COCO_filtered) leaves out categories with more than 10
    boxes in the image, "pos_2" images where a category has more than one box, "pos_3" images with more than 10
    boxes. `ask` names the categories that are there, or all of the file (as the paper's evaluation does).
    `negatives` adds 1 to that many absent ones. With `bare` the question is the names alone, for a template of the
    reader's own. Images without a box are left out unless `ask` is "all". Raises
    `DataError` for a wrong file, `ConfigError` for `negatives` with `ask="all"`.
    """
    if negatives and ask == "all":
        raise ConfigError("negatives have no meaning with ask=all, which names every category; leave one out")
    for path in inputs:
        instances = load_instances(path)
        names = sorted(set(instances.categories.values()))
        for image_id, items in instances.by_image.items():
            kept = _filtered([item for item in items if item.box is not None], filter)
            if kept is None or (not kept and ask == "present"):
                continue
            found = [(item.box, instances.categories[item.category_id]) for item in kept if item.box is not None]
            present = sorted({label for _, label in found})
            # Of a category left out by the filter there are boxes in the image: it is neither asked nor absent.
            hidden = {instances.categories[item.category_id] for item in items} - set(present)
            asked = present if ask == "present" else [name for name in names if name not in hidden]
            if negatives:
                rng = np.random.default_rng([seed, 4, abs(image_id)])
                n = int(rng.integers(1, negatives + 1))
                asked = asked + draw_absent((*present, *hidden), (), names, n, rng)
                asked = [asked[int(i)] for i in rng.permutation(len(asked))]
            if asked:
                image = image_prefix + instances.file_name(image_id)
                yield detection_row(f"{path.stem}-{image_id}", image, asked, found, "coco", bare=bare)


def _filtered(items: Sequence[Instance], filter: str) -> list[Instance] | None:
    """The annotations of an image that a filter keeps, or None where it leaves the image out."""
    counts = Counter(item.category_id for item in items)
    if filter == "pos_1":
        return [item for item in items if counts[item.category_id] <= MAX_BOXES]
    if filter == "pos_2" and any(count > 1 for count in counts.values()):
        return None
    if filter == "pos_3" and len(items) > MAX_BOXES:
        return None
    return list(items)
