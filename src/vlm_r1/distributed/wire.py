"""Weights on their way to servers: safetensors files in memory, one a process, written by all at once.

Every process writes whole tensors of its share of the layers, under the names and in the shapes of the model's own
folder, in the precision that servers compute in. A version is a folder of its own, and the one before it is deleted
once the new one is in use.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
import uuid
from collections.abc import Iterable
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion

from vlm_r1.distributed.processes import World
from vlm_r1.errors import EngineError
from vlm_r1.models.adapters import NAME
from vlm_r1.models.policy import Policy

MEMORY = Path("/dev/shm")
"""Where files lie in memory."""
_OURS = re.compile(r"vlm-r1-(\d+)-[0-9a-f]+$")


class WeightFiles:
    """The versions of a policy's weights as files. Every process of the run makes one, and calls `write` and `close`.

    `folder` is seen by all machines, and all processes share the work; without one each machine has its own, in memory,
    for the servers that run on it. `root` is where this machine's servers find them.
    """

    def __init__(self, policy: Policy, world: World, folder: str | None) -> None:
        self.policy, self.world = policy, world
        hosts = world.gather((os.uname().nodename, os.getpid()))
        mine = [rank for rank, (host, _) in enumerate(hosts) if folder or host == os.uname().nodename]
        self.writers = mine
        first = mine[0] == world.rank
        root = ""
        if first:
            _sweep(MEMORY)
            bytes_needed = 2 * sum(p.numel() * policy.compute_dtype.itemsize for p in policy.parameters())
            where = Path(folder) if folder else _place(bytes_needed)
            root = str(where / f"vlm-r1-{os.getpid()}-{uuid.uuid4().hex[:8]}")
            try:
                Path(root).mkdir(parents=True, mode=0o700)
            except OSError as error:
                raise EngineError(f"rollout.weights_dir: {where} cannot be written ({error.strerror})") from None
        self.root = Path(world.gather(root)[mine[0]])
        self.first = first

    @property
    def adapted(self) -> bool:
        """Whether an adapter is trained: then it alone travels."""
        return NAME in (getattr(self.policy.model, "peft_config", None) or {})

    def write(self, weights: Iterable[tuple[str, Tensor]], version: int) -> list[str]:
        """Write the policy's parameters (all of them, by their names) and return the files of all processes.

        With an adapter it is one folder in peft's layout. Raises `EngineError` where a process cannot write.
        """
        folder = self.root / f"v{version}"
        failed: EngineError | None = None
        kept = self._adapter(weights) if self.adapted else self._share(weights)
        try:
            folder.mkdir(exist_ok=True)
            if self.adapted and self.first:
                self.policy.model.save_pretrained(folder, state_dict=kept)
            elif kept and not self.adapted:
                save_file(kept, folder / f"rank-{self.world.rank}.safetensors")
        except (OSError, SafetensorError) as error:
            failed = EngineError(
                f"{folder}: weights cannot be written ({error}); free memory there, or set rollout.weights_dir"
            )
        self.world.raise_together(failed)
        return [str(folder)] if self.adapted else sorted(str(file) for file in folder.glob("rank-*.safetensors"))

    def drop_before(self, version: int) -> None:
        """Delete older versions; nobody reads them any more."""
        if self.first:
            for old in self.root.glob("v*"):
                if int(old.name[1:]) < version:
                    shutil.rmtree(old, ignore_errors=True)

    def close(self) -> None:
        """Delete all versions."""
        if self.first:
            shutil.rmtree(self.root, ignore_errors=True)

    def _share(self, weights: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
        """This process's share, as the model's folder names and shapes it."""
        place, dtype = self.writers.index(self.world.rank), self.policy.compute_dtype
        owners: dict[str, int] = {}
        kept: dict[str, Tensor] = {}
        for name, tensor in weights:
            self.world.beat("sending weights")
            owner = owners.setdefault(_unit(name), len(owners) % len(self.writers))
            if owner == place:
                kept[name.removeprefix("model.")] = tensor.to("cpu", dtype)
        found = revert_weight_conversion(self.policy.model, kept)
        return {name: tensor.contiguous() for name, tensor in found.items()}

    def _adapter(self, weights: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
        kept = {}
        for name, tensor in weights:
            self.world.beat("sending weights")
            if self.first and f".{NAME}." in name:
                kept[name.removeprefix("model.")] = tensor.to("cpu", copy=True)
        return kept


def _unit(name: str) -> str:
    """What is written together: a layer, because a folder may hold what a layer has apart as one tensor."""
    found = re.match(r"(.*?\.\d+)\.", name)
    return found[1] if found else name


def _place(bytes_needed: int) -> Path:
    """Memory where there is room for two versions, else the system's temporary folder."""
    if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > bytes_needed:
        return MEMORY
    where = Path(tempfile.gettempdir())
    told = (
        f"{MEMORY} has no room for {bytes_needed / 2**30:.1f} GiB of weights: they go through {where}, which is slower"
    )
    print(told, file=sys.stderr, flush=True)
    return where


def _sweep(where: Path) -> None:
    """Delete what killed runs of this machine left behind."""
    for folder in where.glob("vlm-r1-*-*"):
        found = _OURS.search(folder.name)
        if found and not Path("/proc", found[1]).exists() and folder.stat().st_uid == os.getuid():
            shutil.rmtree(folder, ignore_errors=True)
