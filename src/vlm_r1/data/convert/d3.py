"""D3 (Description Detection Dataset) becomes detection rows: what is described, and what is not there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from vlm_r1.data.convert.instances import detection_row, load_instances
from vlm_r1.data.convert.plain_pickle import load_plain_pickle
from vlm_r1.data.negatives import draw_absent
from vlm_r1.errors import ConfigError, DataError


def convert_d3(
    inputs: Sequence[Path],
    *,
    negatives: Annotated[int, Field(ge=0)] = 3,
    seed: Annotated[int, Field(ge=0)] = 0,
    image_prefix: str = "",
) -> Iterator[dict[str, Any]]:
    """Detection rows from a d3_*_annotations.json, one an image.

    An image is asked for the descriptions that are true of something in it and for 1 to `negatives` that are not
    (VLM-R1 trains so; 0 adds none). Every description is annotated on every image, so any other one is absent.
    With images.pkl and groups.pkl among the inputs, absent ones come from the image's own group, which are harder.
    Raises `DataError` for a wrong file, `ConfigError` for a wrong set of inputs.
    """
    files = {path.name: path for path in inputs}
    annotations = [path for path in inputs if path.suffix == ".json"]
    pickles = {name: path for name, path in files.items() if name in ("images.pkl", "groups.pkl")}
    if len(annotations) != 1 or len(pickles) not in (0, 2) or len(inputs) != 1 + len(pickles):
        raise ConfigError("d3 takes one d3_*_annotations.json, alone or with images.pkl and groups.pkl")
    instances = load_instances(annotations[0])
    groups = _group_sentences(pickles["images.pkl"], pickles["groups.pkl"]) if pickles else {}
    names = sorted(set(instances.categories.values()))
    for image_id, items in instances.by_image.items():
        found = [(item.box, instances.categories[item.category_id]) for item in items if item.box is not None]
        asked = sorted({label for _, label in found})
        if negatives:
            rng = np.random.default_rng([seed, 3, abs(image_id)])
            pool = names
            if groups:
                ids = groups.get(image_id, [])
                pool = sorted({instances.categories[i] for i in ids if i in instances.categories})
            asked = asked + draw_absent(asked, (), pool, int(rng.integers(1, negatives + 1)), rng)
            asked = [asked[int(i)] for i in rng.permutation(len(asked))]
        if asked:
            image = image_prefix + instances.file_name(image_id)
            yield detection_row(f"d3-{image_id}", image, asked, found, "d3")


def _group_sentences(images_file: Path, groups_file: Path) -> dict[int, list[int]]:
    """Image id -> ids of the descriptions of its group."""
    images, groups = load_plain_pickle(images_file), load_plain_pickle(groups_file)
    try:
        return {int(key): [int(i) for i in _group(groups, image)] for key, image in images.items()}
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DataError(
            f"{images_file}, {groups_file}: not D3's layout ({type(error).__name__}: {error}); "
            "give images.pkl and groups.pkl as published"
        ) from None


def _group(groups: Mapping[int, Mapping[str, Any]], image: Mapping[str, Any]) -> Sequence[int]:
    return groups[image["group_id"]]["inner_sent_id"]
