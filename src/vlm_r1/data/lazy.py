"""Samples that are made when asked for."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import overload

from vlm_r1.records import Sample


class SampleSequence(Sequence[Sample]):
    """A sequence of which a subclass says how many there are (`__len__`) and which is at an index (`at`)."""

    @abstractmethod
    def at(self, index: int) -> Sample:
        """The sample at an index as given, so possibly negative. Raises `IndexError` where there is none."""

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self.at(i) for i in range(*index.indices(len(self)))]
        return self.at(index)
