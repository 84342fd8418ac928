"""Two places where a vision tower's own code spends time on calls instead of arithmetic, with the same sums.

Attention over many pictures and windows runs in a few calls instead of one each:

transformers hands a variable-length attention the whole row of patches and where its chunks (pictures, or windows of
pictures) begin; without the flash-attention package it calls SDPA once per chunk, which is hundreds of small calls per
layer. Chunks of equal length run as one batch here. And the patch embedding, a convolution whose kernel is the patch,
runs as the matrix product that it is.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

NAME = "vlm_r1_batched_flash"
"""transformers takes the variable-length path for names that hold "flash"."""


@lru_cache(maxsize=64)
def _by_length(lengths: tuple[int, ...]) -> tuple[list[tuple[int, Tensor]], Tensor]:
    """Chunks grouped by length: for each length the row indices of its patches, and the way back to row order."""
    starts = torch.tensor((0, *lengths)).cumsum(0).tolist()
    groups: dict[int, list[Tensor]] = {}
    for start, length in zip(starts, lengths, strict=False):
        groups.setdefault(length, []).append(torch.arange(start, start + length))
    indexed = [(length, torch.cat(chunks)) for length, chunks in sorted(groups.items())]
    return indexed, torch.cat([index for _, index in indexed]).argsort()


def attend_chunks(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Bidirectional attention within chunks: query, key and value `(1, H, N, d)` -> `(1, N, H, d)`."""
    assert cu_seq_lens_q is not None
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # (N, H, d)
    n_chunks = len(cu_seq_lens_q) - 1
    if max_length_q is not None and n_chunks * int(max_length_q) == len(q):
        return _attend(q, k, v, n_chunks, scaling)[None], None
    groups, back = _by_length(tuple((cu_seq_lens_q[1:] - cu_seq_lens_q[:-1]).tolist()))
    parts = []
    for length, index in groups:
        index = index.to(q.device)
        parts.append(_attend(q[index], k[index], v[index], len(index) // max(1, length), scaling))
    return torch.cat(parts)[back.to(q.device)][None], None


def _attend(q: Tensor, k: Tensor, v: Tensor, chunks: int, scaling: float | None) -> Tensor:
    """`(chunks * length, H, d)` as one batch of chunks."""
    q, k, v = (x.unflatten(0, (chunks, -1)).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, scale=scaling).transpose(1, 2).flatten(0, 1)


AttentionInterface.register(NAME, attend_chunks)


def patches_as_matmul(tower: nn.Module) -> None:
    """Make every convolution of a tower whose input is one kernel in size compute a matrix product; weights stay."""
    for module in tower.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d)) and module.kernel_size == module.stride and module.groups == 1:
            module.forward = _PatchForward(module)  # type: ignore[method-assign,assignment]


class _PatchForward:
    """The forward of a patch convolution; anything but single patches goes to the convolution itself."""

    def __init__(self, conv: nn.Conv2d | nn.Conv3d) -> None:
        self.conv = conv

    def __call__(self, patches: Tensor) -> Tensor:
        if tuple(patches.shape[2:]) != tuple(self.conv.kernel_size):
            return type(self.conv).forward(self.conv, patches)  # type: ignore[arg-type]
        out = F.linear(patches.flatten(1), self.conv.weight.flatten(1), self.conv.bias)
        return out.view(*out.shape, *(1 for _ in self.conv.kernel_size))
