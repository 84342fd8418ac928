"""An endless, resumable stream of samples from weighted sources."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import numpy as np

from vlm_r1.errors import CheckpointError, DataError

Item = TypeVar("Item")


class SampleStream(Generic[Item]):
    """Samples in an order that the seed decides, forever.

    Each draw picks a source by weight, then that source's next sample; a source is shuffled anew each epoch and
    every sample comes once before one comes twice. The state is a few numbers a source: orders are made again from
    the seed. Raises `DataError` where there is no source, or one is empty.

    An item is a sample, or whatever else the sources hold (all samples of an image).

    Example: `SampleStream([(3.0, rec), (1.0, ovd)], seed=0).take(16)`.
    """

    def __init__(self, sources: Sequence[tuple[float, Sequence[Item]]], seed: int) -> None:
        if not sources:
            raise DataError("there is nothing to train on; name at least one source under data.train")
        for number, (weight, samples) in enumerate(sources, start=1):
            if len(samples) == 0:
                raise DataError(f"source {number} of data.train has no samples; remove it or correct its path")
            if not weight > 0:
                raise DataError(f"source {number} of data.train has weight {weight}; weights must be above 0")
        self._samples = [samples for _, samples in sources]
        weights = np.array([weight for weight, _ in sources], dtype=np.float64)
        self._cumulative = np.cumsum(weights / weights.sum())
        self._seed = seed
        self._drawn = 0
        self._positions = [0] * len(sources)
        self._orders: dict[int, tuple[int, np.ndarray]] = {}

    def take(self, n: int) -> list[Item]:
        """The next `n` samples."""
        return [self._next() for _ in range(n)]

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands: plain numbers that JSON can hold.

        `positions` counts the samples drawn from each source since the start, over all epochs.
        """
        sizes = [len(samples) for samples in self._samples]
        return {"seed": self._seed, "drawn": self._drawn, "positions": list(self._positions), "sizes": sizes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state` was taken.

        Raises `CheckpointError` where it comes from another seed or from sources of other sizes.
        """
        for key, have in (("seed", self._seed), ("sizes", [len(samples) for samples in self._samples])):
            if state.get(key) != have:
                raise CheckpointError(
                    f"the checkpoint's data {key} is {state.get(key)} and this run's is {have}; "
                    "continue with the data and seed it was made with, or start in a new run folder"
                )
        self._drawn = int(state["drawn"])
        self._positions = [int(position) for position in state["positions"]]

    def _next(self) -> Item:
        source = 0
        if len(self._samples) > 1:
            # A generator for each draw makes the choice a function of the draw's number: no generator state to keep.
            u = np.random.default_rng([self._seed, 0, self._drawn]).uniform()
            source = min(int(np.searchsorted(self._cumulative, u, side="right")), len(self._samples) - 1)
        samples = self._samples[source]
        epoch, place = divmod(self._positions[source], len(samples))
        index = int(self._order(source, epoch)[place])
        self._drawn += 1
        self._positions[source] += 1
        return samples[index]

    def _order(self, source: int, epoch: int) -> np.ndarray:
        cached = self._orders.get(source)
        if cached is None or cached[0] != epoch:
            order = np.random.default_rng([self._seed, 1, source, epoch]).permutation(len(self._samples[source]))
            self._orders[source] = (epoch, order)
        return self._orders[source][1]
