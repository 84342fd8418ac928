"""What sharding (FSDP2) holds beside shards: gathered weights, buffers of collectives, gradients on their way.

A unit is what comes together and parts again (`distributed.sharding.shard`). `Gathering` follows torch's own order:
in the forward pass the buffer of an all-gather lives until the next unit's is done; in the backward pass the unit
before is gathered while one computes, and the float32 buffer of a reduce-scatter lives until the next one starts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from vlm_r1.distributed.sharding import whole_parameters
from vlm_r1.models.family import Family
from vlm_r1.models.freeze import blocks_of
from vlm_r1.models.policy import Policy
from vlm_r1.plan.trace import GRADIENTS, Trace
from vlm_r1.rollout.concurrency import too_large

GATHERED, REDUCED = "gathered weights", "gradients being reduced"
FLOAT32 = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """Bytes of a unit: gathered weights (`full`), the all-gather's own buffer, shards in compute precision on their
    way into it (`cast`), and the float32 gradients that a reduce-scatter starts from."""

    parameters: tuple[nn.Parameter, ...]
    full: int
    buffer: int
    cast: int
    reduced: int


def padded(shape: Sequence[int], shards: int) -> int:
    """Elements of a parameter whose first axis is filled up to a multiple of the shards."""
    if not shape:
        return 1
    return math.ceil(shape[0] / shards) * shards * math.prod(shape[1:])


def find_units(policy: Policy, family: Family, shards: int) -> dict[int, Unit]:
    """The units of a policy by the identity of their module, the policy's own last."""
    taken = {id(p) for p in whole_parameters(family)}
    modules: list[nn.Module] = [] if taken else blocks_of(family, "vision")
    modules += blocks_of(family, "language")
    embedding, head = family.model.get_input_embeddings(), family.model.get_output_embeddings()
    if embedding.weight is not head.weight:
        modules.append(embedding)
    found: dict[int, Unit] = {}
    for module in [*modules, policy]:
        mine = [p for p in module.parameters() if id(p) not in taken]
        taken |= {id(p) for p in mine}
        found[id(module)] = _unit(mine, shards, policy.compute_dtype)
    return found


def _unit(parameters: Sequence[nn.Parameter], shards: int, dtype: torch.dtype) -> Unit:
    sizes = [padded(p.shape, shards) for p in parameters]
    full = sum(sizes) * dtype.itemsize
    # Trained weights are float32; with several shards all of a unit's are cast at once, else one by one.
    cast = [n for n, p in zip(sizes, parameters, strict=True) if p.requires_grad and dtype != torch.float32]
    elements = sum(cast) // shards if shards > 1 else max(cast, default=0)
    return Unit(
        parameters=tuple(parameters),
        full=full,
        buffer=full if shards > 1 else 0,
        cast=elements * dtype.itemsize,
        reduced=FLOAT32 * sum(n for n, p in zip(sizes, parameters, strict=True) if p.requires_grad),
    )


def gathers_by_layer(units: Iterable[Unit], gather: str, memory: int | None) -> bool:
    """Whether `rollout.gather` brings layers together one by one on a GPU of this memory."""
    if gather != "auto":
        return gather == "by_layer"
    return memory is not None and too_large(sum(unit.full for unit in units), memory)


def gathered_for_answers(units: Iterable[Unit], layers: bool) -> tuple[int, int]:
    """Bytes of the units that are gathered while a process answers, and what there is on top while they come together.

    All of them; by layers, the root (the last), and the one that runs with the one that comes next.
    """
    every = list(units)
    if layers and every:
        inner = [unit.full for unit in every[:-1]]
        two = max((sum(pair) for pair in zip(inner, [*inner[1:], inner[0]], strict=True)), default=0)
        return every[-1].full + two, max(unit.buffer or unit.cast for unit in every)
    beside = max((unit.full if unit.buffer else unit.cast for unit in every), default=0)
    return sum(unit.full for unit in every), beside


class Marks:
    """Blocks that stand for several say where they begin and end, forward and backward; nothing is gathered."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace

    def skip(self, module: nn.Module) -> None:
        """A block that another one stands for."""
        self.trace.mark(1)

    def enter(self, module: nn.Module, repeat: int = 1) -> None:
        """The forward pass of a module begins."""
        self.trace.mark(repeat)

    def leave(self, module: nn.Module) -> None:
        """It ends."""

    def enter_backward(self, module: nn.Module, repeat: int = 1) -> None:
        """The backward pass of a module begins."""
        self.trace.mark(repeat)

    def leave_backward(self, module: nn.Module) -> None:
        """It ends."""
        self.trace.mark(1)

    def finish(self) -> None:
        """The backward pass of the whole model is over."""


class Gathering(Marks):
    """The memory of sharding in one forward and backward pass, added to a trace.

    `accumulates` says that shards of gradients are there already.
    """

    def __init__(self, trace: Trace, units: dict[int, Unit], shards: int, *, accumulates: bool) -> None:
        super().__init__(trace)
        self.units, self.shards, self.accumulates = units, shards, accumulates
        self._held = {GATHERED: 0, REDUCED: 0}
        self._order: list[int] = []
        self._open: set[int] = set()

    def skip(self, module: nn.Module) -> None:
        """A block that another one stands for."""
        super().skip(module)
        if id(module) in self.units:
            self._order.append(id(module))

    def enter(self, module: nn.Module, repeat: int = 1) -> None:
        """Gather the module."""
        unit = self.units.get(id(module))
        if unit is None:
            super().enter(module, repeat)
            return
        if repeat != 1:  # what is held before one of many is what one of them leaves behind
            self.trace.mark(1)
            self._hold(GATHERED, unit.buffer)
        super().enter(module, repeat)
        self.trace.add(GATHERED, unit.buffer + unit.cast)
        self.trace.add(GATHERED, -self._held[GATHERED] - unit.cast)
        self._held[GATHERED] = unit.buffer
        self.trace.add(GATHERED, unit.full)

    def leave(self, module: nn.Module) -> None:
        """Let go of the module; the whole model's own unit stays, for the backward pass."""
        unit = self.units.get(id(module))
        if unit is None:
            return
        self._order.append(id(module))
        if isinstance(module, Policy):
            self._open.add(id(module))
            self._hold(GATHERED, 0)
        else:
            self.trace.add(GATHERED, -unit.full)

    def enter_backward(self, module: nn.Module, repeat: int = 1) -> None:
        """Gather the module again, and begin with the one that was before it in the forward pass."""
        unit = self.units.get(id(module))
        if unit is None:
            super().enter_backward(module, repeat)
            return
        if repeat != 1:
            self.trace.mark(1)
            self._hold(GATHERED, unit.buffer)
            self._hold(REDUCED, unit.reduced)
        super().enter_backward(module, repeat)
        if id(module) not in self._open:
            self._hold(GATHERED, unit.buffer)
            self.trace.add(GATHERED, unit.full)
            self._open.add(id(module))
        place = self._order.index(id(module))
        before = self.units[self._order[place - 1]] if place else None
        if repeat != 1:
            before = unit
        self._hold(GATHERED, 0)
        if before is not None:
            self.trace.add(GATHERED, before.cast)
            self._hold(GATHERED, before.buffer)
            self.trace.add(GATHERED, -before.cast)

    def leave_backward(self, module: nn.Module) -> None:
        """Reduce the module's gradients."""
        if id(module) in self._open:
            self._reduce(id(module))
        super().leave_backward(module)

    def finish(self) -> None:
        """Reduce what is left: the whole model's own unit, and those whose input had no gradient."""
        self.trace.mark(1)
        for key in [key for key in reversed(self.units) if key in self._open]:
            self._reduce(key)
        for name in self._held:
            self._hold(name, 0)

    def _reduce(self, key: int) -> None:
        unit = self.units[key]
        self._open.discard(key)
        self.trace.add(GATHERED, -unit.full)
        if not any(p.grad is not None for p in unit.parameters):
            return
        self._hold(REDUCED, 0)
        self._hold(REDUCED, unit.reduced)  # beside the gradients, which end then
        for parameter in unit.parameters:
            parameter.grad = None
        share = unit.reduced // self.shards
        self.trace.add(GRADIENTS, share)
        if self.shards == 1:  # torch copies by way of a quotient
            self.trace.add(REDUCED, unit.reduced)
            self.trace.add(REDUCED, -unit.reduced)
        if self.accumulates:
            self.trace.add(GRADIENTS, -share)

    def _hold(self, name: str, size: int) -> None:
        self.trace.add(name, size - self._held[name])
        self._held[name] = size
