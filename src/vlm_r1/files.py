"""The one way to write a file or a folder whole: aside, then renamed, so that a reader finds the old or the new one."""

from __future__ import annotations

import glob
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """A path to write a file or a folder at, which takes the place of `path` when the block ends.

    Where the block raises, nothing has changed and nothing is left. With `durable` what is written outlives a power
    cut, and what a killed process of this machine left aside is removed. Raises `OSError` where the system refuses.
    """
    make_folder(path.parent)
    if durable:
        sweep(path.parent, path.name)
    aside = path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}.tmp")
    try:
        yield aside
        put(aside, path, durable=durable)
    finally:
        remove(aside)


def put(aside: Path, path: Path, *, durable: bool = True) -> None:
    """Rename a file or a folder over `path`. Raises `OSError`."""
    if durable:
        for file in [aside, *aside.rglob("*")] if aside.is_dir() else [aside]:
            sync(file)
    old = path.with_name(f".{path.name}.old")
    if path.is_dir():  # a folder cannot be renamed over one that holds something
        remove(old)
        path.rename(old)
    os.replace(aside, path)
    if durable:
        sync(path.parent)
    remove(old)


def sweep(folder: Path, name: str | None = None) -> None:
    """Remove what killed processes of this machine left aside in a folder, for one file's name or for all."""
    middle = f".{socket.gethostname()}-"
    for left in folder.glob(f".{'*' if name is None else glob.escape(name)}{glob.escape(middle)}*.tmp"):
        pid = left.name.rpartition(middle)[2].removesuffix(".tmp")
        if pid.isdecimal() and not is_running(int(pid)):
            remove(left)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, so that they outlive a power cut. Raises `OSError`."""
    if folder.is_dir():
        return
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for place in missing:
        sync(place.parent)


def sync(path: Path) -> None:
    """Have the system write a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove(path: Path) -> None:
    """Remove a file or a folder with all that is in it, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def is_running(pid: int) -> bool:
    """Whether this machine has a process of that id, whoever owns it."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True
