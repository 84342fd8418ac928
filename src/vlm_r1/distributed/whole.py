"""Which checkpoints a run has, and whether they still are what was written.

Checksums are XXH3 with 128 bits: they tell of damage, not of forgery, and take a tenth of the time of SHA-256.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash

from vlm_r1.distributed.processes import ALONE, World
from vlm_r1.errors import CheckpointError
from vlm_r1.files import remove

_NAME = re.compile(r"checkpoint-(\d+)$")


def list_checkpoints(run_dir: Path) -> list[Path]:
    """Checkpoints of a run that were written to the end, oldest first."""
    found = [p for p in run_dir.glob("checkpoint-*") if _NAME.search(p.name)] if run_dir.is_dir() else []
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """The step after which a checkpoint was written."""
    return int(checkpoint.name.rpartition("-")[2])


def newest_state(run_dir: Path, world: World, *, skip_damaged: bool = False) -> tuple[Path | None, dict[str, Any]]:
    """The last checkpoint of a run and its state; None and nothing where there is none. Every process calls it.

    Raises `CheckpointError` where it is damaged. With `skip_damaged` such a one is renamed and the one before it taken,
    if there is one.
    """
    checkpoints = list_checkpoints(run_dir)
    while checkpoints:
        newest = checkpoints.pop()
        try:
            return newest, read_state(newest, world)
        except CheckpointError as error:
            if not (skip_damaged and checkpoints):
                raise
            if world.is_main:
                aside = newest.with_name(f"{newest.name}.damaged")
                remove(aside)
                newest.rename(aside)
                print(f"warning: {error}. It is {aside.name} now, and {checkpoints[-1].name} is taken", file=sys.stderr)
    return None, {}


def read_state(checkpoint: Path, world: World = ALONE) -> dict[str, Any]:
    """What a loop kept in a checkpoint. Every process calls it: each checks its share of the files.

    Raises `CheckpointError` on all where a file is missing, or not what was written.
    """
    state: dict[str, Any] = {}
    failure = None
    try:
        state = _verified(checkpoint, world)
    except CheckpointError as error:
        failure = CheckpointError(f"{error}; {remedy(checkpoint)}, or set run.skip_damaged: true")
    world.raise_together(failure)
    return state


def remedy(checkpoint: Path) -> str:
    """What to do about a checkpoint that cannot be read."""
    return f"delete {checkpoint} to continue from the one before it"


def _verified(checkpoint: Path, world: World) -> dict[str, Any]:
    file = checkpoint / "state.json"
    try:
        state = dict(json.loads(file.read_text(encoding="utf-8")))
        files = dict(state["files"])
        of_before = all(isinstance(written, int) for written in files.values())  # sizes alone
        if not of_before and state.pop("checksum") != checksum_of(state):
            raise CheckpointError(f"{file}: is not what was written (its checksum differs)")
        del state["files"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise CheckpointError(f"{file}: cannot be read ({str(error) or type(error).__name__})") from None
    for name in sorted(files)[world.rank :: world.size]:
        world.beat("checking a checkpoint")
        written = {"bytes": files[name], "checksum": None} if of_before else files[name]
        if fault := _fault(checkpoint / name, **written):
            raise CheckpointError(f"{checkpoint / name}: {fault}")
    return state


def _fault(file: Path, bytes: int, checksum: str | None) -> str | None:
    try:
        found = file.stat().st_size
        if found != bytes:
            return f"has {found} bytes instead of {bytes}"
        if checksum is not None and checksum_of_file(file) != checksum:
            return "is not what was written (its checksum differs)"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return None


def about(file: Path) -> dict[str, Any]:
    """Size and checksum of a file, as `state.json` has them. Raises `OSError`."""
    return {"bytes": file.stat().st_size, "checksum": checksum_of_file(file)}


def checksum_of_file(file: Path) -> str:
    """Of a file's bytes, in hexadecimal digits. Raises `OSError`."""
    with open(file, "rb", buffering=0) as source:
        return hashlib.file_digest(source, xxhash.xxh3_128).hexdigest()


def checksum_of(state: Mapping[str, Any]) -> str:
    """Of plain data, which JSON gives back as it took it."""
    return xxhash.xxh3_128_hexdigest(json.dumps(state).encode())
