"""Log-probs that an output head gives to tokens, a chunk of logits at a time.

A vocabulary of 152,000 is 600 kB of float32 logits a token, and the gradient of its head more than a gigabyte. Logits
live for one chunk of tokens, and in the backward pass they are computed again, chunk by chunk, into one gradient of
the head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from vlm_r1.errors import ModelError
from vlm_r1.models.cpu_layers import is_plain

LOGIT_CHUNK = 1 << 25
"""Most logits (tokens x vocabulary) that exist at once on a CPU: 128 MiB in float32, and as much again twice while they
become log-probs and entropies."""
LOGIT_CHUNK_GPU = 1 << 28
"""The same on a GPU with memory to spare: 1,766 tokens of a vocabulary of 152,000."""
BYTES_A_LOGIT, SHARE = 14, 0.25
"""What a logit takes on its way (bfloat16, and three times float32), and the share of a GPU's free memory for them."""
MASKED = -1e9
"""Logit of a suppressed token."""


def token_logprobs(
    hidden: Tensor,
    head: Any,
    targets: Tensor,
    suppressed: Tensor,
    temperature: float,
    softcap: float | None = None,
    kernel: str = "torch",
) -> tuple[Tensor, Tensor]:
    """Log-probs of `targets` `(S,)` and the entropy at each place, in float32, from hidden states `(S, D)`.

    The distribution is `softmax(logits / temperature)` with suppressed tokens masked: the one that rollouts sample
    from. `softcap` c bounds logits by `c * tanh(logit / c)`. Entropies have no gradient. Raises `ModelError` for a head
    that `kernel` "liger" does not take.
    """
    if kernel == "liger" and len(targets):
        if not is_plain(head) or head.bias is not None or softcap is not None:
            raise ModelError(
                "model.logprob_kernel: liger takes an output head that is a plain matrix, without bias, soft cap or "
                "adapter; use torch"
            )
        return _liger(hidden, head.weight, targets, suppressed, temperature)
    rows = max(1, logits_at_once(hidden.device) // head.weight.shape[0])
    if is_plain(head):
        return _LinearHead.apply(hidden, head.weight, head.bias, targets, suppressed, head, temperature, softcap, rows)  # type: ignore
    logits = capped(head, softcap)
    if len(targets) <= rows:
        return _score(hidden, targets, logits, suppressed, temperature)
    parts = [
        checkpoint(_score, h, t, logits, suppressed, temperature, use_reentrant=False)
        for h, t in zip(hidden.split(rows), targets.split(rows), strict=True)
    ]
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])


def _liger(
    hidden: Tensor, weight: Tensor, targets: Tensor, suppressed: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """By liger-kernel, whose distribution has all tokens: what it gives the suppressed ones is taken out of it here.

    With q their share, a log-prob rises by `-log(1 - q)`, and the entropy is that of the rest over `1 - q`.
    """
    nll, entropy, logprobs = liger_kernel()(
        hidden, weight, targets, temperature, return_entropy=True, selected_token_ids=suppressed
    )
    left = torch.log1p(-logprobs.exp().sum(-1))
    with torch.no_grad():
        rest = entropy.float() + (logprobs.exp() * logprobs).sum(-1)
        entropy = rest / left.exp() + left
    return -nll - left, entropy


def liger_kernel() -> Callable[..., Any]:
    """liger-kernel's fused projection and cross-entropy. Raises `ModelError` where it is not installed."""
    try:
        from liger_kernel.ops.fused_linear_scaled_cross_entropy import LigerFusedLinearScaledCrossEntropyFunction
    except ImportError:
        raise ModelError("model.logprob_kernel: liger needs liger-kernel; run: pip install vlm-r1[liger]") from None
    return LigerFusedLinearScaledCrossEntropyFunction.apply  # type: ignore[no-any-return]


def logits_at_once(device: torch.device) -> int:
    """How many logits may exist at once: a fixed number on a CPU, a share of the free memory of a GPU."""
    if device.type != "cuda":
        return LOGIT_CHUNK
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = torch.cuda.mem_get_info(device)[0] + unused
    return min(LOGIT_CHUNK_GPU, max(LOGIT_CHUNK, int(SHARE * free) // BYTES_A_LOGIT))


def capped(head: Callable[[Tensor], Tensor], softcap: float | None) -> Callable[[Tensor], Tensor]:
    """A head whose logits are bounded by a soft cap, if there is one."""
    return head if softcap is None else lambda hidden: torch.tanh(head(hidden) / softcap) * softcap


def masked_logprobs(logits: Tensor, suppressed: Tensor, temperature: float) -> Tensor:
    """`log_softmax(logits / temperature)` in float32 with suppressed tokens masked; any leading shape."""
    return F.log_softmax(logits.float().index_fill(-1, suppressed, MASKED) / temperature, -1)


def _score(
    hidden: Tensor, targets: Tensor, logits: Callable[[Tensor], Tensor], suppressed: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    logprobs = masked_logprobs(logits(hidden), suppressed, temperature)
    with torch.no_grad():
        entropy = _entropy(logprobs)
    return logprobs.gather(-1, targets[:, None]).sum(-1), entropy  # no view: sharding hooks into the output


def _entropy(logprobs: Tensor) -> Tensor:
    return -logprobs.exp().mul_(logprobs).sum(-1)


class _LinearHead(torch.autograd.Function):
    """`token_logprobs` of a plain linear head.

    With one chunk its log-probs are kept for the backward pass; with more they are computed again there. The gradient
    of the weight is added up in place, in the weight's precision.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        suppressed: Tensor,
        head: nn.Linear,
        temperature: float,
        softcap: float | None,
        rows: int,
    ) -> tuple[Tensor, Tensor]:
        chosen = hidden.new_empty(len(targets), dtype=torch.float32)
        entropy = torch.empty_like(chosen)
        kept: tuple[Tensor, ...] = ()
        for start in range(0, len(targets), rows):
            part = slice(start, start + rows)
            logprobs, slope = _logprobs(head(hidden[part]), suppressed, temperature, softcap)
            chosen[part] = logprobs.gather(-1, targets[part, None])[:, 0]
            entropy[part] = _entropy(logprobs)
            if len(targets) <= rows:
                kept = (logprobs,) if slope is None else (logprobs, slope)
        ctx.save_for_backward(hidden, weight, bias, targets, suppressed, *kept)
        ctx.temperature, ctx.softcap, ctx.rows = temperature, softcap, rows
        ctx.mark_non_differentiable(entropy)
        return chosen, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, suppressed, *kept = ctx.saved_tensors
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight = torch.zeros_like(weight) if wants_weight else None
        grad_bias = torch.zeros_like(bias) if wants_bias else None
        for start in range(0, len(targets), ctx.rows):
            part = slice(start, start + ctx.rows)
            if kept:
                logprobs, slope = kept[0], kept[1] if ctx.softcap else None
            else:
                logits = F.linear(hidden[part], weight, bias)
                logprobs, slope = _logprobs(logits, suppressed, ctx.temperature, ctx.softcap)
            grad = _logit_gradient(logprobs, slope, grads[0][part], targets[part], suppressed, ctx.temperature)
            grad = grad.to(weight.dtype)
            if grad_hidden is not None:
                grad_hidden[part] = grad @ weight
            if grad_weight is not None:
                grad_weight.addmm_(grad.t(), hidden[part])
            if grad_bias is not None:
                grad_bias += grad.sum(0)
        return grad_hidden, grad_weight, grad_bias, *[None] * 6


def _logprobs(
    logits: Tensor, suppressed: Tensor, temperature: float, softcap: float | None
) -> tuple[Tensor, Tensor | None]:
    """What `masked_logprobs` makes of soft-capped logits, written over them, and the slope of the cap."""
    logits, slope = logits.float(), None
    if softcap is not None:
        bounded = logits.div_(softcap).tanh_()
        slope = 1 - bounded.square()
        logits = bounded.mul_(softcap)
    return F.log_softmax(logits.index_fill_(-1, suppressed, MASKED).div_(temperature), -1), slope


def _logit_gradient(
    logprobs: Tensor, slope: Tensor | None, grad: Tensor, targets: Tensor, suppressed: Tensor, temperature: float
) -> Tensor:
    """`grad * (1[target] - p) / temperature`: the gradient in the logits for one of `(S,)` in the log-probs."""
    scaled = (grad / temperature)[:, None]
    found = logprobs.exp().mul_(-scaled).scatter_add_(-1, targets[:, None], scaled).index_fill_(-1, suppressed, 0.0)
    return found if slope is None else found.mul_(slope)
