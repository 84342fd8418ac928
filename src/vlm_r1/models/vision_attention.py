"""Two places where a vision tower's own code spends time on calls instead of arithmetic, with the same sums.

Attention over many images and windows runs in a few calls instead of one each:

transformers hands a variable-length attention the whole row of patches and where its chunks (images, or windows of
images) begin; without the flash-attention package it calls SDPA once per chunk, which is hundreds of small calls per
layer. Chunks of equal length run as one batch here. And the patch embedding, a convolution whose kernel is the patch,
runs as the matrix product that it is.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface

from vlm_r1.models import cpu_attention
from vlm_r1.models.cpu_layers import linear
from vlm_r1.models.shared_prefix import flash_works

NAME = "vlm_r1_batched_flash"
"""transformers takes the variable-length path for names that hold "flash"."""
LENGTHS = "_vlm_r1_lengths"
"""Attribute of a tensor of chunk beginnings that keeps their lengths on the host."""


@lru_cache(maxsize=64)
def _by_length(lengths: tuple[int, ...], device: torch.device) -> tuple[list[tuple[int, Tensor]], Tensor]:
    """Chunks grouped by length: for each length the row indices of its patches, and the way back to row order."""
    starts = torch.tensor((0, *lengths)).cumsum(0).tolist()
    groups: dict[int, list[Tensor]] = {}
    for start, length in zip(starts, lengths, strict=False):
        groups.setdefault(length, []).append(torch.arange(start, start + length))
    indexed = [(length, torch.cat(chunks).to(device)) for length, chunks in sorted(groups.items())]
    return indexed, torch.cat([index for _, index in indexed]).argsort()


@torch.compiler.disable
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
    """Bidirectional attention within chunks: query, key and value `(1, H, N, d)` -> `(1, N, H, d)`.

    On a GPU in half precision it is torch's variable-length flash kernel, where that works.
    """
    assert cu_seq_lens_q is not None
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # (N, H, d)
    lengths = lengths_of(cu_seq_lens_q)
    if q.is_cuda and flash_works(q):
        starts = cu_seq_lens_q.to(torch.int32)
        out = varlen_attn(q, k, v, starts, starts, max(lengths), max(lengths), scale=scaling)
        assert isinstance(out, Tensor)
        return out[None], None
    if cpu_attention.pays(q, k, lengths, lengths):
        return cpu_attention.attend(q, k, v, lengths, scaling)[None], None
    if len(set(lengths)) == 1:
        return _attend(q, k, v, len(lengths), scaling)[None], None
    groups, back = _by_length(lengths, q.device)
    parts = [_attend(q[i], k[i], v[i], len(i) // max(1, length), scaling) for length, i in groups]
    return torch.cat(parts)[back][None], None


def lengths_of(starts: Tensor) -> tuple[int, ...]:
    """The lengths of chunks that begin at `starts` `(n + 1,)`: asked of the device once for all layers of a tower."""
    found: tuple[int, ...] | None = getattr(starts, LENGTHS, None)
    if found is None:
        found = tuple((starts[1:] - starts[:-1]).tolist())
        setattr(starts, LENGTHS, found)
    return found


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
        out = linear(patches.flatten(1), self.conv.weight.flatten(1), self.conv.bias)
        return out.view(*out.shape, *(1 for _ in self.conv.kernel_size))
