"""The optimisers and the learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vlm_r1.config import OptimConfig
from vlm_r1.distributed.sharding import is_sharded, local_part, processes_of
from vlm_r1.errors import ConfigError

Named = list[tuple[str, nn.Parameter]]


def build_optimizer(
    model: nn.Module, config: OptimConfig, scales: Mapping[int, float] | None = None
) -> torch.optim.Optimizer:
    """The recipe's optimiser over trainable parameters; norms and biases are not decayed.

    `scales` maps a parameter's identity to its learning rate over `optim.lr`; 1 where it is not listed.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if config.name == "adamw" or not is_sharded(model):
        return OPTIMIZERS[config.name](model, named, config, scales or {})
    if processes_of(model) > 1:
        raise ConfigError(
            f"optim.name: {config.name} cannot step on sharded weights; use adamw, whose state is sharded with them"
        )
    # One process that computes in bfloat16 holds the only shard of everything: a plain tensor within.
    inside = {id(p): nn.Parameter(local_part(p)) for _, p in named}
    rates = {id(inside[key]): scale for key, scale in (scales or {}).items() if key in inside}
    for _, p in named:
        inside[id(p)].is_head = id(p) in head_parameters(model)  # type: ignore[attr-defined]
    optimizer = OPTIMIZERS[config.name](model, [(name, inside[id(p)]) for name, p in named], config, rates)
    return Inside(optimizer, {p: inside[id(p)] for _, p in named})


def head_parameters(model: nn.Module) -> set[int]:
    """Identities of the parameters of embeddings and of the output head."""
    found = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    head = model.model.get_output_embeddings()  # type: ignore[operator,union-attr]
    return found | {id(p) for p in head.parameters()}


def _groups(named: Named, config: OptimConfig, scales: Mapping[int, float]) -> list[dict[str, Any]]:
    """Parameter groups: one for each learning rate, with and without decay. `scale` is read by `set_learning_rate`."""
    found: dict[tuple[float, float], list[nn.Parameter]] = {}
    for _, p in named:
        key = (scales.get(id(p), 1.0), config.weight_decay if p.ndim >= 2 else 0.0)
        found.setdefault(key, []).append(p)
    return [
        {"params": ps, "weight_decay": decay, "lr": config.lr * scale, "scale": scale}
        for (scale, decay), ps in sorted(found.items(), key=lambda item: (-item[0][1], item[0][0]))
    ]


def _adamw(model: nn.Module, named: Named, config: OptimConfig, scales: Mapping[int, float]) -> torch.optim.Optimizer:
    betas = (config.beta1, config.beta2)
    return torch.optim.AdamW(_groups(named, config, scales), lr=config.lr, betas=betas, fused=True)


def _bitsandbytes(name: str) -> Callable[..., torch.optim.Optimizer]:
    def build(
        model: nn.Module, named: Named, config: OptimConfig, scales: Mapping[int, float]
    ) -> torch.optim.Optimizer:
        if not torch.cuda.is_available():
            raise ConfigError(f"optim.name: {config.name} needs a CUDA GPU, and there is none; use adamw")
        try:
            import bitsandbytes
        except ImportError:
            raise ConfigError(f"optim.name: {config.name} needs bitsandbytes; run: pip install bitsandbytes") from None
        optimizer = getattr(bitsandbytes.optim, name)
        return optimizer(_groups(named, config, scales), lr=config.lr, betas=(config.beta1, config.beta2))

    return build


def _muon(model: nn.Module, named: Named, config: OptimConfig, scales: Mapping[int, float]) -> torch.optim.Optimizer:
    head = head_parameters(model)
    matrices = [(name, p) for name, p in named if p.ndim == 2 and not getattr(p, "is_head", id(p) in head)]
    chosen = {id(p) for _, p in matrices}
    rest = [(name, p) for name, p in named if id(p) not in chosen]
    muon = torch.optim.Muon(
        _groups(matrices, config, scales), lr=config.lr, adjust_lr_fn="match_rms_adamw", momentum=0.95
    )
    return Pair(muon, _adamw(model, rest, config, scales))


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": _adamw,
    "muon": _muon,
    "adamw_8bit": _bitsandbytes("AdamW8bit"),
    "paged_adamw_8bit": _bitsandbytes("PagedAdamW8bit"),
}
"""`optim.name` -> builder. `muon` orthogonalises the updates of hidden matrices (Jordan et al. 2024) with AdamW's
update size, and leaves embeddings, the output head, norms and biases to AdamW; it is meant for training from
scratch. The 8-bit ones are bitsandbytes' (Dettmers et al. 2022); paged ones move to CPU memory when the GPU is full."""


class Inside(torch.optim.Optimizer):
    """An optimizer of the tensors inside sharded parameters, by the parameters themselves."""

    def __init__(self, inner: torch.optim.Optimizer, inside: dict[nn.Parameter, nn.Parameter]) -> None:
        self.inner, self.inside = inner, inside
        self.defaults: dict[str, Any] = inner.defaults

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The groups of the tensors inside."""
        return self.inner.param_groups

    @property
    def state(self) -> dict[Any, Any]:  # type: ignore[override]
        """The inner optimizer's state, by sharded parameter."""
        return {p: self.inner.state[local] for p, local in self.inside.items() if local in self.inner.state}

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step of the tensors inside, which are the parameters' own."""
        for parameter, local in self.inside.items():
            local.grad = None if parameter.grad is None else local_part(parameter.grad)
        self.inner.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients."""
        for parameter, local in self.inside.items():
            parameter.grad = local.grad = None


def place_of(optimizer: Any, parameter: nn.Parameter) -> tuple[dict[str, Any], Tensor]:
    """Where an optimizer, or the one of its parts that steps on a parameter, keeps that one's state, and the tensor
    that it steps on."""
    if isinstance(optimizer, Inside):
        return place_of(optimizer.inner, optimizer.inside[parameter])
    for part in getattr(optimizer, "parts", ()):
        if any(parameter is p for group in part.param_groups for p in group["params"]):
            return part.state[parameter], parameter
    return optimizer.state[parameter], parameter


class Pair(torch.optim.Optimizer):
    """Two optimisers over different parameters as one."""

    def __init__(self, first: torch.optim.Optimizer, second: torch.optim.Optimizer) -> None:
        self.parts = (first, second)
        self.defaults: dict[str, Any] = {}

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The parameter groups of both."""
        return [group for part in self.parts for group in part.param_groups]

    @property
    def state(self) -> dict[Any, Any]:  # type: ignore[override]
        """The state of both, by parameter."""
        return {key: value for part in self.parts for key, value in part.state.items()}

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step of each."""
        for part in self.parts:
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients of both."""
        for part in self.parts:
            part.zero_grad(set_to_none)


def learning_rate(config: OptimConfig, step: int, steps: int) -> float:
    """Learning rate of step `step` (from 0) of `steps`: linear warm-up, then constant, linear or cosine to 0."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    if config.schedule == "linear":
        return config.lr * (1 - done)
    if config.schedule == "cosine":
        return config.lr * 0.5 * (1 + math.cos(math.pi * done))
    return config.lr


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Give every parameter group this learning rate, times its scale."""
    for group in optimizer.param_groups:
        group["lr"] = value * group.get("scale", 1.0)
