"""Policies for the processes of a run: each reads only its share of the weights, so none ever holds a second full copy.

The module is built without memory, given its adapters, sharded, and then takes over what transformers' own sharded
loading read from the safetensors of the folder.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import AutoModelForImageTextToText
from transformers.distributed import DistributedConfig

from vlm_r1.config import ModelConfig, PromptConfig
from vlm_r1.distributed.processes import World
from vlm_r1.distributed.sharding import gathered, local_part, shard, whole_parameters
from vlm_r1.models.adapters import load_adapter
from vlm_r1.models.families import FAMILIES
from vlm_r1.models.family import Family
from vlm_r1.models.generic import check_forward
from vlm_r1.models.load import (
    LoadedPolicy,
    compute_dtype,
    load_policy,
    loading,
    make_policy,
    read_pretrained,
    read_weights,
    resolve_path,
)

Prepare = Callable[[Family], None]
"""Says which parameters are trained, and adds adapters."""


def open_policy(
    config: ModelConfig,
    prompt: PromptConfig,
    world: World,
    *,
    prepare: Prepare,
    seed: int = 0,
    shard_size: int | None = None,
    everything: bool = False,
    offload: bool = False,
) -> LoadedPolicy:
    """The policy of a recipe on this process's device: trained weights in float32, frozen ones in compute precision.

    It is sharded where there are several processes, or one that computes in another precision than its weights have;
    `everything` and `offload` are those of `sharding.shard`. Weights in 4 or 8 bits are not sharded: every process
    holds them all. Raises what `load_policy` raises.
    """
    dtype = compute_dtype(config)
    if world.size > 1 and config.init == "pretrained" and config.quantize == "none":
        return _open_sharded(config, prompt, world, prepare, shard_size, everything, offload)
    loaded = load_policy(config, prompt, seed=seed, dtype=torch.float32 if config.quantize == "none" else None)
    prepare(loaded.family)
    _settle(loaded.policy, dtype)
    loaded.policy.to(world.device)
    if config.quantize != "none":
        if world.size > 1 and world.is_main:
            print(f"model.quantize: weights in {config.quantize} cannot be sharded; each process holds all of them")
        return loaded
    if world.size > 1 or dtype != torch.float32 or offload:
        mesh = world.mesh(shard_size)
        shard(loaded.policy, loaded.family, mesh, world, everything=everything, offload=offload)
    return loaded


def _open_sharded(
    config: ModelConfig,
    prompt: PromptConfig,
    world: World,
    prepare: Prepare,
    shard_size: int | None,
    everything: bool,
    offload: bool,
) -> LoadedPolicy:
    base, model_config, processor = read_pretrained(config)
    with loading(config):
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(
                model_config, dtype=torch.float32, trust_remote_code=config.trust_remote_code
            )
        model.name_or_path = model.config.name_or_path = base
        loaded = make_policy(model, processor, config, prompt)
    policy, family = loaded.policy, loaded.family
    hollow = _hollow(model)
    if base != (path := resolve_path(config.path)):
        load_adapter(model, path)
    prepare(family)
    _to_meta(model, hollow)
    _settle(policy, policy.compute_dtype)
    mesh = world.mesh(shard_size)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = embedding.weight is head.weight
    whole = set() if everything else {id(p) for p in whole_parameters(family)}
    shard(policy, family, mesh, world, everything=everything, offload=offload)
    trains = any(p.requires_grad and p.is_meta for p in policy.parameters())
    sizes = {"fsdp_size": mesh.size(mesh.ndim - 1), "dp_replicate_size": world.size // mesh.size(mesh.ndim - 1)}
    source = read_weights(
        config,
        base,
        dtype=torch.float32 if trains else policy.compute_dtype,
        distributed_config=DistributedConfig(**sizes),
    )
    _adopt(policy, source, whole, world.device, torch.device("cpu") if offload else world.device)
    if tied:
        head.weight = embedding.weight
    model.generation_config = source.generation_config
    if (layout := getattr(source, "_weight_conversions", None)) is not None:
        model._weight_conversions = layout  # how its folder names and shapes its weights, for when they are saved
    del source
    _finish_dora(model)
    if model.config.model_type not in FAMILIES:
        with gathered(policy):
            check_forward(policy, family)
    return loaded


def _hollow(model: nn.Module) -> set[int]:
    """Give parameters on the meta device one value each, seen at every index: they take no memory, and adapters beside
    them are made on the CPU. Returns their identities."""
    return _replaced(model, lambda p: p.is_meta, lambda p: torch.zeros((), dtype=p.dtype).expand(p.shape))


def _to_meta(model: nn.Module, hollow: set[int]) -> None:
    _replaced(model, lambda p: id(p) in hollow, lambda p: torch.empty(p.shape, dtype=p.dtype, device="meta"))


def _replaced(
    model: nn.Module, which: Callable[[nn.Parameter], bool], make: Callable[[nn.Parameter], Tensor]
) -> set[int]:
    """Put other tensors in the place of parameters, shared ones staying shared; the identities of the new ones."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, old in module._parameters.items():
            if old is not None and which(old):
                if id(old) not in made:
                    made[id(old)] = nn.Parameter(make(old), old.requires_grad)
                module._parameters[name] = made[id(old)]
    return {id(parameter) for parameter in made.values()}


def _settle(policy: nn.Module, dtype: torch.dtype) -> None:
    """Frozen weights in compute precision; trained ones stay in float32."""
    for parameter in policy.parameters():
        if not parameter.requires_grad and parameter.dtype == torch.float32:
            parameter.data = parameter.data.to(dtype)


def _adopt(policy: Any, source: nn.Module, whole: set[int], device: torch.device, shard_device: torch.device) -> None:
    """Take the shards (and the few whole parameters and buffers) of `source`, which has the same names."""

    def take(name: str) -> Any:
        owner, _, own = name.removeprefix("model.").replace(".base_layer.", ".").rpartition(".")
        module = source.get_submodule(owner)
        found = getattr(module, own)
        setattr(module, own, None)  # what was read is let go of one by one
        return found

    state: dict[str, Any] = {}
    for name, mine in policy.named_parameters():
        if mine.device.type != "meta":
            continue
        found = take(name).detach()
        if id(mine) in whole:
            value = found.full_tensor().to(device=device, dtype=mine.dtype)
        else:
            # A copy: what was read is a view into the file, all of which it would keep mapped.
            local = found.to_local().to(device=shard_device, dtype=mine.dtype, copy=True)
            value = DTensor.from_local(
                local, mine.device_mesh, mine.placements, run_check=False, shape=mine.shape, stride=mine.stride()
            )
        state[name] = nn.Parameter(value, mine.requires_grad)
    policy.load_state_dict(state, strict=False, assign=True)
    for name, mine in policy.named_buffers():
        if mine.device.type == "meta":
            owner, _, own = name.rpartition(".")
            policy.get_submodule(owner)._buffers[own] = take(name).to(device)
    policy.suppressed = policy.suppressed.to(device)


def _finish_dora(model: nn.Module) -> None:
    """Fresh DoRA adapters start from the norms of their layer's rows, which each process has for its share of them."""
    from peft.tuners.lora import LoraLayer

    for layer in (module for module in model.modules() if isinstance(module, LoraLayer)):
        for name, vector in layer.lora_magnitude_vector.items():
            if not float(local_part(layer.lora_B[name].weight).abs().sum()):
                norms = torch.linalg.norm(local_part(layer.get_base_layer().weight).float(), dim=1)
                local_part(vector.weight).copy_(norms)
