"""Attention of runs of queries over runs of keys by torch's flash kernels, with its log-sum-exp.

Tensors are flat: runs lie one behind another. On CUDA a call is one variable-length kernel, without padding, masks or
repeated heads; on a CPU the runs are padded for torch's CPU kernel, which also takes float64.

Two attentions over different keys become one by their log-sum-exps (`merge`). The gradient of the merged one comes from
the same kernels: each part's backward takes the merged output and the merged log-sum-exp, with which its probabilities
are those of the whole (as in ring attention, arXiv 2310.01889).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vlm_r1.models import cpu_attention

_CPU = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_CPU_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
_CUDA = torch.ops.aten._flash_attention_forward
_CUDA_BACKWARD = torch.ops.aten._flash_attention_backward


@dataclass(frozen=True, slots=True)
class Runs:
    """Runs of tokens, one behind another: where each begins, and after the last where it ends `(n + 1,)` int32.

    `lengths` are theirs on the host, of which some may be 0, and `longest` is the longest. `places` `(N,)` are where
    their tokens lie in the padded form `(n, longest)`, flattened; None where nothing is padded.
    """

    starts: Tensor
    lengths: tuple[int, ...]
    longest: int
    places: Tensor | None

    @classmethod
    def of(cls, lengths: Sequence[int]) -> Runs:
        """Runs of these lengths, on the CPU."""
        starts = torch.tensor((0, *lengths)).cumsum(0)
        width, places = max(lengths, default=0), None
        if int(starts[-1]) < len(lengths) * width:
            shifts = torch.arange(len(lengths)) * width - starts[:-1]
            places = torch.arange(int(starts[-1])) + shifts.repeat_interleave(torch.tensor(lengths))
        return cls(starts.to(torch.int32), tuple(lengths), width, places)

    def to(self, device: torch.device) -> Runs:
        """The same runs on a device."""
        places = None if self.places is None else self.places.to(device)
        return replace(self, starts=self.starts.to(device), places=places)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    of_q: Runs,
    of_k: Runs,
    *,
    causal: bool = False,
    scale: float | None = None,
    used: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Queries `(N, H, d)` of each run over the keys and values `(M, h, d)` of the run of the same number.

    With `used` `(n,)` int32, only so many keys of each run count. Returns `(N, H, d)` and the log-sum-exp `(H, N)`;
    on CUDA in float16 or bfloat16 only.
    """
    if q.is_cuda:
        found = _CUDA(
            q,
            k,
            v,
            of_q.starts,
            of_k.starts,
            of_q.longest,
            of_k.longest,
            0.0,
            causal,
            return_debug_mask=False,
            scale=scale,
            seqused_k=used,
        )
        return found[0], found[1]
    if not causal and used is None and cpu_attention.pays(q, k, of_q.lengths, of_k.lengths):
        return cpu_attention.attention(q, k, v, of_q.lengths, of_k.lengths, scale)
    padded = (_pad(x, runs) for x, runs in ((q, of_q), (k, of_k), (v, of_k)))
    mask = None if causal else _mask(of_k, used, q.dtype)
    out, lse = _CPU(*padded, 0.0, causal, attn_mask=mask, scale=scale)
    return _unpad(out, of_q), _unpad(lse[..., None], of_q)[..., 0].t()


def gradients(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    of_q: Runs,
    of_k: Runs,
    *,
    causal: bool = False,
    scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values, from that of the output; `out` and `lse` may be those of a merge."""
    if q.is_cuda:
        state, unused = torch.zeros(2, dtype=torch.uint64, device=q.device), q.new_empty(0)
        starts, longest = (of_q.starts, of_k.starts), (of_q.longest, of_k.longest)
        found = _CUDA_BACKWARD(grad, q, k, v, out, lse, *starts, *longest, 0.0, causal, state, unused, scale=scale)
        return found[0], found[1], found[2]
    if not causal and cpu_attention.pays(q, k, of_q.lengths, of_k.lengths):
        return cpu_attention.gradients(grad, q, k, v, out, lse, of_q.lengths, of_k.lengths, scale)
    pairs = ((grad, of_q), (q, of_q), (k, of_k), (v, of_k), (out, of_q))
    padded = [_pad(x, runs) for x, runs in pairs]
    padded_lse = _pad(lse.t()[..., None].to(torch.promote_types(lse.dtype, torch.float32)), of_q)[..., 0]
    mask = None if causal else _mask(of_k, None, q.dtype)
    found = _CPU_BACKWARD(*padded, padded_lse, 0.0, causal, attn_mask=mask, scale=scale)
    return tuple(_unpad(x, runs) for x, runs in zip(found, (of_q, of_k, of_k), strict=True))  # type: ignore[return-value]


def merge(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp of attention over the keys of both, from those over the keys of each."""
    (out, lse), (other, other_lse) = first, second
    share = torch.sigmoid(other_lse - lse).t()[..., None]
    merged = torch.lerp(out.to(share.dtype), other.to(share.dtype), share)
    return merged.to(out.dtype), torch.logaddexp(lse, other_lse)


def _pad(x: Tensor, runs: Runs) -> Tensor:
    """`(N, H, d)` as `(n, H, longest, d)`, zeros behind each run."""
    rows, width = len(runs.lengths), runs.longest
    if runs.places is not None:
        x = x.new_zeros(rows * width, *x.shape[1:]).index_copy_(0, runs.places, x)
    return x.unflatten(0, (rows, width)).transpose(1, 2)


def _unpad(x: Tensor, runs: Runs) -> Tensor:
    flat = x.transpose(1, 2).flatten(0, 1)
    return flat if runs.places is None else flat.index_select(0, runs.places)


def _mask(runs: Runs, used: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """`(n, 1, 1, longest)`, added to scores: hides what lies behind each run, or behind what is used of it."""
    lengths = torch.tensor(runs.lengths) if used is None else used
    if used is None and min(runs.lengths, default=0) == runs.longest:
        return None
    hidden = torch.arange(runs.longest) >= lengths[:, None]
    return torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, -torch.inf)[:, None, None]
