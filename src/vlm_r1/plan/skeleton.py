"""A recipe's policy without weights: built from its configuration, frozen and adapted as the recipe says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForImageTextToText

from vlm_r1.config import Recipe
from vlm_r1.models.adapters import NAME, adapt, linear_layers
from vlm_r1.models.family import Family, Part
from vlm_r1.models.freeze import blocks_of, freeze
from vlm_r1.models.load import LoadedPolicy, make_policy, read_pretrained, resolve_path
from vlm_r1.models.scratch import build_scratch
from vlm_r1.models.vision_cache import VisionCache
from vlm_r1.plan.layers import repeats_of, thin
from vlm_r1.plan.trace import Trace

NF4_BITS = 4 + 8 / 64 + 32 / (64 * 256)
"""Bits a weight in NF4 with double quantisation: a scale of 8 bits for 64 weights, one of 32 bits for 256 scales."""


@dataclass(slots=True, kw_only=True)
class Skeleton:
    """The policy, and what its parameters come to, all layers counted.

    `repeats` says for how many layers each layer of the language model stands; 0 where another one stands for it.
    """

    loaded: LoadedPolicy
    fake: FakeTensorMode
    totals: dict[Part, int] = field(default_factory=dict)
    trained: dict[Part, int] = field(default_factory=dict)
    weight_bytes: int = 0
    trained_parameters: list[tuple[int, int, bool]] = field(default_factory=list)
    repeats: list[int] = field(default_factory=list)
    _trace: list[Trace] = field(default_factory=list)

    @property
    def policy(self) -> Any:
        """The policy."""
        return self.loaded.policy

    def trace(self) -> Trace:
        """A fresh trace of a run of this policy; skipped layers say so to the latest one."""
        model = self.policy.model
        vocabulary = model.get_output_embeddings().weight.shape[0]
        self._trace[:] = [Trace(self.fake, vocabulary, [*self.policy.parameters(), *self.policy.buffers()])]
        return self._trace[0]


def build_skeleton(recipe: Recipe) -> Skeleton:
    """The skeleton of a recipe's policy.

    Raises `ModelError` and `ConfigError` as loading it would.
    """
    with torch.device("meta"):
        model, processor = _build_model(recipe)
    loaded = make_policy(model, processor, recipe.model, recipe.prompt)
    freeze(loaded.family, recipe.train)
    with torch.device("meta"):
        adapt(loaded.family, recipe.train, recipe.lora, recipe.run.seed)
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    _give_device(model, fake)
    how = recipe.train.how()
    caches = recipe.model.vision_cache_mb or recipe.model.vision_cache_dir
    if how["vision"] == how["connector"] == "frozen" and caches:
        loaded.policy.cache_features(VisionCache(0), [])  # one picture at a time, kept in CPU memory
    skeleton = Skeleton(loaded=loaded, fake=fake)
    _count(skeleton, recipe)
    if recipe.model.quantize != "none":
        with Trace(fake):
            _quantise(loaded.family, recipe)
    for part in ("vision", "language"):
        blocks = blocks_of(loaded.family, part)
        repeats = repeats_of(blocks)
        thin(blocks, repeats, lambda: skeleton._trace[0])
        skeleton.repeats = repeats
    return skeleton


def _build_model(recipe: Recipe) -> tuple[Any, Any]:
    config = recipe.model
    if config.init == "scratch":
        model, processor = build_scratch(config.scratch, recipe.run.seed)
        return model.to(getattr(torch, config.dtype)), processor
    base, model_config, processor = read_pretrained(config)
    model = AutoModelForImageTextToText.from_config(
        model_config, dtype=getattr(torch, config.dtype), trust_remote_code=config.trust_remote_code
    )
    if base != (path := resolve_path(config.path)):
        import peft
        from peft.tuners.tuners_utils import cast_adapter_dtype

        model.add_adapter(peft.PeftConfig.from_pretrained(path), NAME)
        cast_adapter_dtype(model, NAME)
    return model, processor


def _give_device(model: nn.Module, fake: FakeTensorMode) -> None:
    """Replace tensors on the meta device, which autocast does not know, by fake ones on the CPU."""
    made: dict[int, Tensor] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, old in tensors.items():
                if old is None:
                    continue
                if id(old) not in made:
                    with fake:
                        new = torch.empty_strided(old.shape, old.stride(), dtype=old.dtype)
                    made[id(old)] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
                tensors[name] = made[id(old)]  # type: ignore[assignment]


def _count(skeleton: Skeleton, recipe: Recipe) -> None:
    family = skeleton.loaded.family
    bits = {"none": 0.0, "nf4": NF4_BITS, "int8": 8.0}[recipe.model.quantize]
    quantised = {id(layer.weight) for layer in _linears(family)} if bits else set()
    head = {id(p) for m in skeleton.policy.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    head |= {id(p) for p in family.model.get_output_embeddings().parameters()}
    for part, parameters in family.parameters().items():
        skeleton.totals[part] = sum(p.numel() for p in parameters.values())
        skeleton.trained[part] = sum(p.numel() for p in parameters.values() if p.requires_grad)
        for p in parameters.values():
            skeleton.weight_bytes += int(p.numel() * bits / 8) if id(p) in quantised else p.nbytes
            if p.requires_grad:
                skeleton.trained_parameters.append((p.numel(), p.element_size(), p.ndim == 2 and id(p) not in head))
    skeleton.weight_bytes += sum(b.nbytes for b in family.model.buffers())


def _linears(family: Family) -> list[nn.Linear]:
    """The layers that `model.quantize` is about, inside an adapter's wrapper where there is one."""
    modules = dict(family.model.named_modules())
    found = [modules[name] for name in linear_layers(family, ["language"])]
    return [getattr(module, "base_layer", module) for module in found]


def _quantise(family: Family, recipe: Recipe) -> None:
    """Make these layers unpack their weight for every product, as bitsandbytes does."""
    autocast = recipe.model.autocast == "bf16"
    dtype = torch.bfloat16 if autocast else getattr(torch, recipe.model.dtype)
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
