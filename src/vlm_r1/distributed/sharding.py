"""A policy over processes (FSDP2): each holds its share of every parameter, gradient and optimizer state.

The units that come together and part again are the decoder layers, the blocks of the tower, the embedding, and what
remains. Trained shards are float32, compute is in the policy's precision, gradients are summed in float32.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.distributed.fsdp._fully_shard._fsdp_collectives import DefaultAllGather, DefaultReduceScatter
from torch.distributed.tensor import DTensor

from vlm_r1.distributed.processes import World
from vlm_r1.models.family import Family
from vlm_r1.models.freeze import blocks_of
from vlm_r1.models.policy import Policy


def shard(
    policy: Policy,
    family: Family,
    mesh: DeviceMesh,
    world: World,
    *,
    everything: bool = False,
    offload: bool = False,
) -> None:
    """Shard a policy in place; its parameters may still be on the meta device.

    Unless `everything` is sharded, a frozen tower stays whole on every process, and so does a connector that is frozen
    with it: then what they make of images can be kept, and a process that finds it in its cache waits for nobody. With
    `offload` the shards lie in CPU memory.
    """
    whole = set() if everything else whole_parameters(family)
    settings: dict[str, Any] = {
        "mesh": mesh,
        "mp_policy": MixedPrecisionPolicy(
            param_dtype=policy.compute_dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
        ),
        "offload_policy": CPUOffloadPolicy(pin_memory=torch.cuda.is_available()) if offload else OffloadPolicy(),
        "ignored_params": whole,
    }
    units: list[nn.Module] = [] if whole else blocks_of(family, "vision")
    units += blocks_of(family, "language")
    embedding, head = family.model.get_input_embeddings(), family.model.get_output_embeddings()
    if embedding.weight is not head.weight:
        units.append(embedding)
    for unit in units:
        fully_shard(unit, reshard_after_forward=True, **settings)
    fully_shard(policy, **settings)
    for module in shards_of(policy):
        # Losses are sums over all processes: no division, and every backend can add.
        module.set_force_sum_reduction_for_comms(True)
        module.set_gradient_divide_factor(1.0)
        module.set_custom_all_gather(_TimedAllGather(world))
        module.set_custom_reduce_scatter(_TimedReduceScatter(world))


def reshard(policy: nn.Module) -> None:
    """Part the root unit again, which stays together after a forward pass because a backward pass mostly follows."""
    if isinstance(policy, FSDPModule):
        policy.reshard()


def whole_parameters(family: Family) -> set[nn.Parameter]:
    """Parameters that every process holds in full: those of a frozen tower, and of a connector frozen with it."""
    parts = family.parameters()
    tower, connector = (set(parts[part].values()) for part in ("vision", "connector"))  # type: ignore[index]
    if any(p.requires_grad for p in tower):
        return set()
    return tower if any(p.requires_grad for p in connector) else tower | connector


def shards_of(policy: nn.Module) -> list[FSDPModule]:
    """The sharded units of a policy; empty where it is not sharded."""
    return [module for module in policy.modules() if isinstance(module, FSDPModule)]


def is_sharded(policy: nn.Module) -> bool:
    """Whether any parameter of a policy lies on several processes (or on one, sharded by one)."""
    return any(isinstance(p, DTensor) for p in policy.parameters())


def processes_of(policy: nn.Module) -> int:
    """How many processes hold one copy of a sharded policy's parameters."""
    meshes = [p.device_mesh for p in policy.parameters() if isinstance(p, DTensor)]
    return meshes[0].size() if meshes else 1


def local_part(tensor: Tensor) -> Tensor:
    """The part of a tensor that lies on this process, without a copy; all of it where it is not sharded."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@contextmanager
def gathered(policy: nn.Module) -> Iterator[None]:
    """Within, every process holds all parameters, in compute precision, and no forward pass is a collective.

    Every process enters and leaves it. Costs the model's memory once per process.
    """
    units = shards_of(policy)
    with _own_hooks_off(units):
        for handle in [unit.unshard(async_op=True) for unit in units]:
            if handle is not None:
                handle.wait()
        try:
            yield
        finally:
            for unit in units:
                unit.reshard()


@contextmanager
def by_layer(policy: nn.Module) -> Iterator[None]:
    """Within, a unit's parameters come together when it runs, the next unit's meanwhile, and part again behind it.

    Takes the memory of two layers, and a transfer of the whole model for every forward pass, which all processes make
    together: each runs as many as the others.
    """
    units: list[Any] = [unit for unit in shards_of(policy) if unit is not policy]
    handles: dict[int, Any] = {}
    following = {id(unit): after for unit, after in zip(units, [*units[1:], units[0]], strict=True)} if units else {}

    def enter(unit: Any, *_: Any) -> None:
        for wanted in (unit, following[id(unit)]):
            if id(wanted) not in handles:
                handles[id(wanted)] = wanted.unshard(async_op=True)
        if handles[id(unit)] is not None:
            handles[id(unit)].wait()

    def leave(unit: Any, *_: Any) -> None:
        unit.reshard()
        del handles[id(unit)]

    with _own_hooks_off([*units, policy]):
        hooks = [unit.register_forward_pre_hook(enter) for unit in units]
        hooks += [unit.register_forward_hook(leave) for unit in units]
        policy.unshard()  # type: ignore[operator]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for unit in [*units, policy]:
                unit.reshard()  # type: ignore[operator]


@contextmanager
def _own_hooks_off(units: Sequence[Any]) -> Iterator[None]:
    """Turn off FSDP2's forward hooks: they note each pass as one that has a backward pass, for prefetching in it."""
    hooks = [registered for unit in units for registered in (unit._forward_pre_hooks, unit._forward_hooks)]
    kept = [dict(registered) for registered in hooks]
    for registered in hooks:
        for key, hook in list(registered.items()):
            if hook.__module__.startswith("torch.distributed.fsdp"):
                del registered[key]
    try:
        yield
    finally:
        for registered, before in zip(hooks, kept, strict=True):
            later = {key: hook for key, hook in registered.items() if key not in before}
            registered.clear()
            registered.update({**before, **later})


def full_tensors(policy: nn.Module, names: Iterable[str] | None = None) -> Iterator[tuple[str, Tensor]]:
    """Parameters (all, or these) as full tensors, one after the other. Every process asks for the same."""
    parameters = dict(policy.named_parameters())
    for name in parameters if names is None else names:
        parameter = parameters[name].detach()
        yield name, parameter.full_tensor() if isinstance(parameter, DTensor) else parameter


def clip_gradients(parameters: Sequence[nn.Parameter], limit: float) -> float:
    """Scale gradients down to a norm of `limit` over all processes; returns the norm before.

    Sharded gradients are those of all processes together, whole ones the same on each.
    """
    with_gradient = [p for p in parameters if p.grad is not None]
    sharded = [p for p in with_gradient if isinstance(p.grad, DTensor)]
    if not sharded:
        return float(torch.nn.utils.clip_grad_norm_(with_gradient, limit))
    whole = [p for p in with_gradient if not isinstance(p.grad, DTensor)]
    norms = []
    for group in (sharded, whole):
        if group:
            norm = torch.nn.utils.get_total_norm([p.grad for p in group if p.grad is not None])
            norms.append(norm.full_tensor() if isinstance(norm, DTensor) else norm)
    total = torch.stack(norms).norm()
    for group in (sharded, whole):
        if group:
            torch.nn.utils.clip_grads_with_norm_(group, limit, total)
    return float(total)


def sum_whole_gradients(parameters: Iterable[nn.Parameter], world: World) -> None:
    """Sum over the processes the gradients of trained parameters that each of them holds in full."""
    world.sum_tensors([p.grad for p in parameters if p.grad is not None and not isinstance(p.grad, DTensor)])


def local_bytes(tensors: Iterable[Tensor | None]) -> int:
    """Bytes of these tensors that lie on this process."""
    found = [t.to_local() if isinstance(t, DTensor) else t for t in tensors if t is not None]
    return sum(t.untyped_storage().nbytes() for t in {t.untyped_storage().data_ptr(): t for t in found}.values())


class _Timed:
    """A collective of FSDP2 whose time is counted."""

    def __init__(self, world: World) -> None:
        self.world = world

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self.world.timed():
            return super().__call__(*args, **kwargs)  # type: ignore[misc]


class _TimedAllGather(_Timed, DefaultAllGather):
    """The all-gather of weights."""


class _TimedReduceScatter(_Timed, DefaultReduceScatter):
    """The reduce-scatter of gradients."""
