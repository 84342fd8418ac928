"""The processes of a run, as torchrun starts them: who there is, what they tell each other, and how work is split.

One process is the same code without a process group: every collective then answers at once.
"""

from __future__ import annotations

import heapq
import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from vlm_r1.errors import ConfigError, Stopped, UserError

T = TypeVar("T")
COLLECTIVE_TIMEOUT = timedelta(hours=2)
"""What torch waits for a process in a collective: long, because `distributed.watchdog` ends a run that hangs sooner."""


@dataclass(slots=True, kw_only=True)
class World:
    """This process among those of the run.

    `device` is where it computes. `seconds` adds up the time spent in collectives, those of sharding included;
    `beat` tells the watchdog that this process does something, `waiting` that it is in a collective. `signal` asked
    this process to end; while it `may_stop`, a `beat` does so (`runtime.stopping`).
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    beat: Callable[..., None] = lambda doing="", allow=0.0: None
    waiting: bool = False
    signal: int = 0
    may_stop: bool = False
    _seconds: float = 0.0
    _events: list[tuple[Any, Any]] = field(default_factory=list)

    @property
    def is_main(self) -> bool:
        """Whether this process writes logs and speaks to the terminal."""
        return self.rank == 0

    # -- collectives: every process calls them, in the same order ---------------------------------------------------

    def gather(self, value: T) -> list[T]:
        """The values of all processes in the order of their ranks, on every process; any picklable value."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        with self.timed(on_host=True):
            dist.all_gather_object(found, value)
        return found

    def collect(self, values: Sequence[T]) -> list[T]:
        """The values of all processes, in the order of their ranks, on the main process; empty on the others."""
        if self.size == 1:
            return list(values)
        found: list[Any] | None = [None] * self.size if self.is_main else None
        with self.timed(on_host=True):
            dist.gather_object(list(values), found)
        return [value for part in found or [] for value in part]

    def sum(self, *values: float) -> list[float]:
        """Sums over the processes, in float64."""
        if self.size == 1:
            return [float(v) for v in values]
        total = torch.tensor(values, dtype=torch.float64)
        with self.timed(on_host=True):
            dist.all_reduce(total)
        return total.tolist()

    def maximum(self, *values: float) -> list[float]:
        """Maxima over the processes, in float64."""
        if self.size == 1:
            return [float(v) for v in values]
        largest = torch.tensor(values, dtype=torch.float64)
        with self.timed(on_host=True):
            dist.all_reduce(largest, dist.ReduceOp.MAX)
        return largest.tolist()

    def sum_tensors(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their sums over the processes, in place."""
        if self.size > 1:
            with self.timed():
                for tensor in tensors:
                    dist.all_reduce(tensor)

    def raise_together(self, failure: BaseException | None) -> None:
        """Raise on every process what one of them met (the lowest rank has it), so that none waits in a collective."""
        for found in self.gather(failure):
            if found is not None:
                if isinstance(found, UserError):
                    found.together = True
                raise found

    def barrier(self) -> None:
        """Wait for every process."""
        self.sum(0.0)

    # -- signals ------------------------------------------------------------------------------------------------------

    def stop_if(self, number: int) -> None:
        """Raise `Stopped` for a signal; 0 is none."""
        if number:
            raise Stopped.by(number)

    def asked(self) -> Stopped | None:
        """What `raise_together` takes where a signal asked this process to end."""
        return Stopped.by(self.signal) if self.signal else None

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Within, no process waits for this one, so it may stop; the others must be told of it behind it."""
        before, self.may_stop = self.may_stop, True
        try:
            yield
        finally:
            self.may_stop = before

    # -- work ---------------------------------------------------------------------------------------------------------

    def mine(self, items: Sequence[T], costs: Sequence[float], loads: Sequence[float] | None = None) -> list[T]:
        """The items that fall to this process, in order; see `owners`."""
        return [item for item, owner in zip(items, owners(costs, self.size, loads), strict=True) if owner == self.rank]

    # -- time ---------------------------------------------------------------------------------------------------------

    @contextmanager
    def timed(self, *, on_host: bool = False) -> Iterator[None]:
        """What happens within is a collective: on a GPU its time is that of the stream it runs on."""
        self.waiting = True
        if self.device.type == "cuda" and not on_host:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            yield
            end.record()
            self._events.append((start, end))
        else:
            started = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - started
        self.waiting = False

    def take_seconds(self) -> float:
        """Seconds spent in collectives since the last call."""
        if self._events:
            torch.cuda.synchronize(self.device)
            self._seconds += sum(start.elapsed_time(end) for start, end in self._events) / 1000
            self._events.clear()
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    def mesh(self, shard_size: int | None) -> DeviceMesh:
        """The processes as a row, or as `replicate x shard` where the weights lie on `shard_size` processes each.

        Raises `ConfigError` where the processes cannot be divided so.
        """
        if not dist.is_initialized():  # one process, sharded by one: for its mixed precision
            dist.init_process_group(_backend(), store=dist.HashStore(), rank=0, world_size=1)
        shard = shard_size or self.size
        if self.size % shard:
            raise ConfigError(f"run.shard_size: {self.size} processes cannot be divided into groups of {shard}")
        kind = self.device.type
        if shard == self.size:
            return init_device_mesh(kind, (shard,), mesh_dim_names=("shard",))
        return init_device_mesh(kind, (self.size // shard, shard), mesh_dim_names=("replicate", "shard"))


ALONE = World()


def owners(costs: Sequence[float], size: int, loads: Sequence[float] | None = None) -> list[int]:
    """The process for each item: the costliest first, each to the one with the least to do (then the lowest rank).

    `loads` is what the processes have already. The same on every process.

    >>> owners([3, 1, 2, 2], 2)
    [0, 0, 1, 1]
    """
    heap = [(load, rank) for rank, load in enumerate(loads or [0.0] * size)]
    heapq.heapify(heap)
    found = [0] * len(costs)
    for item in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        load, rank = heapq.heappop(heap)
        found[item] = rank
        heapq.heappush(heap, (load + costs[item], rank))
    return found


def start() -> World:
    """Join the processes that torchrun started (RANK, WORLD_SIZE, ...), or be alone."""
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = local_device(local_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    size = int(os.environ.get("WORLD_SIZE", "1"))
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    if size > 1 and not dist.is_initialized():
        store = _fresh_store(rank, size)
        dist.init_process_group(_backend(), store=store, rank=rank, world_size=size, timeout=COLLECTIVE_TIMEOUT)
    return World(rank=rank, size=size, local_rank=local_rank, local_size=local_size, device=device)


def connect(*, is_master: bool = False) -> dist.TCPStore:
    """A connection of one's own to the store at MASTER_ADDR and MASTER_PORT."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return dist.TCPStore(address, port, is_master=is_master, wait_for_workers=False, timeout=timedelta(seconds=60))


def _fresh_store(rank: int, size: int) -> dist.Store:
    """A store that holds nothing of an earlier attempt.

    torchrun keeps one store over its restarts, in which a process would find the addresses of processes that are gone.
    Rank 0 makes up a name that all go by. Each asks for it with an id of its own that nobody had before, so that no
    answer can be an old one.
    """
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = connect(is_master=rank == 0 and not agent)
    own = uuid.uuid4().hex
    if rank:
        store.set(f"hello/{rank}", own)
        name = store.get(f"welcome/{own}").decode()
        store.set(f"{name}/here/{rank}", "")
    else:
        name, missing = own, set(range(1, size))
        while missing:
            for other in missing:
                if store.check([f"hello/{other}"]):
                    store.set(f"welcome/{store.get(f'hello/{other}').decode()}", name)
            missing = {other for other in missing if not store.check([f"{name}/here/{other}"])}
            time.sleep(0.02)
    return dist.PrefixStore(name, store)


def stop() -> None:
    """Leave the process group, where there is one; a process does so once, at its end."""
    if dist.is_initialized():
        dist.destroy_process_group()


def local_device(local_rank: int | None = None) -> torch.device:
    """The device of this process: a GPU where there is one."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) if local_rank is None else local_rank)


def _backend() -> str:
    """Objects and numbers travel over gloo, tensors on GPUs over NCCL."""
    return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
