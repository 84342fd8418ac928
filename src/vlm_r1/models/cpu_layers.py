"""Two kinds of layers in float32 on x86 CPUs, forward and backward, with the same sums in less time.

Linear layers run in oneDNN. torch hands float32 matrix products to MKL, which on processors of other makers than its
own uses half of their vector width. oneDNN uses all of it everywhere; torch holds it, and calls it for other formats.

RMS norms, a dozen passes over their input as transformers writes them, take half as many.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HAS_ONEDNN = torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability().startswith("AVX")
"""Whether this processor and this build of torch have it."""
FEW = 256
"""With fewer rows than these, as in decoding, nothing is gained."""


def speed_up(model: nn.Module) -> None:
    """Make every plain linear layer and RMS norm of a model one of these; weights, names and hooks stay."""
    for module in model.modules():
        if type(module) is nn.Linear and HAS_ONEDNN:
            module.__class__ = Linear
        elif type(module).__name__.endswith("RMSNorm") and _is_usual(type(module)):  # type: ignore[arg-type]
            module.__class__ = _subclass(type(module))  # type: ignore[arg-type]


class Linear(nn.Linear):
    """`nn.Linear` whose products run in oneDNN where that is faster."""

    def forward(self, x: Tensor) -> Tensor:
        """`x W^T + b`, `(..., in)` to `(..., out)`."""
        return linear(x, self.weight, self.bias)


def is_plain(module: Any) -> bool:
    """Whether a module is a linear layer and nothing else (no adapter, no quantised one)."""
    return type(module) in (nn.Linear, Linear)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """As `F.linear`, of which it is the same sum in another order."""
    if HAS_ONEDNN and x.dtype == weight.dtype and _many(x):
        rows = x.reshape(-1, x.shape[-1])
        out: Tensor = _OneDNN.apply(rows, weight, bias) if torch.is_grad_enabled() else product(rows, weight, bias)
        return out.view(*x.shape[:-1], -1)
    return F.linear(x, weight, bias)


def _many(x: Tensor) -> bool:
    if torch.compiler.is_compiling():  # it makes kernels of its own
        return False
    return x.device.type == "cpu" and x.dtype == torch.float32 and x.numel() >= FEW * x.shape[-1]


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x W^T + b` of float32 matrices `(n, k)` and `(m, k)` by oneDNN, without a gradient."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")  # type: ignore[no-any-return]


class _OneDNN(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        of_weight = of_bias = None
        if needs_weight:
            wide = weight.shape[0] > weight.shape[1]  # the shorter side first is up to a half faster
            of_weight = product(x.t(), grad.t()).t() if wide else product(grad.t(), x.t())
        if needs_bias:
            of_bias = grad.sum(0)
        return product(grad, weight.t()) if needs_x else None, of_weight, of_bias


@lru_cache
def _is_usual(kind: type[Any]) -> bool:
    """Whether a class of norms is `weight x / sqrt(mean(x^2) + eps)`, by trying it."""
    if kind.forward is _norm_forward:  # made by a call before
        return False
    with torch.device("cpu"), torch.no_grad():
        try:
            norm, x = kind(5, eps=1e-3), torch.tensor([[-0.3, 0.1, 0.0, 0.2, -0.1]])
            norm.weight.copy_(torch.tensor([0.5, 1.0, -2.0, 3.0, 0.0]))
            return torch.allclose(norm(x), F.rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon))
        except (TypeError, AttributeError):
            return False


@lru_cache
def _subclass(kind: type[Any]) -> type[Any]:
    """A class with the faster forward that stays what code asks for by class, and by name."""
    return type(kind.__name__, (kind,), {"forward": _norm_forward})


def _norm_forward(self: Any, hidden_states: Tensor) -> Tensor:
    if not _many(hidden_states) or self.weight.dtype != torch.float32:
        return super(type(self), self).forward(hidden_states)  # type: ignore[no-any-return]
    out: Tensor = _RMSNorm.apply(hidden_states.flatten(0, -2), self.weight, self.variance_epsilon)
    return out.view_as(hidden_states)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        squares = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
        scale = squares.mul_(1 / x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        x, weight, scale = ctx.saved_tensors
        normed = x * scale
        of_weight = (grad * normed).sum(0)
        weighed = grad * weight
        along = torch.linalg.vecdot(weighed, normed)[:, None].mul_(-1 / x.shape[-1])
        return weighed.addcmul_(normed, along).mul_(scale), of_weight, None
