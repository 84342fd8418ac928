"""What a plan is for: how many GPUs, one process on each, and how much memory a GPU has."""

from __future__ import annotations

from dataclasses import dataclass

from vlm_r1.config import Recipe
from vlm_r1.errors import ConfigError, nearest

GIB = 2**30
GPUS = {
    "T4": 16,
    "V100": 32,
    "A10": 24,
    "L4": 24,
    "RTX3090": 24,
    "RTX4090": 24,
    "RTX5090": 32,
    "A40": 48,
    "A6000": 48,
    "L40S": 48,
    "A100": 80,
    "H100": 80,
    "H200": 141,
    "B200": 180,
    "MI300X": 192,
}
"""Memory of a GPU in GiB, of the larger kind where there are two."""
USABLE = 0.9
"""Share of a GPU that tensors can fill: CUDA itself and gaps between tensors take the rest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """`processes` with a GPU each, and the memory of one GPU in bytes; None where it does not matter.

    Example: `Machine(processes=8, memory=80 * GIB)`.
    """

    processes: int = 1
    memory: int | None = None

    @property
    def room(self) -> int:
        """Bytes of a GPU that tensors can fill."""
        assert self.memory is not None
        return int(self.memory * USABLE)

    def shard_size(self, recipe: Recipe) -> int:
        """Processes that hold one copy of the weights. Raises `ConfigError` where they cannot be divided so."""
        size = recipe.run.shard_size or self.processes
        if self.processes % size:
            raise ConfigError(f"run.shard_size: {self.processes} processes cannot be divided into groups of {size}")
        return size


def gpu_bytes(text: str, option: str = "--gpu-memory") -> int:
    """Memory of a GPU given in GiB or by its name. Raises `ConfigError` for any other text."""
    name = text.upper().replace("NVIDIA", "").replace("GEFORCE", "").replace(" ", "").replace("-", "")
    size: float | None = GPUS.get(name, GPUS.get(f"RTX{name}"))
    if size is None:
        try:
            size = float(text)
        except ValueError:
            raise ConfigError(f'{option} "{text}": give its memory in GiB, or a name; {nearest(name, GPUS)}') from None
    if not 0 < size < 1e6:
        raise ConfigError(f"{option} {text}: the memory must be a number of GiB above 0")
    return int(size * GIB)
