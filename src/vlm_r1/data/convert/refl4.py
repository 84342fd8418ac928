"""Ref-L4 (arXiv 2406.16866) and its review of RefCOCO, RefCOCO+ and RefCOCOg become grounding rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from vlm_r1.data.convert.instances import clipped, load_json
from vlm_r1.errors import ConfigError, DataError
from vlm_r1.prompts.templates import word_question

_ENDING = "_reviewed"


def convert_refcoco_reviewed(
    inputs: Sequence[Path],
    *,
    rows: Literal["kept", "errors", "all"] = "kept",
    bare: bool = False,
    image_prefix: str = "",
) -> Iterator[dict[str, Any]]:
    """Grounding rows from files such as refcoco+_val_reviewed.json.

    `rows` are those that the review kept, those it found wrong (`caption_quality` 0), or all; each row names its
    `caption_quality`, its data set as `source` and its split. Raises `DataError` for a file in another layout.
    """
    for path in inputs:
        name, _, split = path.stem.removesuffix(_ENDING).rpartition("_")
        if not path.stem.endswith(_ENDING) or not name:
            raise ConfigError(f'refcoco_reviewed: "{path.name}" is not named as published: refcoco+_val_reviewed.json')
        value = load_json(path)
        try:
            images = {int(image["id"]): image for image in value["images"]}
            for annotation in value["annotations"]:
                image = images[int(annotation["image_id"])]
                quality = int(annotation["caption_quality"])
                row = _row(image, annotation["bbox"], bare, image_prefix)
                if row is None or (rows != "all" and (quality > 0) != (rows == "kept")):
                    continue
                ids = {"id": f"{name}-{split}-{int(annotation['id'])}"}
                yield ids | row | {"source": name, "split": split, "caption_quality": quality}
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise DataError(
                f"{path}: not in the layout of Ref-L4's review ({type(error).__name__}: {error}); "
                "give a file of refcocos_annotation_reviewed/ as published"
            ) from None


def convert_ref_l4(
    inputs: Sequence[Path], *, split: str | None = None, bare: bool = False, image_prefix: str = ""
) -> Iterator[dict[str, Any]]:
    """Grounding rows from ref-l4-val.parquet and ref-l4-test.parquet.

    `split` keeps val or test. A row also has its `category` (`ori_category_id`) and whether its expression was
    rewritten. Raises `DataError` for a file in another layout or a split without rows.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    splits: set[str] = set()
    for path in inputs:
        try:
            table = pq.read_table(path).to_pylist()
            for item in table:
                splits.add(str(item["split"]))
                row = _row(item, item["bbox"], bare, image_prefix)
                if row is None or split not in (None, item["split"]):
                    continue
                about = {"category": str(item["ori_category_id"]), "rewritten": bool(item["is_rewrite"])}
                yield {"id": f"ref-l4-{item['id']}"} | row | {"source": "ref_l4", "split": item["split"]} | about
        except (KeyError, TypeError, ValueError, OSError, pa.ArrowException, OverflowError) as error:
            raise DataError(
                f"{path}: not in Ref-L4's layout ({type(error).__name__}: {error}); give ref-l4-val.parquet or "
                "ref-l4-test.parquet as published"
            ) from None
    if split is not None and split not in splits:
        raise DataError(f'ref_l4: no rows of the split "{split}"; the files have {", ".join(sorted(splits)) or "none"}')


def _row(image: Mapping[str, Any], xywh: Sequence[float], bare: bool, image_prefix: str) -> dict[str, Any] | None:
    """What both layouts share: an expression with its image; None where the box has no area inside it."""
    box = clipped(xywh, float(image["width"]), float(image["height"]))
    if box is None:
        return None
    text = str(image["caption"])
    return {
        "image": image_prefix + str(image["file_name"]),
        "problem": text if bare else word_question("rec", text),
        "solution": list(box),
        "task": "rec",
    }
