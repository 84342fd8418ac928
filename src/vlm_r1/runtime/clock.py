"""Seconds of the phases of a step, and the GPU memory it takes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from vlm_r1.distributed.processes import World
from vlm_r1.runtime.tally import Tally, maxima


class Clock:
    """Seconds of the phases of a step: `with clock("rollout"): ...` adds to `time/rollout_s`; and its peak memory."""

    def __init__(self, world: World) -> None:
        self.world, self.started = world, time.perf_counter()
        self.seconds: dict[str, float] = {}
        world.take_seconds()
        if world.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(world.device)

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Time what is within."""
        self.world.beat(phase)
        started = time.perf_counter()
        yield
        name = f"time/{phase}_s"
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

    def tally(self) -> Tally:
        """The seconds of the slowest process, of the whole step too; with several, those spent in collectives.

        On GPUs also `perf/peak_memory_gb`: what tensors took at most on one of them, in 2^30 bytes.
        """
        seconds = self.seconds | {"time/step_s": time.perf_counter() - self.started}
        if self.world.size > 1:
            seconds["time/collectives_s"] = self.world.take_seconds()
        tally = maxima(seconds)
        if self.world.device.type == "cuda":
            tally.maximum("perf/peak_memory_gb", torch.cuda.max_memory_allocated(self.world.device) / 2**30)
        return tally
