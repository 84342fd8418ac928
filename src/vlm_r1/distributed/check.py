"""Before the first step: do the processes hear each other, and do they write to one file system?

A broken cluster fails here, within a minute and with a sentence, instead of in the middle of the first checkpoint.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.tensor import distribute_tensor, zeros

from vlm_r1.distributed.checkpoints import REFUSALS, reason
from vlm_r1.distributed.processes import World, start
from vlm_r1.errors import ClusterError

PATIENCE_S = 60.0


def join() -> World:
    """`processes.start`, which ends this process with a sentence where the others do not come."""
    with deadline("the other processes are not there: is MASTER_ADDR reachable from here?"):
        return start()


def check_cluster(world: World, run_dir: Path, versions: str) -> None:
    """Exchange, add up on the devices, and write and read a small sharded checkpoint in the run folder.

    `versions` is what all processes must have in common. Raises `ClusterError`.
    """
    if world.size == 1:
        return
    with deadline("the processes do not hear each other: a network interface or a firewall may be in the way"):
        _same_versions(world.gather((socket.gethostname(), versions)))
        total = torch.full((4,), float(world.rank + 1), device=world.device)
        world.sum_tensors([total])
        if total.tolist() != [world.size * (world.size + 1) / 2] * 4:
            raise ClusterError(f"rank {world.rank}: a sum over {world.size} processes is wrong ({total.tolist()[0]})")
    # A run that fails before its first step leaves no folder.
    folder = run_dir / ".check" if run_dir.is_dir() else run_dir.with_name(f".{run_dir.name}.check")
    with deadline(f"a small checkpoint in {folder.parent} is not written: its file system does not answer"):
        _write_and_read(world, folder)


def _same_versions(told: list[tuple[str, str]]) -> None:
    for rank, (host, versions) in enumerate(told):
        if versions != told[0][1]:
            raise ClusterError(
                f"rank {rank} on {host} has {versions}, rank 0 on {told[0][0]} has {told[0][1]}; "
                "install the same versions and give the same recipe on every machine"
            )


def _write_and_read(world: World, folder: Path) -> None:
    mesh = world.mesh(None)
    full = torch.arange(float(4 * world.size), device=world.device)
    failed = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shards = {"check": distribute_tensor(full, mesh)}
        dcp.save(shards, storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
        read = {"check": zeros(len(full), device_mesh=mesh, placements=shards["check"].placements)}
        dcp.load(read, storage_reader=HuggingFaceStorageReader(str(folder)))
        if not torch.equal(read["check"].to_local(), shards["check"].to_local()):
            failed = "what was read is not what was written"
    except REFUSALS as error:
        failed = reason(error)
    hosts = world.gather((socket.gethostname(), failed))
    if world.is_main:
        shutil.rmtree(folder, ignore_errors=True)
    for rank, (host, why) in enumerate(hosts):
        if why is not None:
            raise ClusterError(
                f"run.dir: a small checkpoint in {folder.parent} fails on rank {rank} on {host} ({why}); "
                "all machines must write to one shared folder"
            )


@contextmanager
def deadline(what: str, seconds: float = PATIENCE_S) -> Iterator[None]:
    """End the process with a sentence if what is within takes longer."""

    def give_up() -> None:
        rank = os.environ.get("RANK", "0")
        print(f"error: rank {rank} on {socket.gethostname()}: {what} ({seconds:.0f} s)", file=sys.stderr, flush=True)
        os._exit(2)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
