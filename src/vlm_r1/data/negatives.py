"""Absent descriptions added to detection questions, so that "not there" is learned too (VLM-R1 adds 1 to 3)."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence

import numpy as np

from vlm_r1.data.lazy import SampleSequence
from vlm_r1.errors import DataError
from vlm_r1.prompts.templates import TASKS
from vlm_r1.records import Sample, SampleImage

_ASKED = re.compile(
    re.escape(TASKS["ovd"].question).replace(re.escape("{question}"), r"(?P<asked>[^\[\]{}]+?)") + r"$|"
    r"^(?:detect|find)\s+(?P<bare>[^.\[\]{}]+)\.?$",
    re.IGNORECASE,
)


def draw_absent(
    present: Iterable[str], asked: Iterable[str], pool: Sequence[str], n: int, rng: np.random.Generator
) -> list[str]:
    """Up to `n` names of the sorted `pool` that are neither in the image nor asked for, compared without case."""
    taken = {name.casefold().strip() for name in (*present, *asked)}
    free = [name for name in pool if name.casefold().strip() not in taken]
    picked = rng.permutation(len(free))[:n]
    return [free[int(index)] for index in picked]


def asked_names(sample: Sample) -> list[str]:
    """The names a detection question asks for: its `categories` column, else read from the known wordings.

    Raises `DataError` where neither gives them.
    """
    names = sample.columns.get("categories")
    if isinstance(names, (list, tuple)) and names and all(isinstance(name, str) for name in names):
        return list(names)
    match = _ASKED.search(sample.question)
    if match is None:
        raise DataError(
            f"sample {sample.id}: negatives cannot be added, as the names it asks for are unknown; "
            'add "categories": ["...", ...] to the row, or set negatives to 0'
        )
    return [name.strip() for name in (match["asked"] or match["bare"]).split(",") if name.strip()]


class WithNegatives(SampleSequence):
    """Samples whose detection questions also ask for `n` names that are not in the image.

    The names come from the labels of the other samples, and from none that is true of the same image in any of
    them; which, and where in the question, the seed decides. Added names are kept in the column `negatives`. Samples
    of other tasks are left as they are. Raises `DataError` where a question's names cannot be found.
    """

    def __init__(self, samples: Sequence[Sample], n: int, seed: int) -> None:
        self.samples, self._n, self._seed = samples, n, seed
        self._present: dict[str, set[str]] = {}
        pool: set[str] = set()
        for sample in samples:
            if sample.task == "ovd":
                _asked_text(sample)
                labels = {item.label for item in sample.truth.boxes or () if item.label}
                pool |= labels
                for image in sample.images:
                    self._present.setdefault(_image_key(image), set()).update(labels)
        if not pool:
            raise DataError("negatives were asked for, but no sample is a detection question with labels; set it to 0")
        self._pool = sorted(pool)

    def __len__(self) -> int:
        return len(self.samples)

    def at(self, index: int) -> Sample:
        """The sample at an index, its question extended where it asks for detection."""
        sample = self.samples[index]
        if sample.task != "ovd":
            return sample
        asked = asked_names(sample)
        present = [name for image in sample.images for name in self._present[_image_key(image)]]
        rng = np.random.default_rng([self._seed, 2, index % len(self)])
        added = draw_absent(present, asked, self._pool, self._n, rng)
        names = asked + added
        joined = ", ".join(names[int(i)] for i in rng.permutation(len(names)))
        question = sample.question.replace(_asked_text(sample), joined, 1)
        return dataclasses.replace(sample, question=question, columns={**sample.columns, "negatives": added})


def _asked_text(sample: Sample) -> str:
    """The part of the question that lists the names. Raises `DataError` where it is not there."""
    text = ", ".join(asked_names(sample))
    if text not in sample.question:
        raise DataError(
            f'sample {sample.id}: its question does not hold its categories as "{text}"; '
            "write them so, or set negatives to 0"
        )
    return text


def _image_key(image: SampleImage) -> str:
    return str(image.path) if image.path is not None else image.key
