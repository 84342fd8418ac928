"""The next batch is ready when its step begins: a thread reads and prepares it while the step before runs.

On a CPU that needs a core that the step leaves free.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Generic, TypeVar

import torch

from vlm_r1.data.mixture import SampleStream
from vlm_r1.distributed.processes import World

Item = TypeVar("Item")
Ready = TypeVar("Ready")


class Prefetcher(Generic[Item, Ready]):
    """Batches of a stream, dealt to the processes and prepared, at most one of them ahead.

    One thread draws, deals and prepares all items, whether they were asked for ahead or not, so that their order is the
    stream's. It runs no collective: those of two threads would meet each other's on other processes. `cost` is about
    how many tokens an item has, without decoding its images.

    Example: `with Prefetcher(stream, world, family.expected_tokens, family.encode) as batches: batches.take(16)`.
    """

    def __init__(
        self,
        stream: SampleStream[Item],
        world: World,
        cost: Callable[[Item], float],
        prepare: Callable[[Item], Ready],
    ) -> None:
        self.stream, self.world, self.cost, self.prepare = stream, world, cost, prepare
        self.ahead = world.device.type == "cuda" or spare_core(world)
        self._thread: Executor = ThreadPoolExecutor(1, "prefetch") if self.ahead else _Inline()
        self._pending: Future[list[tuple[int, Future[Ready]]]] | None = None
        self._before: dict[str, Any] = {}

    def __enter__(self) -> Prefetcher[Item, Ready]:
        # Threads of its own inside an operator would compete with those of the step. torch's setting is the calling
        # thread's, and the default of threads that have none.
        threads = torch.get_num_threads()
        if self.ahead:
            self._thread.submit(self._enter_thread).result()
            torch.set_num_threads(threads)
        return self

    def __exit__(self, *error: object) -> None:
        self._thread.shutdown(cancel_futures=True)

    def prefetch(self, count: int) -> None:
        """Start on the next `count` items, which the next `take` asks for; nothing where no core is to spare.

        An operator waits for the slowest of its threads, so one that shares its core with this one holds up all.
        """
        if self.ahead:
            self._ask(count, 0, None)

    def take(self, count: int, first: int = 0, loads: list[float] | None = None) -> list[tuple[int, Ready]]:
        """The items of this process of the next `count`, each with its number, which counts from `first`.

        Whole items are dealt, so that all processes have about as many tokens; `loads` is what each has already. An
        item's number does not depend on the processes. Raises what reading or preparing one of them raised.
        """
        if self._pending is None:
            self._ask(count, first, loads)
        assert self._pending is not None
        ready = []
        for number, item in self._pending.result():
            self.world.beat("reading samples")
            ready.append((number, item.result()))
        self._pending = None
        return ready

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands behind what was taken; what was only prefetched will be drawn again."""
        return self.stream.state_dict() if self._pending is None else self._before

    def _enter_thread(self) -> None:
        torch.get_num_threads()  # a thread that has not asked takes over the default at its first operator
        torch.set_num_threads(1)
        if self.world.device.type == "cuda":
            torch.cuda.set_device(self.world.device)

    def _ask(self, count: int, first: int, loads: list[float] | None) -> None:
        self._before = self.stream.state_dict()
        self._pending = self._thread.submit(self._read, count, first, loads)

    def _read(self, count: int, first: int, loads: list[float] | None) -> list[tuple[int, Future[Ready]]]:
        """Draw and deal, and queue what falls to this process: the thread goes on with it item by item."""
        numbered = list(enumerate(self.stream.take(count), start=first))
        if self.world.size > 1:
            numbered = self.world.mine(numbered, [self.cost(item) for _, item in numbered], loads)
        return [(number, self._thread.submit(self.prepare, item)) for number, item in numbered]


class _Inline(Executor):
    """Does what is submitted when its result is asked for, in the thread that asks."""

    def submit(self, work: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return _Later(partial(work, *args, **kwargs))


class _Later(Future[Any]):
    def __init__(self, work: Callable[[], Any]) -> None:
        super().__init__()
        self.work = work

    def result(self, timeout: float | None = None) -> Any:
        if not self.done():
            try:
                self.set_result(self.work())
            except Exception as error:  # raised again by whoever asks again
                self.set_exception(error)
        return super().result(timeout)


def spare_core(world: World) -> bool:
    """Whether the processes of this machine leave a core without a thread of an operator."""
    return len(os.sched_getaffinity(0)) > world.local_size * torch.get_num_threads()
