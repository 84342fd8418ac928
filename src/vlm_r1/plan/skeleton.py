"""A recipe's policy without weights: built from its configuration, frozen and adapted as the recipe says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForImageTextToText

from vlm_r1.config import ModelConfig, Recipe
from vlm_r1.envs.host import open_host
from vlm_r1.models.adapters import NAME, adapt, linear_layers
from vlm_r1.models.family import Family, Part
from vlm_r1.models.freeze import blocks_of, freeze, frozen_features
from vlm_r1.models.load import LoadedPolicy, loading, make_policy, read_pretrained, resolve_path
from vlm_r1.models.scratch import build_scratch
from vlm_r1.models.vision_cache import VisionCache
from vlm_r1.plan.layers import repeats_of, thin, watch
from vlm_r1.plan.machine import Machine
from vlm_r1.plan.trace import Trace
from vlm_r1.plan.units import FLOAT32, Gathering, Marks, Unit, find_units, padded

NF4_BITS = 4 + 8 / 64 + 32 / (64 * 256)
"""Bits a weight in NF4 with double quantisation: a scale of 8 bits for 64 weights, one of 32 bits for 256 scales."""


@dataclass(slots=True, kw_only=True)
class Skeleton:
    """The policy, and what its parameters come to on one process, all layers counted.

    `repeats` says for how many layers each layer of the language model stands; 0 where another one stands for it.
    `units` are those of a sharded policy by the identity of their module, `shards` the processes of one copy of the
    weights; without units every process holds all. `trained_parameters` has elements on this process, and whether
    it is a hidden matrix; `reference_bytes` are those of a frozen copy of the policy, sharded as a whole.
    """

    loaded: LoadedPolicy
    fake: FakeTensorMode
    shards: int
    units: dict[int, Unit] = field(default_factory=dict)
    totals: dict[Part, int] = field(default_factory=dict)
    trained: dict[Part, int] = field(default_factory=dict)
    weight_bytes: int = 0
    reference_bytes: int = 0
    trained_parameters: list[tuple[int, bool]] = field(default_factory=list)
    repeats: list[int] = field(default_factory=list)
    _now: list[tuple[Trace, Marks]] = field(default_factory=list)

    @property
    def policy(self) -> Any:
        """The policy."""
        return self.loaded.policy

    def trace(self) -> Trace:
        """A fresh trace of a run of this policy with all its weights at hand; its modules report to the latest one."""
        model = self.policy.model
        vocabulary = model.get_output_embeddings().weight.shape[0]
        trace = Trace(self.fake, vocabulary, [*self.policy.parameters(), *self.policy.buffers()])
        self._now[:] = [(trace, Marks(trace))]
        return trace

    def marks(self) -> Marks:
        """Where the modules say that they begin and end."""
        return self._now[0][1]

    def gather_units(self, *, accumulates: bool) -> None:
        """In the trace begun last, units are gathered as they are needed, and gradients reduced."""
        trace = self._now[0][0]
        self._now[:] = [(trace, Gathering(trace, self.units, self.shards, accumulates=accumulates))]


def build_skeleton(recipe: Recipe, machine: Machine) -> Skeleton:
    """The skeleton of a recipe's policy; with `model.precision: auto` it computes in bfloat16, as on a GPU.

    Raises `ModelError` and `ConfigError` as loading it would.
    """
    precision = "bfloat16" if recipe.model.precision == "auto" else recipe.model.precision
    # Kernels of other libraries do not run on shapes alone.
    config = recipe.model.model_copy(update={"precision": precision, "logprob_kernel": "torch"})
    with torch.device("meta"):
        model, processor = _build_model(config, recipe.run.seed)
    loaded = make_policy(model, processor, config, recipe.prompt)
    open_host(recipe.env, loaded.family)
    freeze(loaded.family, recipe.train)
    with torch.device("meta"):
        adapt(loaded.family, recipe.train, recipe.lora, recipe.run.seed)
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    dtype, shards = loaded.policy.compute_dtype, machine.shard_size(recipe)
    sharded = config.quantize == "none" and (machine.processes > 1 or dtype != torch.float32)
    skeleton = Skeleton(loaded=loaded, fake=fake, shards=shards if sharded else 1)
    _give_device(model, fake, lambda p: dtype if sharded or not p.requires_grad else torch.float32)
    frozen = frozen_features(loaded.family)
    if frozen is not None and (config.vision_cache_mb or config.vision_cache_dir):
        loaded.policy.cache_features(VisionCache(0), [], frozen[1])  # a few images at a time, kept in CPU memory
    if sharded:
        skeleton.units = find_units(loaded.policy, loaded.family, shards)
    _count(skeleton, config)
    if config.quantize != "none":
        with Trace(fake):
            _quantise(loaded.family, dtype)
    for part in ("vision", "language"):
        blocks = blocks_of(loaded.family, part)
        repeats = repeats_of(blocks)
        thin(blocks, repeats, lambda: skeleton._now[0][0], skeleton.marks)
        skeleton.repeats = repeats
    embedding = model.get_input_embeddings()
    for module in (loaded.policy, embedding):
        if id(module) in skeleton.units:
            watch(module, skeleton.marks)
    return skeleton


def _build_model(config: ModelConfig, seed: int) -> tuple[Any, Any]:
    if config.init == "scratch":
        return build_scratch(config.scratch, seed)
    base, model_config, processor = read_pretrained(config)
    with loading(config):
        model = AutoModelForImageTextToText.from_config(
            model_config, dtype=torch.float32, trust_remote_code=config.trust_remote_code
        )
    if base != (path := resolve_path(config.path)):
        import peft

        model.add_adapter(peft.PeftConfig.from_pretrained(path), NAME)
    return model, processor


def _give_device(model: nn.Module, fake: FakeTensorMode, dtype_of: Callable[[nn.Parameter], torch.dtype]) -> None:
    """Replace tensors on the meta device by fake ones on the CPU, parameters in the precision they compute in."""
    made: dict[int, Tensor] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, old in tensors.items():
                if old is None:
                    continue
                if id(old) not in made:
                    weight = isinstance(old, nn.Parameter)
                    dtype = dtype_of(old) if weight and old.is_floating_point() else old.dtype  # type: ignore[arg-type]
                    with fake:
                        new = torch.empty_strided(old.shape, old.stride(), dtype=dtype)
                    made[id(old)] = nn.Parameter(new, old.requires_grad) if weight else new
                tensors[name] = made[id(old)]  # type: ignore[assignment]


def _count(skeleton: Skeleton, config: ModelConfig) -> None:
    family, policy = skeleton.loaded.family, skeleton.policy
    width = policy.compute_dtype.itemsize
    bits = {"none": 0.0, "nf4": NF4_BITS, "int8": 8.0}[config.quantize]
    quantised = {id(layer.weight) for layer in _linears(family)} if bits else set()
    head = {id(p) for m in policy.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    head |= {id(p) for p in family.model.get_output_embeddings().parameters()}
    sharded = {id(p) for unit in skeleton.units.values() for p in unit.parameters}
    for part, parameters in family.parameters().items():
        skeleton.totals[part] = sum(p.numel() for p in parameters.values())
        skeleton.trained[part] = sum(p.numel() for p in parameters.values() if p.requires_grad)
        for p in parameters.values():
            here = padded(p.shape, skeleton.shards) // skeleton.shards if id(p) in sharded else p.numel()
            if id(p) in quantised:
                skeleton.weight_bytes += int(p.numel() * bits / 8)
            else:
                skeleton.weight_bytes += here * (FLOAT32 if p.requires_grad else width)
            if p.requires_grad:
                skeleton.trained_parameters.append((here, p.ndim == 2 and id(p) not in head))
            skeleton.reference_bytes += padded(p.shape, skeleton.shards) // skeleton.shards * width
    for buffer in family.model.buffers():
        skeleton.weight_bytes += buffer.nbytes
        skeleton.reference_bytes += buffer.nbytes


def _linears(family: Family) -> list[nn.Linear]:
    """The layers that `model.quantize` is about, inside an adapter's wrapper where there is one."""
    modules = dict(family.model.named_modules())
    found = [modules[name] for name in linear_layers(family, ["language"])]
    return [getattr(module, "base_layer", module) for module in found]


def _quantise(family: Family, dtype: torch.dtype) -> None:
    """Make these layers unpack their weight for every product, as bitsandbytes does."""
    for layer in _linears(family):
        shape = layer.weight.shape
        layer.weight = nn.Parameter(torch.zeros(1, dtype=torch.uint8), requires_grad=False)
        layer.forward = _unpacking(layer, shape, dtype)  # type: ignore[method-assign,assignment]


def _unpacking(layer: nn.Linear, shape: torch.Size, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        bias = None if layer.bias is None else layer.bias.to(dtype)
        out: Tensor = _Unpacked.apply(x.to(dtype), shape)  # type: ignore[no-untyped-call]
        return (out if bias is None else out + bias).to(x.dtype)

    return forward


class _Unpacked(torch.autograd.Function):
    """A product with a weight of this shape that exists only while it is used."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shape: torch.Size) -> Tensor:
        ctx.shape = shape
        return x @ x.new_empty(shape).t()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] @ grads[0].new_empty(ctx.shape), None
