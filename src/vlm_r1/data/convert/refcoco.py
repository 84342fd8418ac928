"""RefCOCO, RefCOCO+ and RefCOCOg (refs(...).p and instances.json) become grounding rows, one a sentence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vlm_r1.data.convert.instances import load_instances
from vlm_r1.data.convert.plain_pickle import load_plain_pickle
from vlm_r1.errors import ConfigError, DataError
from vlm_r1.prompts.templates import word_question


def convert_refcoco(
    inputs: Sequence[Path], *, split: str | None = None, bare: bool = False, image_prefix: str = ""
) -> Iterator[dict[str, Any]]:
    """Grounding rows from a refs pickle and its instances.json, given in any order.

    `split` keeps one of train, val, test, testA, testB (default: all; each row names its own). With `bare` the
    question is the sentence alone. Raises `DataError` for a wrong file or a split without rows.
    """
    pickles = [path for path in inputs if path.suffix in (".p", ".pkl", ".pickle")]
    instances_files = [path for path in inputs if path.suffix == ".json"]
    if len(pickles) != 1 or len(instances_files) != 1:
        raise ConfigError("refcoco takes two inputs: the refs file (refs(unc).p) and instances.json")
    instances = load_instances(instances_files[0], crowds=True)
    by_id = {item.id: item for items in instances.by_image.values() for item in items}
    splits: set[str] = set()
    rows = 0
    for number, ref in enumerate(_refs(pickles[0])):
        try:
            ref_id, ref_split = ref["ref_id"], str(ref["split"])
            annotation = by_id[int(ref["ann_id"])]
            sentences = [(sentence["sent_id"], str(sentence["sent"])) for sentence in ref["sentences"]]
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise DataError(
                f"{pickles[0]}: entry {number} is not a reference of {instances_files[0]} "
                f"({type(error).__name__}: {error}); give the two files of the same data set"
            ) from None
        splits.add(ref_split)
        if annotation.box is None or (split is not None and ref_split != split):
            continue
        for sentence_id, text in sentences:
            rows += 1
            yield {
                "id": f"{ref_id}-{sentence_id}",
                "image": image_prefix + instances.file_name(annotation.image_id),
                "problem": text if bare else word_question("rec", text),
                "solution": list(annotation.box),
                "task": "rec",
                "source": "refcoco",
                "split": ref_split,
            }
    if not rows:
        raise DataError(f'{pickles[0]}: no rows of the split "{split}"; it has {", ".join(sorted(splits)) or "none"}')


def _refs(path: Path) -> list[Any]:
    refs = load_plain_pickle(path)
    if not isinstance(refs, list) or not refs:
        raise DataError(f"{path}: holds no list of references; give the refs file as published")
    return refs
