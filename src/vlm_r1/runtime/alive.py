"""Which process writes a run folder (`process.json`), whether it is still there, and that no second one does."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vlm_r1.errors import CheckpointError
from vlm_r1.files import is_running
from vlm_r1.runtime.runlog import Writing, read_json, write_atomically

FILE = "process.json"
LOCK = "process.lock"


class Lock:
    """The right to write a run folder. One process of all machines has it; the kernel takes it back when that one ends.

    A POSIX record lock: network file systems know it too, and a child that outlives a killed process does not hold it.
    Nothing else in the process may open the file, since closing it there gives the lock back.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self._handle: int | None = None

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *error: object) -> None:
        if self._handle is not None:
            os.close(self._handle)

    def take(self) -> bool:
        """Take it, if there is a folder; whether it was taken just now.

        Raises `CheckpointError` where another process has it. Where the file system knows no locks, the process
        that signed the folder counts, if it runs on this machine.
        """
        if self._handle is not None or not self.run_dir.is_dir():
            return False
        with Writing(self.run_dir / LOCK):
            handle = os.open(self.run_dir / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN) or is_alive(self.run_dir):
                os.close(handle)
                raise CheckpointError(self._taken()) from None
            print(
                f"warning: {self.run_dir}: its file system has no locks ({error.strerror}); a second process on "
                "another machine would not be noticed",
                file=sys.stderr,
            )
        self._handle = handle
        return True

    def _taken(self) -> str:
        signed = read_json(self.run_dir / FILE, "remove it")
        known = isinstance(signed, dict) and signed.get("ended") is False
        who = f"process {signed.get('pid')} on {signed.get('host')}" if known else "another process"
        return (
            f"{self.run_dir}: {who} trains in this folder, so this one ends and has changed nothing; "
            "wait until that one has ended, or give run.dir another folder"
        )


@contextmanager
def sign(run_dir: Path) -> Iterator[None]:
    """Sign a run folder as this process's; its end is noted, and where it is killed its id tells."""
    mine = {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid()), "ended": False}
    write_atomically(run_dir / FILE, json.dumps(mine).encode())
    try:
        yield
    finally:
        write_atomically(run_dir / FILE, json.dumps(mine | {"ended": True}).encode())


def is_alive(run_dir: Path) -> bool | None:
    """Whether the process that signed a folder still runs; None where it ran on another machine, or did not sign.

    Raises `CheckpointError` for a file that is not JSON.
    """
    signed = read_json(run_dir / FILE, "remove it")
    if not isinstance(signed, dict) or not isinstance(signed.get("pid"), int):
        return None
    if signed.get("ended"):
        return False
    if signed.get("host") != socket.gethostname():
        return None
    return is_running(signed["pid"]) and _started(signed["pid"]) == signed.get("started")


def _started(pid: int) -> int | None:
    """When a process started, in ticks since the machine did: ids are used again. None where it is not known."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the name before it may hold spaces
    return None if fields[0] == "Z" else int(fields[19])
