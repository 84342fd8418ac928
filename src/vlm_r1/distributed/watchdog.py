"""A rank that hangs ends the job, and is named: without this the others would wait for it in a collective for hours.

Each process counts the things it does (`beat`: a token, a row, a reward). A thread of each writes the count where all
can read it; where one count stands still for too long, the process of the lowest rank that still works says whose, and
ends. torchrun then stops the others, and starts all again where it was told to.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
import uuid
from datetime import timedelta

import torch.distributed as dist

from vlm_r1.distributed.processes import World, connect

HUNG = 75
"""Exit code of a process that ended the run because another one hangs."""
GIVE_UP = timedelta(seconds=20)
"""How long the store may take to answer: where it is gone, so is the process that kept it."""


class Watchdog:
    """`with Watchdog(world, 100): ...`; within, `world.beat()` or `world.beat("what it does", seconds it may take)`."""

    def __init__(self, world: World, timeout_s: float) -> None:
        self.world, self.timeout_s = world, timeout_s
        self.count, self.doing, self.allow = 0, "starting", 0.0
        self._end = threading.Event()
        self._thread: threading.Thread | None = None
        self._main = threading.get_ident()

    def __enter__(self) -> Watchdog:
        self._main = threading.get_ident()
        if self.world.size > 1:
            attempt = self.world.gather(uuid.uuid4().hex)[0]  # the store may hold what an earlier attempt wrote
            self.store = dist.PrefixStore(attempt, connect())
            self.store.set_timeout(GIVE_UP)
            self.world.beat = self._beat
            self._thread = threading.Thread(target=self._watch, daemon=True, name="watchdog")
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self.world.beat = lambda doing="", allow=0.0: None

    def _beat(self, doing: str = "", allow: float = 0.0) -> None:
        if threading.get_ident() != self._main:
            return  # what works beside the main thread must not hide that it hangs
        self.count += 1
        self.allow = allow
        if doing:
            self.doing = doing

    def _watch(self) -> None:
        seen: dict[int, tuple[str, float]] = {}
        pause = min(5.0, self.timeout_s / 4)
        while not self._end.wait(pause):
            try:
                self._publish()
                late = self._late(seen)
            except (RuntimeError, dist.DistError):
                return  # the store is gone: torchrun is already ending the run
            if late and not self._end.is_set():
                self._abort(*late)

    def _publish(self) -> None:
        told = f"{self.count} {int(self.world.waiting)} {self.allow} {socket.gethostname()} {os.getpid()} {self.doing}"
        self.store.set(str(self.world.rank), told)

    def _late(self, seen: dict[int, tuple[str, float]]) -> tuple[int, str, float] | None:
        """The rank that did nothing for longest, where that is too long, what it says of itself, and since when."""
        now = time.monotonic()
        for rank in range(self.world.size):
            told = self.store.get(str(rank)).decode() if self.store.check([str(rank)]) else "0 0 0 ? ? starting"
            if rank not in seen or seen[rank][0] != told:
                seen[rank] = (told, now)
        if self._waiting(seen):
            return None
        rank = min(seen, key=lambda r: (seen[r][0].split(" ")[1], seen[r][1]))  # who waits is not to blame
        told, since = seen[rank]
        return (rank, told, now - since) if now - since > self.timeout_s else None

    def _waiting(self, seen: dict[int, tuple[str, float]]) -> bool:
        """Whether some rank is at something that may take longer."""
        now = time.monotonic()
        return any(now - since <= float(told.split(" ")[2]) for told, since in seen.values())

    def _abort(self, rank: int, told: str, seconds: float) -> None:
        _, _, _, host, pid, doing = told.split(" ", 5)
        if self.store.add("told", 1) == 1:
            print(
                f"error: rank {rank} (process {pid} on {host}) has done nothing for {seconds:.0f} s, in: {doing}. "
                "The others wait for it, so the run ends here; it continues from its last checkpoint. "
                "If that work takes so long, set run.hang_timeout_s higher",
                file=sys.stderr,
                flush=True,
            )
        os._exit(HUNG)
