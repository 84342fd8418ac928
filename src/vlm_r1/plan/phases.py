"""The peak memory of each phase of a step: the package's own code for it, run without values."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vlm_r1.models.packing import PrefixGroup, pack
from vlm_r1.plan.skeleton import Skeleton
from vlm_r1.plan.trace import GRADIENTS, OTHER, Bytes, Trace
from vlm_r1.plan.units import GATHERED, Gathering, gathered_for_answers
from vlm_r1.records import SamplingParams
from vlm_r1.rollout.cache import DecodeCache, DenseCache, Prefill
from vlm_r1.rollout.concurrency import Piece
from vlm_r1.rollout.decoding import DROP_SHARE, Decoding

PROMPT_CACHE, ANSWER_CACHE = "prompts' keys and values", "answers' keys and values"
WHOLE_GRADIENTS = "gradients of gathered weights"


def roll_out(skeleton: Skeleton, piece: Piece, sampling: SamplingParams, *, layers: bool) -> Bytes:
    """The peak of answering the prompts of a piece at once, with all weights gathered on this process, or by layers."""
    trace = skeleton.trace()
    skeleton.policy.eval()
    gathered, beside = gathered_for_answers(skeleton.units.values(), layers)
    with trace, torch.no_grad():
        trace.add(GATHERED, gathered + beside)
        trace.add(GATHERED, -beside)
        prefill = Prefill(skeleton.policy, piece.prompts)
        trace.rename(OTHER, PROMPT_CACHE)
        _decode(skeleton, trace, prefill, piece.count, sampling)
        return trace.peak()


@torch.no_grad()
def _decode(skeleton: Skeleton, trace: Trace, prefill: Prefill, n: int, sampling: SamplingParams) -> None:
    """The first and the last token of every answer, as `rollout.decoding` computes them; then some are dropped."""
    limit, rows = sampling.max_new_tokens, len(prefill.lengths) * n
    u_BT = torch.zeros(rows, limit, dtype=torch.double)
    tables = torch.zeros(rows, limit), torch.zeros(rows, limit, dtype=torch.long)  # log-probs and tokens so far
    u_B = None if sampling.seed is None else u_BT[:, 0]
    decoding = Decoding(skeleton.policy, prefill, n, sampling)
    skipped = _name_cache(skeleton, trace, decoding.cache)
    chosen, _ = decoding.sample(u_B)
    if isinstance(decoding.cache, DenseCache):
        decoding.cache.length = limit - 1
    decoding.run(torch.zeros_like(chosen, dtype=torch.long))
    decoding.sample(u_B)
    dropped = math.ceil(DROP_SHARE * rows)
    if dropped < rows:
        decoding.keep(torch.arange(dropped, rows))
    trace.add(ANSWER_CACHE, -skipped)
    del tables


def _name_cache(skeleton: Skeleton, trace: Trace, cache: DecodeCache) -> int:
    """Name a cache's memory, and count that of the layers that are skipped; returns the latter."""
    tensors = [*cache.own_keys.items(), *cache.own_values.items()]
    for layer, state in cache.states.items():
        tensors += [(layer, part) for part in (state.conv, state.memory) if part is not None]
    for _, tensor in tensors:
        trace.call(tensor, ANSWER_CACHE)
    skipped = sum((skeleton.repeats[layer] - 1) * tensor.nbytes for layer, tensor in tensors)
    trace.add(ANSWER_CACHE, skipped)
    return skipped


def update(
    skeleton: Skeleton, rows: Sequence[Sequence[PrefixGroup]], temperature: float, *, accumulates: bool
) -> Bytes:
    """The peak of forward and backward of the largest of rows that are packed at once; with `accumulates` gradients of
    earlier rows are there."""
    trace = skeleton.trace()
    largest = max(range(len(rows)), key=lambda i: sum(group.n_tokens for group in rows[i]))
    skeleton.policy.train()
    if skeleton.units:
        skeleton.gather_units(accumulates=accumulates)
    with trace:
        if accumulates:
            _give_gradients(skeleton, trace)
        packed = [pack(row) for row in rows]
        logprobs, _ = skeleton.policy(packed[largest], temperature)
        _backward(skeleton, trace, logprobs)
        return trace.peak()


def gradient_bytes(skeleton: Skeleton) -> Bytes:
    """All gradients on this process."""
    return Bytes({GRADIENTS: sum(4 * count for count, _ in skeleton.trained_parameters)})


def _give_gradients(skeleton: Skeleton, trace: Trace) -> None:
    if skeleton.units:
        trace.add(GRADIENTS, gradient_bytes(skeleton)[GRADIENTS])
        return
    for parameter in skeleton.policy.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.empty_like(parameter)
            trace.call(parameter.grad, GRADIENTS)


def _backward(skeleton: Skeleton, trace: Trace, logprobs: Tensor) -> None:
    sharded = isinstance(skeleton.marks(), Gathering)
    with trace.backward(skeleton.policy.parameters(), WHOLE_GRADIENTS if sharded else GRADIENTS):
        logprobs.sum().backward()
    skeleton.marks().finish()
    skeleton.policy.zero_grad()
