"""Held-out questions that are also trained on: rows with the same question about images of the same content."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

from vlm_r1.data.negatives import WithNegatives
from vlm_r1.data.scenes import ScenesSequence
from vlm_r1.data.source import LazySamples, Picked
from vlm_r1.records import Sample, SampleImage


def overlap(train: Iterable[Sequence[Sample]], held_out: Mapping[str, Sequence[Sample]]) -> dict[str, int]:
    """Split -> how many of its rows are rows of training data too; splits without any are left out.

    Only images of rows that ask the same question are looked at, and read where their sizes in bytes are the same.
    Generated scenes are compared with each other, by the numbers of their images: a scene counts where its image is
    trained on, whatever is asked about it.
    """
    trained = [_plain(samples) for samples in train]
    splits = {name: _plain(samples) for name, samples in held_out.items()}
    files = {name: samples for name, samples in splits.items() if not _is_generated(samples)}
    found = {name: _shared_scenes(trained, samples) for name, samples in splits.items() if name not in files}
    asked = {question for samples in files.values() for question in _questions(samples)}
    alike: dict[tuple[str, tuple[int, ...]], list[tuple[Sequence[Sample], int]]] = {}
    for samples in trained if asked else ():
        if not _is_generated(samples):
            for index, question in enumerate(_questions(samples)):
                if question in asked:
                    alike.setdefault((question, _sizes(samples[index])), []).append((samples, index))
    questions = {question for question, _ in alike}
    key = cache(lambda path: SampleImage(path=path).key)
    contents: dict[tuple[str, tuple[int, ...]], set[tuple[str, ...]]] = {}
    for name, samples in files.items():
        found[name] = 0
        for index, question in enumerate(_questions(samples)):
            if question in questions and (place := (question, _sizes(samples[index]))) in alike:
                if place not in contents:
                    contents[place] = {_content(rows[i], key) for rows, i in alike[place]}
                found[name] += _content(samples[index], key) in contents[place]
    return {name: found[name] for name in splits if found[name]}


def _sizes(sample: Sample) -> tuple[int, ...]:
    """Bytes of each image as it is stored; -1 for one that was made in memory."""
    return tuple(
        p.path.stat().st_size if p.path is not None else -1 if p.data is None else len(p.data) for p in sample.images
    )


def _content(sample: Sample, key_of: Callable[[Path], str]) -> tuple[str, ...]:
    """A hash of each image; `key_of` hashes a file."""
    return tuple(p.key if p.path is None else key_of(p.path) for p in sample.images)


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
        yield samples.source.split, samples.source.start + index // samples.per_image
