"""A vLLM server as a process of this one: started, watched, killed and started again; it never outlives its parent."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from vlm_r1.errors import EngineError
from vlm_r1.rollout.vllm_client import Server
from vlm_r1.rollout.vllm_launch import Launch, command

GUARD = Path(__file__).with_name("vllm_guard.py")
POLL_S = 0.2
START_S = 900.0
"""Seconds a server may take to start: a large model is read from a slow disk, and its kernels are compiled."""
AGAIN, AGAIN_S = 4.0, 60.0
"""A server that started before may take so many times as long, and so many seconds more."""
END_S = 10.0
"""Seconds for killed processes to be gone."""
LOG_LINES, LOG_BYTES = 25, 16384
"""Of a log in a message; the bytes are what these lines are looked for in."""
TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC_")
"""How variables begin that make a process one of a training job."""


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nothing listens on at the moment."""
    with socket.create_server((host, 0)) as listener:
        return int(listener.getsockname()[1])


class ServerProcess:
    """A server and all processes it starts, in a process group of their own.

    What it prints is added to the file `log`, or printed where there is none.
    It ends with the process that started it, however that one ends. `url` and `secret` are what a client needs.
    """

    def __init__(self, launch: Launch, python: str, log: Path | None = None) -> None:
        self.launch, self.python, self.log = launch, python, log
        self.url, self.secret = launch.url, launch.secret
        self._guard: subprocess.Popen[bytes] | None = None
        self._took: float | None = None

    def start(self) -> None:
        """Start it and return at once. Raises `EngineError` where its port is taken."""
        self._check_port()
        argv, variables = command(self.launch, self.python)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(TORCHRUN)}
        with ExitStack() as stack:
            log = None
            if self.log is not None:
                self.log.parent.mkdir(parents=True, exist_ok=True)
                log = stack.enter_context(self.log.open("ab"))
            self._guard = subprocess.Popen(
                [sys.executable, "-I", "-S", str(GUARD), str(os.getpid()), *argv],
                env=inherited | variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait_ready(self, beat: Callable[[], object] = lambda: None, timeout_s: float | None = None) -> None:
        """Return when it answers; calls `beat` meanwhile.

        Raises `EngineError`, with the end of its log, where it ends before or takes longer than `timeout_s`; by default
        that is 15 minutes, and later several times what its first start took: one that hangs is not waited for so long.
        """
        started = time.monotonic()
        if timeout_s is None:
            timeout_s = START_S if self._took is None else min(START_S, AGAIN_S + AGAIN * self._took)
        end = started + timeout_s
        while not self.healthy():
            beat()
            if not self.alive():
                raise EngineError(f"the vLLM server at {self.url} ended while it started. {self.last_lines()}")
            if time.monotonic() > end:
                self.kill()
                raise EngineError(
                    f"the vLLM server at {self.url} was not ready after {timeout_s:.0f} s. {self.last_lines()}"
                )
            time.sleep(POLL_S)
        self._took = self._took or time.monotonic() - started

    def healthy(self, timeout_s: float = 5.0) -> bool:
        """Whether it says that it can answer."""
        address = urlsplit(self.url)
        connection = HTTPConnection(str(address.hostname), address.port, timeout=timeout_s)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except (OSError, HTTPException):
            return False
        finally:
            connection.close()

    def alive(self) -> bool:
        """Whether its processes run, which says nothing about whether they answer."""
        # Looked at without taking the exit code: until `kill` does, no other process can get the group's number.
        look, guard = os.WEXITED | os.WNOHANG | os.WNOWAIT, self._guard
        try:
            return guard is not None and os.waitid(os.P_PID, guard.pid, look) is None
        except ChildProcessError:  # another thread killed it in between
            return False

    def kill(self) -> None:
        """End it and all it started, at once; returns when they are gone. Nothing happens where it does not run."""
        guard, self._guard = self._guard, None
        if guard is None:
            return
        group, end = guard.pid, time.monotonic() + END_S
        while _runs(group) and time.monotonic() < end:
            with suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
            time.sleep(0.02)
        guard.wait()

    def restart(self) -> None:
        """Kill it where it runs, and start it again with the same address; it has the weights of its model folder."""
        self.kill()
        self.start()

    def last_lines(self) -> str:
        """The end of its log, for a message."""
        if self.log is None:
            return "What it printed is above"
        try:
            size = self.log.stat().st_size
            with self.log.open("rb") as file:
                file.seek(max(0, size - LOG_BYTES))
                lines = file.read().decode(errors="replace").splitlines()[-LOG_LINES:]
        except FileNotFoundError:
            lines = []
        said = "\n".join(f"  {line}" for line in lines)
        return f"The end of its log ({self.log}):\n{said}" if said else f"Its log ({self.log}) is empty"

    def _check_port(self) -> None:
        """vLLM shares a port that is taken instead of refusing it; two servers would answer in turn."""
        try:
            socket.create_server((self.launch.host, self.launch.port), family=_family(self.launch.host)).close()
        except OSError as error:
            raise EngineError(
                f"{self.launch.host}:{self.launch.port} cannot be listened on ({error.strerror}); choose another port"
            ) from None


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _runs(group: int) -> bool:
    """Whether a process of a group runs or still gives back what it holds: its first thread may end before others."""
    if not Path("/proc/self/stat").exists():
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return False
        return True
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        state, of, threads = fields[0], int(fields[2]), int(fields[17])
        if of == group and (state not in "ZX" or threads > 1):
            return True
    return False


@dataclass(slots=True)
class Seat:
    """A server as this process sees it.

    `driven` says that this process sends it weights, and `process` is it where the run started it. `why` it was left
    out last; `asking` are the requests that are with it.
    """

    server: Server
    driven: bool
    process: ServerProcess | None = None
    usable: bool = True
    why: str = ""
    asking: set[asyncio.Task[Any]] = field(default_factory=set)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
