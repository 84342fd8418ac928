"""Which process writes a run folder (`process.json`), and whether it is still there."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vlm_r1.files import is_running
from vlm_r1.runtime.runlog import read_json, write_atomically

FILE = "process.json"


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
