"""Attention over packed rows: the prompt once for all its answers, exactly.

`attend` is registered with transformers under `NAME` and used by a model's language part; every projection, norm and
feed-forward layer is the model's own. A branch's queries meet its prefix's keys and its own; no `N x N` mask exists.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from vlm_r1.errors import ModelError
from vlm_r1.models.layout import Layout, Rule

NAME = "vlm_r1_shared_prefix"


class Attends(Protocol):
    """A layout with an attention of its own, as rollouts have; shapes as in `attend`."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
        """The attention of one layer."""


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
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it: query `(1, H, N, d)`, key and value `(1, h, N, d)` -> `(1, N, H, d)`.

    `layout` reaches here through the model's keyword arguments. Without it this is transformers' own SDPA attention.
    Raises `ModelError` for attention sinks, which packed rows do not have.
    """
    rule = Rule(scaling=scaling, window=sliding_window, softcap=softcap)
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
    """Prefixes among themselves; branches over their prefix and themselves. Shapes as in `attend`."""
    out, prompt_k, prompt_v = attend_prefix(layout, query, key, value, rule)
    if len(layout.tree_of_branch):
        out = torch.cat([out, attend_branches(layout, query, key, value, prompt_k, prompt_v, rule)])
    return out[None]


def attend_prefix(
    layout: Layout, query: Tensor, key: Tensor, value: Tensor, rule: Rule
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention of the prefixes: output `(N_prefix, H, d)`, and their padded keys and values `(P, h, L, d)`."""
    q, k, v = (x[0].transpose(0, 1)[layout.prefix_index].transpose(1, 2) for x in (query, key, value))
    out = weigh(q, k, v, layout.prefix_mask(rule.window), rule, causal=True)
    return out.transpose(1, 2).flatten(0, 1)[layout.prefix_unpad], k, v


def attend_branches(
    layout: Layout, query: Tensor, key: Tensor, value: Tensor, prompt_k: Tensor, prompt_v: Tensor, rule: Rule
) -> Tensor:
    """Attention of the branches over their prefix's keys and values and their own.

    `prompt_k` and `prompt_v` are `(P, h, L, d)`, the output `(N_branch, H, d)`.
    """
    q, k, v = (x[0].transpose(0, 1)[layout.branch_index].transpose(1, 2) for x in (query, key, value))
    k = torch.cat([prompt_k[layout.tree_of_branch], k], 2)
    v = torch.cat([prompt_v[layout.tree_of_branch], v], 2)
    out = weigh(q, k, v, layout.branch_mask(rule.window), rule)
    return out.transpose(1, 2).flatten(0, 1)[layout.branch_unpad]


def _mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """No mask for packed rows (their layout says all); the ordinary one for ordinary calls."""
    return None if _PACKED[0] else sdpa_mask(*args, **kwargs)


_PACKED = [False]
AttentionInterface.register(NAME, attend)  # type: ignore[arg-type]
AttentionMaskInterface.register(NAME, _mask)


@contextmanager
def packed() -> Iterator[None]:
    """While a packed row runs through the model, transformers builds no attention mask."""
    _PACKED[0] = True
    try:
        yield
    finally:
        _PACKED[0] = False
