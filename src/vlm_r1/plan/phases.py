"""The most memory that each phase of a step holds: the package's own code for it, run without values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vlm_r1.config import Recipe, RolloutConfig
from vlm_r1.models.packing import Tree, pack
from vlm_r1.models.policy import masked_logprobs
from vlm_r1.plan.skeleton import Skeleton
from vlm_r1.plan.trace import GRADIENTS, OTHER, Bytes, Trace
from vlm_r1.records import Prompt
from vlm_r1.rl.batch import TrainBatch
from vlm_r1.rollout.cache import DecodeCache, Prefill
from vlm_r1.rollout.native import DROP_SHARE
from vlm_r1.rollout.resume import continued_row
from vlm_r1.rollout.sampling import choose

PROMPT_CACHE, ANSWER_CACHE = "prompts' keys and values", "answers' keys and values"
KEPT_GRAPH = "prompts' graph kept"


def precision(recipe: Recipe) -> Any:
    """The precision that training computes in, as a context."""
    return torch.autocast("cpu", torch.bfloat16, enabled=recipe.model.autocast == "bf16")


def roll_out(
    skeleton: Skeleton, prompts: Sequence[Prompt], group_size: int, settings: RolloutConfig, recipe: Recipe
) -> Bytes:
    """The peak of answering these prompts at once; with one answer each, by the likeliest tokens."""
    trace = skeleton.trace()
    with trace, precision(recipe), torch.no_grad():
        prefill = Prefill(skeleton.policy, prompts)
        trace.rename(OTHER, PROMPT_CACHE)
        _decode(skeleton, trace, prefill, group_size, settings)
        return trace.peak()


@torch.no_grad()
def _decode(skeleton: Skeleton, trace: Trace, prefill: Prefill, group_size: int, settings: RolloutConfig) -> None:
    """The first and the last token of every answer, as `rollout.native.decode` computes them; then some are dropped."""
    policy, limit = skeleton.policy, settings.max_new_tokens
    generator = None if group_size == 1 else torch.Generator()
    logits = policy.logits(prefill.last_hidden.detach()).repeat_interleave(group_size, 0)
    cache = DecodeCache(prefill, group_size, limit)
    skipped = _name_cache(skeleton, trace, cache)
    logprobs = masked_logprobs(logits, policy.banned, settings.temperature)
    choose(logprobs, settings, generator)
    cache.length = limit - 1
    token_ids = torch.zeros(len(logits), dtype=torch.long)
    logits = policy.logits(policy.hidden(token_ids, token_ids.expand(3, -1), {}, cache))
    logprobs = masked_logprobs(logits, policy.banned, settings.temperature)  # those before live until here
    choose(logprobs, settings, generator)
    keys = sum(skeleton.repeats[layer] * key.nbytes for layer, key in cache.own_keys.items())
    kept = int(keys * (1 - DROP_SHARE))  # the keys of the rows that go on, beside those of all rows
    trace.add(ANSWER_CACHE, kept)
    trace.add(ANSWER_CACHE, -kept - skipped)


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


def update(skeleton: Skeleton, rows: Sequence[Sequence[Tree]], temperature: float, recipe: Recipe) -> Bytes:
    """The peak of forward and backward of the largest of a step's rows; gradients of earlier rows are there."""
    trace = skeleton.trace()
    row = pack(max(rows, key=lambda trees: sum(tree.n_tokens for tree in trees)))
    skeleton.policy.train()
    with trace:
        if len(rows) > 1:
            _give_gradients(skeleton, trace)
        with precision(recipe):
            logprobs, _ = skeleton.policy(row, temperature)
        _backward(skeleton, trace, logprobs)
        return trace.peak()


def update_from_rollout(
    skeleton: Skeleton, prompts: Sequence[Prompt], trees: Sequence[Tree], recipe: Recipe
) -> tuple[Bytes, Bytes]:
    """The peaks of the rollout and of the update where the prompts' graph is kept between them."""
    policy, settings = skeleton.policy, recipe.rollout
    policy.train()
    part = TrainBatch(
        trees=(), advantages_B=torch.empty(0), weights_B=torch.empty(0), group_numbers=tuple(range(len(prompts)))
    )
    row = pack(trees)
    trace = skeleton.trace()
    with trace:
        with precision(recipe):
            prefill = Prefill(policy, prompts)
            trace.rename(OTHER, KEPT_GRAPH)
            _decode(skeleton, trace, prefill, recipe.rl.group_size, settings)
        answering = trace.peak()
        with precision(recipe):
            logprobs, _ = continued_row(policy, prefill, part, row, settings.temperature)
        _backward(skeleton, trace, logprobs)
        return answering, trace.peak()


def _give_gradients(skeleton: Skeleton, trace: Trace) -> None:
    for parameter in skeleton.policy.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.empty_like(parameter)
            trace.call(parameter.grad, GRADIENTS)


def _backward(skeleton: Skeleton, trace: Trace, logprobs: Tensor) -> None:
    with trace.backward(skeleton.policy.parameters()):
        logprobs.sum().backward()
    skeleton.policy.zero_grad()
