"""Samples of one image as one prefix group: the image once for all its questions and answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

from vlm_r1.envs.host import Host
from vlm_r1.models.family import Family
from vlm_r1.models.packing import PrefixGroup, make_prefix_group
from vlm_r1.records import Sample
from vlm_r1.sft.targets import scripted


class ByImage(Sequence[tuple[Sample, ...]]):
    """A sequence of samples seen as one of images: neighbours that show the same images go together."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = samples
        self._stride = getattr(samples, "per_image", None)
        self._starts: list[int] = []
        if self._stride is None:
            last = None
            for i, sample in enumerate(samples):
                shown = tuple(p.path or id(p) for p in sample.images)
                if shown != last or not shown:
                    self._starts.append(i)
                last = shown

    def __len__(self) -> int:
        return len(self.samples) // self._stride if self._stride else len(self._starts)

    @overload
    def __getitem__(self, index: int) -> tuple[Sample, ...]: ...
    @overload
    def __getitem__(self, index: slice) -> list[tuple[Sample, ...]]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        if self._stride:
            start, stop = index * self._stride, (index + 1) * self._stride
        else:
            start, stop = self._starts[index], [*self._starts, len(self.samples)][index + 1]
        return tuple(self.samples[i] for i in range(start, stop))


def make_prefix_groups(
    samples: Sequence[Sample], family: Family, thought: float = 1.0, host: Host | None = None
) -> list[PrefixGroup]:
    """Samples that show the same images as one prefix group; where questions cannot share an image, a prefix group
    each.

    `thought` is the share of targets that hold the sample's thought; `host` answers the calls that they script.
    """
    if family.shares_images:
        return [image_group(samples, family, thought, host)]
    return [image_group((sample,), family, thought, host) for sample in samples]


def image_group(
    samples: Sequence[Sample], family: Family, thought: float = 1.0, host: Host | None = None
) -> PrefixGroup:
    """The prefix group of samples that show the same images; answers are scored, questions are context.

    Where the question changes what the image's tokens see, the prefix is the whole prompt of one sample.
    """
    first = family.encode(samples[0])
    prompts = [first, *(family.encode(sample) for sample in samples[1:])]
    shared = _common_prefix([p.token_ids for p in prompts]) if family.shares_images else len(first.token_ids)
    targets = [scripted(prompt, family, host, thought) for prompt in prompts]
    return make_prefix_group(prompts, [ids for ids, _ in targets], shared, [turns for _, turns in targets])


def _common_prefix(rows: Sequence[tuple[int, ...]]) -> int:
    """Length of the longest common prefix that leaves every row at least one token."""
    shortest = min(len(row) for row in rows) - 1
    for i in range(shortest):
        if any(row[i] != rows[0][i] for row in rows):
            return i
    return shortest
