"""Attention over packed rows: the prompt once for all its answers, exactly.

`attend` is registered with transformers under `NAMES` and used by a model's language part; every projection, norm and
feed-forward layer is the model's own. A completion's queries meet its prefix's keys and its own; no `N x N` mask
exists.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from vlm_r1.errors import ModelError
from vlm_r1.models.flash import attention, gradients, merge
from vlm_r1.models.layout import Layout, Rule, make_layout

NAME = "vlm_r1_shared_prefix"
BACKENDS = ("auto", "flash", "sdpa")
"""`model.attention`: `flash` merges kernels without masks or copies of keys; `sdpa` pads. `auto` takes `flash` on CPUs
and, in half precision, on GPUs (and what has windows or soft caps always takes `sdpa`)."""
NAMES = {"auto": NAME, "flash": f"{NAME}_varlen", "sdpa": f"{NAME}_padded"}
"""Under which transformers knows them; it treats names that hold the words "flash" or "sdpa" in ways of its own."""
FLASH_TOLERANCE = 0.02
"""Relative difference from float32 that half precision may have: about 8 bits of mantissa."""


class Attends(Protocol):
    """A layout with an attention of its own, as rollouts have; shapes as in `attend`."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
        """The attention of one layer."""


@torch.compiler.disable
def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    layout: Layout | Attends | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    backend: str = "auto",
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it: query `(1, H, N, d)`, key and value `(1, h, N, d)` -> `(1, N, H, d)`.

    `layout` reaches here through the model's keyword arguments. Without it this is transformers' own SDPA attention.
    Raises `ModelError` for attention sinks, which packed rows do not have.
    """
    rule = Rule(scaling=scaling, window=sliding_window, softcap=softcap, backend=backend)
    if s_aux is not None:
        raise ModelError(f"{type(module).__name__}: attention sinks are not supported")
    if layout is None and softcap is None:
        kwargs["sliding_window"] = sliding_window
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    if layout is None:
        causal = attention_mask is None and query.shape[2] > 1
        return weigh(query, key, value, attention_mask, rule, causal=causal).transpose(1, 2), None
    if isinstance(layout, Layout):
        return attend_packed(layout, query, key, value, rule), None
    return layout.attend(module.layer_idx, query, key, value, rule), None  # type: ignore[arg-type]


def weigh(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, rule: Rule, *, causal: bool = False) -> Tensor:
    """Queries `(P, H, S, d)` over keys and values `(P, h, L, d)`, which grouped heads share -> `(P, H, S, d)`.

    `mask` is True where a query may look (or is added to the scores); the window is the mask's business.
    """
    grouped = q.shape[1] != k.shape[1]
    if grouped and (rule.softcap is not None or (mask is not None and q.is_cuda)):
        # On CUDA no fused kernel takes both a mask and grouped heads: torch would fall back to the full score matrix.
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
        grouped = False
    if rule.softcap is None:
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal and mask is None, scale=rule.scaling, enable_gqa=grouped
        )
    scale = q.shape[-1] ** -0.5 if rule.scaling is None else rule.scaling
    scores = torch.tanh((q @ k.transpose(-1, -2)).float() * (scale / rule.softcap)) * rule.softcap
    if mask is None and causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(-1).to(v.dtype) @ v


def attend_packed(layout: Layout, query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
    """Prefixes among themselves; completions over their prefix and themselves. Shapes as in `attend`."""
    if rule.plain(layout) and (rule.backend == "flash" or (rule.backend == "auto" and flash_works(query))):
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
        return _SharedPrefix.apply(q, k, v, layout, rule.scaling)[None]  # type: ignore[no-any-return]
    out, prompt_k, prompt_v = attend_prefix(layout, query, key, value, rule)
    if len(layout.completion_unpad):
        out = torch.cat([out, attend_completions(layout, query, key, value, prompt_k, prompt_v, rule)])
    return out[None]


class _SharedPrefix(torch.autograd.Function):
    """Attention of a whole row in three kernels, from flat queries `(N, H, d)`, keys and values `(N, h, d)`: prefixes
    causally, completions over their prefix, completions causally; the last two are merged.

    Where completions go on from turns, each level of turns is one more kernel, merged with the others.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, layout: Layout, scale: float | None) -> Tensor:
        n, groups, completions = layout.n_prefix, layout.prefixes, layout.completions
        out, lse = attention(q[:n], k[:n], v[:n], groups, groups, causal=True, scale=scale)
        if n < len(q):
            over = attention(q[n:], k[:n], v[:n], layout.per_group, groups, scale=scale)
            own = attention(q[n:], k[n:], v[n:], completions, completions, causal=True, scale=scale)
            branches = merge(over, own)
            for level in layout.levels:
                keys, at = n + level.keys_at, level.queries_at
                part = attention(q[n + at], k[keys], v[keys], level.queries, level.keys, scale=scale)
                both = merge((branches[0][at], branches[1][:, at]), part)
                branches = branches[0].index_copy(0, at, both[0]), branches[1].index_copy(1, at, both[1])
            out, lse = torch.cat([out, branches[0]]), torch.cat([lse, branches[1]], 1)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.layout, ctx.scale = layout, scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q, k, v, out, lse = ctx.saved_tensors
        layout: Layout = ctx.layout
        grad = grad.contiguous()
        n, groups, completions, scale = layout.n_prefix, layout.prefixes, layout.completions, ctx.scale
        grad_p, q_p, k_p, v_p, out_p = (x[:n] for x in (grad, q, k, v, out))
        lse_p = lse[:, :n].contiguous()
        dq, dk, dv = gradients(grad_p, q_p, k_p, v_p, out_p, lse_p, groups, groups, causal=True, scale=scale)
        if n < len(q):
            grad_b, q_b, k_b, v_b, out_b = (x[n:] for x in (grad, q, k, v, out))
            lse_b = lse[:, n:].contiguous()
            over = gradients(grad_b, q_b, k_p, v_p, out_b, lse_b, layout.per_group, groups, scale=scale)
            own = gradients(grad_b, q_b, k_b, v_b, out_b, lse_b, completions, completions, causal=True, scale=scale)
            dq_b, dk_b, dv_b = over[0] + own[0], own[1], own[2]
            for level in layout.levels:
                keys, at = level.keys_at, level.queries_at
                wanted = (grad_b[at], q_b[at], k_b[keys], v_b[keys], out_b[at], lse_b[:, at].contiguous())
                part = gradients(*wanted, level.queries, level.keys, scale=scale)
                dq_b = dq_b.index_add(0, at, part[0])
                dk_b, dv_b = dk_b.index_add(0, keys, part[1]), dv_b.index_add(0, keys, part[2])
            dq = torch.cat([dq, dq_b])
            dk, dv = torch.cat([dk + over[1], dk_b]), torch.cat([dv + over[2], dv_b])
        return dq, dk, dv, None, None


def flash_works(query: Tensor) -> bool:
    """Whether torch's flash kernels take tensors like `query` `(..., d)`; on a GPU small ones are tried, once."""
    if not query.is_cuda:
        return query.device.type == "cpu"
    half = query.dtype in (torch.float16, torch.bfloat16)
    return half and _flash_works(query.device, query.dtype, query.shape[-1])


@lru_cache(maxsize=8)
def _flash_works(device: torch.device, dtype: torch.dtype, width: int) -> bool:
    """Output and gradients of a row of two prefix groups, one with turns, against plain attention in float32."""
    layout = make_layout([37, 20], [9, 1, 30, 5, 12], [0, 0, 1, 1, 1], parents=[-1, -1, -1, 2, 3]).to(device)
    generator = torch.Generator(device).manual_seed(0)
    N = layout.n_prefix + sum(layout.completions.lengths)
    q, k, v, grad = (
        torch.randn(1, heads, N, width, device=device, generator=generator).requires_grad_() for heads in (4, 2, 2, 4)
    )
    found = []
    try:
        with torch.enable_grad():
            for backend, kind in (("sdpa", torch.float32), ("flash", dtype)):
                out = attend_packed(layout, q.to(kind), k.to(kind), v.to(kind), Rule(backend=backend)).float()
                gradient = torch.autograd.grad((out * grad.transpose(1, 2)).sum(), (q, k, v))
                used = torch.tensor([30, 1], dtype=torch.int32, device=device)
                rows = [x[0, :, : layout.n_prefix].transpose(0, 1) for x in (q, k, v)]
                part = _over_used(rows, layout, used, kind)
                found.append([out, *gradient, part])
    except (RuntimeError, NotImplementedError) as error:
        warnings.warn(f"attention: flash kernels fail here ({error}); SDPA runs instead", stacklevel=2)
        return False
    worst = max(float((a - b).norm() / a.norm()) for a, b in zip(*found, strict=True))
    if not worst < FLASH_TOLERANCE:
        warnings.warn(f"attention: flash kernels are off by {worst:.1%} here; SDPA runs instead", stacklevel=2)
    return worst < FLASH_TOLERANCE


def _over_used(rows: list[Tensor], layout: Layout, used: Tensor, dtype: torch.dtype) -> Tensor:
    """Prefixes' queries over the first `used` keys of each, as decoding asks; in float32 written out."""
    q, k, v = rows
    if dtype != torch.float32:
        runs = layout.prefixes
        return attention(q.to(dtype), k.to(dtype), v.to(dtype), runs, runs, used=used)[0].float()
    starts, out = [0, *torch.tensor(layout.prefixes.lengths).cumsum(0).tolist()], []
    for start, stop, n in zip(starts, starts[1:], used.tolist(), strict=False):
        keys, values = (x[None, start : start + n].transpose(1, 2) for x in (k, v))
        out.append(weigh(q[None, start:stop].transpose(1, 2), keys, values, None, Rule())[0].transpose(0, 1))
    return torch.cat(out)


def attend_prefix(
    layout: Layout, query: Tensor, key: Tensor, value: Tensor, rule: Rule
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention of the prefixes: output `(N_prefix, H, d)`, and their padded keys and values `(P, h, L, d)`."""
    rows = (x[0].transpose(0, 1)[: layout.n_prefix] for x in (query, key, value))
    q, k, v = (pad(x, layout.prefix_index.shape, layout.prefix_unpad).transpose(1, 2) for x in rows)
    out = weigh(q, k, v, layout.prefix_mask(rule.window), rule, causal=True)
    return unpad(out.transpose(1, 2), layout.prefix_unpad), k, v


def attend_completions(
    layout: Layout, query: Tensor, key: Tensor, value: Tensor, prompt_k: Tensor, prompt_v: Tensor, rule: Rule
) -> Tensor:
    """Attention of the completions over their prefix's keys and values, those of their turns, and their own.

    `prompt_k` and `prompt_v` are `(P, h, L, d)`, the output `(N_completion, H, d)`.
    """
    rows = (x[0].transpose(0, 1)[layout.n_prefix :] for x in (query, key, value))
    q, k, v = (pad(x, layout.completion_index.shape, layout.completion_unpad).transpose(1, 2) for x in rows)
    parts = []
    for whole, prompt, own in ((key, prompt_k, k), (value, prompt_v, v)):
        seen = [prompt.index_select(0, layout.group_of_completion), own]
        if layout.levels:
            branches = whole[0].transpose(0, 1)[layout.n_prefix :]
            seen.insert(1, branches[layout.above_index].transpose(1, 2))
        parts.append(torch.cat(seen, 2))
    k, v = parts
    out = weigh(q, k, v, layout.completion_mask(rule.window), rule)
    return unpad(out.transpose(1, 2), layout.completion_unpad)


def pad(x: Tensor, shape: torch.Size, places: Tensor) -> Tensor:
    """Runs that lie one behind another `(N, ...)`, each in a row of its own `(*shape, ...)`, zeros behind it.

    `places` `(N,)` are where the tokens come to lie in the flattened result.
    """
    if len(places) < shape.numel():
        x = x.new_zeros(shape.numel(), *x.shape[1:]).index_copy(0, places, x)
    return x.unflatten(0, shape)


def unpad(x: Tensor, places: Tensor) -> Tensor:
    """The inverse of `pad`."""
    x = x.flatten(0, 1)
    return x if len(places) == len(x) else _Take.apply(x, places)  # type: ignore[no-any-return]


class _Take(torch.autograd.Function):
    """Rows of a tensor, each at most once: without the atomic sums that the gradient of an index has."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        ctx.rows = len(x)
        return x.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (places,) = ctx.saved_tensors
        return grad.new_zeros(ctx.rows, *grad.shape[1:]).index_copy_(0, places, grad), None


def _mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """No mask for packed rows (their layout says all); the ordinary one for ordinary calls."""
    return None if _PACKED[0] else sdpa_mask(*args, **kwargs)


_PACKED = [False]
for _backend, _name in NAMES.items():
    AttentionInterface.register(_name, partial(attend, backend=_backend))  # type: ignore[arg-type]
    AttentionMaskInterface.register(_name, _mask)


@contextmanager
def packed() -> Iterator[None]:
    """While a packed row runs through the model, transformers builds no attention mask."""
    _PACKED[0] = True
    try:
        yield
    finally:
        _PACKED[0] = False
