"""Attention in float32 on x86 CPUs as matrix products of oneDNN, one head of one run at a time.

A head's scores fit the processor's cache, and its products run at twice the speed of those inside torch's own kernel
(see `cpu_layers`). It pays where queries and keys are many.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from vlm_r1.models.cpu_layers import HAS_ONEDNN, product

MANY = 512
"""With fewer queries (those of heads that share a key count together) or keys than these, torch's kernel is as fast."""

SCORES = 1 << 21
"""With more scores of a head than these, they no longer fit the cache, and torch's kernel, which works in blocks, is
faster."""


def pays(q: Tensor, k: Tensor, of_q: tuple[int, ...], of_k: tuple[int, ...]) -> bool:
    """Whether queries `(N, H, d)` and keys `(M, h, d)` of runs of these lengths are better off here."""
    shared = q.shape[1] // k.shape[1]
    long = bool(of_q) and min(of_q) * shared >= MANY and min(of_k) >= MANY
    fits = all(n * shared * m <= SCORES for n, m in zip(of_q, of_k, strict=True))
    return HAS_ONEDNN and long and fits and q.device.type == "cpu" and q.dtype == torch.float32


def attend(q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...], scale: float | None) -> Tensor:
    """Every token of a run over all of it: `(N, H, d)`, with a gradient."""
    return _Attention.apply(q, k, v, lengths, scale)  # type: ignore[no-any-return]


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...], scale: float | None) -> Tensor:
        out, lse = attention(q, k, v, lengths, lengths, scale)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.lengths, ctx.scale = lengths, scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q, k, v, out, lse = ctx.saved_tensors
        return *gradients(grad, q, k, v, out, lse, ctx.lengths, ctx.lengths, ctx.scale), None, None


def attention(
    q: Tensor, k: Tensor, v: Tensor, of_q: tuple[int, ...], of_k: tuple[int, ...], scale: float | None
) -> tuple[Tensor, Tensor]:
    """Every query over all keys of its run; shapes as in `flash.attention`."""
    out, lse = torch.empty_like(q), q.new_empty(q.shape[1], len(q))
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    for queries, keys, heads, j in _heads(q, k, of_q, of_k):
        scores = product(_rows(q, queries, heads) * factor, k[keys, j].contiguous())
        probs = scores.softmax(-1)
        top = scores.amax(-1)
        lse_NR = top - probs.amax(-1).log()
        mixed = product(probs, v[keys, j].contiguous().t())
        out[queries, heads] = mixed.view(-1, heads.stop - heads.start, q.shape[-1])
        lse[heads, queries] = lse_NR.view(-1, heads.stop - heads.start).t()
    return out, lse


def gradients(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    of_q: tuple[int, ...],
    of_k: tuple[int, ...],
    scale: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Those of queries, keys and values; as `flash.gradients`."""
    dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    along = (grad * out).sum(-1)
    for queries, keys, heads, j in _heads(q, k, of_q, of_k):
        key, value = k[keys, j].contiguous(), v[keys, j].contiguous()
        query, slope = _rows(q, queries, heads) * factor, _rows(grad, queries, heads)
        # Keys are rows here, so that no matrix of scores has to be turned.
        probs = product(key, query).sub_(lse[heads, queries].t().reshape(-1)).exp_()
        dv[keys, j] = product(probs, slope.t())
        of_scores = product(value, slope).sub_(along[queries, heads].reshape(-1)).mul_(probs)
        dk[keys, j] = product(of_scores, query.t())
        turned = product(key.t(), of_scores.t()).t() * factor
        dq[queries, heads] = turned.view(-1, heads.stop - heads.start, q.shape[-1])
    return dq, dk, dv


def _heads(
    q: Tensor, k: Tensor, of_q: tuple[int, ...], of_k: tuple[int, ...]
) -> Iterator[tuple[slice, slice, slice, int]]:
    """Queries and keys of each run, the heads that share a key, and that key's head."""
    shared, at, start = q.shape[1] // k.shape[1], 0, 0
    for n, m in zip(of_q, of_k, strict=True):
        for j in range(k.shape[1]):
            yield slice(at, at + n), slice(start, start + m), slice(j * shared, (j + 1) * shared), j
        at, start = at + n, start + m


def _rows(x: Tensor, queries: slice, heads: slice) -> Tensor:
    """Queries of several heads as rows `(n r, d)`, without gaps, which oneDNN takes a slow road for."""
    return x[queries, heads].reshape(-1, x.shape[-1]).contiguous()
