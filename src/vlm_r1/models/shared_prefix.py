"""Attention over packed rows, and the policy that scores them: the prompt once for all its answers, exactly.

`attend` is registered with transformers under `NAME` and used by a model's language part; every projection, norm and
feed-forward layer is the model's own. A branch's queries meet its prefix's keys and its own; no `N x N` mask exists.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from vlm_r1.models.packing import Layout, PackedRow

NAME = "vlm_r1_shared_prefix"
LOGIT_CHUNK = 1 << 25
"""Most logits (tokens x vocabulary) that exist at once in float32 while log-probs are taken: 128 MiB."""
MASKED = -1e9
"""Logit of a banned token."""


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    layout: Any = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it: query `(1, H, N, d)`, key and value `(1, h, N, d)` -> `(1, N, H, d)`.

    `layout` (a `Layout`, or an object with `attend`, as rollouts use) reaches here through the model's keyword
    arguments. Without it this is transformers' own SDPA attention.
    """
    if layout is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    if not isinstance(layout, Layout):
        return layout.attend(module.layer_idx, query, key, value, scaling), None
    return attend_packed(layout, query, key, value, scaling), None


def attend_packed(layout: Layout, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
    """Prefixes causally; branches over their prefix and themselves. Shapes as in `attend`."""
    out, prompt_k, prompt_v = attend_prefix(layout, query, key, value, scaling)
    if len(layout.tree_of_branch):
        out = torch.cat([out, attend_branches(layout, query, key, value, prompt_k, prompt_v, scaling)])
    return out[None]


def attend_prefix(
    layout: Layout, query: Tensor, key: Tensor, value: Tensor, scaling: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Causal attention of the prefixes: output `(N_prefix, H, d)`, and their padded keys and values `(P, h, L, d)`."""
    q, k, v = (x[0].transpose(0, 1)[layout.prefix_index].transpose(1, 2) for x in (query, key, value))
    grouped = q.shape[1] != k.shape[1]
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=grouped)
    return out.transpose(1, 2).flatten(0, 1)[layout.prefix_unpad], k, v


def attend_branches(
    layout: Layout,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prompt_k: Tensor,
    prompt_v: Tensor,
    scaling: float | None,
) -> Tensor:
    """Attention of the branches over their prefix's keys and values and their own.

    `prompt_k` and `prompt_v` are `(P, h, L, d)`, the output `(N_branch, H, d)`.
    """
    q, k, v = (x[0].transpose(0, 1)[layout.branch_index].transpose(1, 2) for x in (query, key, value))
    k = torch.cat([prompt_k[layout.tree_of_branch], k], 2)
    v = torch.cat([prompt_v[layout.tree_of_branch], v], 2)
    grouped = q.shape[1] != k.shape[1]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=layout.mask, scale=scaling, enable_gqa=grouped)
    return out.transpose(1, 2).flatten(0, 1)[layout.branch_unpad]


def _mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """No mask for packed rows (their layout says all); the ordinary one for ordinary calls."""
    return None if _PACKED[0] else sdpa_mask(*args, **kwargs)


_PACKED = [False]
AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, _mask)


@contextmanager
def packed() -> Iterator[None]:
    """While a packed row runs through the model, transformers builds no attention mask."""
    _PACKED[0] = True
    try:
        yield
    finally:
        _PACKED[0] = False


def token_logprobs(
    hidden: Tensor, head: nn.Module, targets: Tensor, banned: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Log-probs of `targets` `(S,)` and the entropy at each place, in float32, from hidden states `(S, D)`.

    The distribution is `softmax(logits / temperature)` with banned tokens masked: the one that rollouts sample from.
    Only `LOGIT_CHUNK` logits exist at a time; with more, each chunk is computed again in the backward pass.
    """
    vocabulary: int = head.weight.shape[0]  # type: ignore[assignment,union-attr,index]
    rows = max(1, LOGIT_CHUNK // vocabulary)
    if len(targets) <= rows:
        return _score(hidden, targets, head, banned, temperature)
    parts = [
        checkpoint(_score, h, t, head, banned, temperature, use_reentrant=False)
        for h, t in zip(hidden.split(rows), targets.split(rows), strict=True)
    ]
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])


def masked_logprobs(logits: Tensor, banned: Tensor, temperature: float) -> Tensor:
    """`log_softmax(logits / temperature)` in float32 with banned tokens masked; any leading shape."""
    return F.log_softmax(logits.float().index_fill(-1, banned, MASKED) / temperature, -1)


def _score(
    hidden: Tensor, targets: Tensor, head: nn.Module, banned: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    logprobs = masked_logprobs(head(hidden), banned, temperature)
    with torch.no_grad():
        entropy = -(logprobs.exp() * logprobs).sum(-1)
    return logprobs.gather(-1, targets[:, None])[:, 0], entropy


class Policy(nn.Module):
    """A vision-language model that scores packed rows; what optimisers, DDP and FSDP wrap.

    `model` is the transformers model; `banned` `(K,)` are the token ids it may not write (picture placeholders).
    """

    banned: Tensor

    def __init__(self, model: Any, banned: Tensor) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("banned", banned, persistent=False)

    def features(self, vision: Mapping[str, Tensor]) -> dict[str, Any]:
        """The vision tower's output for the pictures, in the form `hidden` takes; empty without pictures."""
        if not vision:
            return {}
        return {"image": self.model.model.get_image_features(**vision, return_dict=True)}

    def hidden(self, token_ids: Tensor, positions: Tensor, features: Mapping[str, Any], layout: Any) -> Tensor:
        """Last hidden states `(N, D)` of a row: token ids `(N,)`, positions `(3, N)`."""
        with packed():
            out = self.model.model(
                input_ids=token_ids[None],
                position_ids=positions[:, None],
                mm_encoder_outputs=dict(features),
                use_cache=False,
                layout=layout,
            )
        return out.last_hidden_state[0]

    def forward(self, row: PackedRow, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """Log-prob and entropy `(S,)` of every scored token of the row."""
        hidden = self.hidden(row.token_ids, row.positions, self.features(row.vision), row.layout)
        head = self.model.get_output_embeddings()
        return token_logprobs(hidden[row.predictors], head, row.targets, self.banned, temperature)
