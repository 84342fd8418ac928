"""Held-out questions that are also trained on: rows with the same question about images of the same content."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from vlm_r1.data.negatives import WithNegatives
from vlm_r1.data.scenes import ScenesSequence
from vlm_r1.data.source import LazySamples, Picked
from vlm_r1.records import Picture, Sample

Row = tuple[Sequence[Sample], int]
"""A sequence of samples, and an index in it."""


def overlap(train: Iterable[Sequence[Sample]], held_out: Mapping[str, Sequence[Sample]]) -> dict[str, int]:
    """Split -> how many of its rows are rows of training data too; splits without any are left out.

    Only images of rows that ask the same question are read. Generated scenes are compared with each other, by the
    numbers of their images: a scene counts where its image is trained on, whatever is asked about it.
    """
    trained = [_plain(samples) for samples in train]
    splits = {name: _plain(samples) for name, samples in held_out.items()}
    files = {name: samples for name, samples in splits.items() if not _is_generated(samples)}
    found = {name: _shared_scenes(trained, samples) for name, samples in splits.items() if name not in files}
    asked: dict[str, list[Row]] = {question: [] for samples in files.values() for question in _questions(samples)}
    for samples in trained if asked else ():
        if not _is_generated(samples):
            for index, question in enumerate(_questions(samples)):
                if question in asked:
                    asked[question].append((samples, index))
    content = _Content()
    for name, samples in files.items():
        same = (asked[question] for question in _questions(samples))
        found[name] = sum(content.any_same((samples, i), rows) for i, rows in enumerate(same) if rows)
    return {name: found[name] for name in splits if found[name]}


class _Content:
    """Compares images: by size first, then by a hash of their content, each read once where it is a file."""

    def __init__(self) -> None:
        self._sizes: dict[tuple[int, int], tuple[int, ...]] = {}
        self._keys: dict[tuple[int, int], tuple[str, ...]] = {}
        self._files: dict[str, str] = {}

    def any_same(self, row: Row, others: Sequence[Row]) -> bool:
        """Whether one of the other rows shows the same images."""
        return any(self._size(row) == self._size(other) and self._hash(row) == self._hash(other) for other in others)

    def _size(self, row: Row) -> tuple[int, ...]:
        place = (id(row[0]), row[1])
        if place not in self._sizes:
            self._sizes[place] = tuple(map(_bytes, row[0][row[1]].images))
        return self._sizes[place]

    def _hash(self, row: Row) -> tuple[str, ...]:
        place = (id(row[0]), row[1])
        if place not in self._keys:
            self._keys[place] = tuple(map(self._key, row[0][row[1]].images))
        return self._keys[place]

    def _key(self, picture: Picture) -> str:
        if picture.path is None:
            return picture.key
        name = str(picture.path)
        if name not in self._files:
            self._files[name] = picture.key
        return self._files[name]


def _bytes(picture: Picture) -> int:
    if picture.path is not None:
        return picture.path.stat().st_size
    return len(picture.data) if picture.data is not None else -1


def _plain(samples: Sequence[Sample]) -> Sequence[Sample]:
    """The samples before absent names were added to their questions."""
    return samples.samples if isinstance(samples, WithNegatives) else samples


def _questions(samples: Sequence[Sample]) -> Iterable[str]:
    return samples.questions if isinstance(samples, LazySamples) else (sample.question for sample in samples)


def _is_generated(samples: Sequence[Sample]) -> bool:
    return isinstance(samples.samples if isinstance(samples, Picked) else samples, ScenesSequence)


def _shared_scenes(trained: Sequence[Sequence[Sample]], held_out: Sequence[Sample]) -> int:
    numbers = list(_scenes(held_out))
    wanted, shared = set(numbers), set()
    for samples in trained:
        if _is_generated(samples) and next(_scenes(samples))[0] == numbers[0][0]:
            shared |= wanted.intersection(_scenes(samples))
    return sum(number in shared for number in numbers)


def _scenes(samples: Sequence[Sample]) -> Iterator[tuple[str, int]]:
    """Split and number of the image of each sample."""
    chosen: Iterable[int] = range(len(samples))
    if isinstance(samples, Picked):
        chosen, samples = samples.indices, samples.samples
    assert isinstance(samples, ScenesSequence)
    for index in chosen:
        yield samples.source.split, samples.source.start + index // samples.per_picture
