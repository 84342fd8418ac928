"""How many answers are decoded at once: as many as their keys and values have room for."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from vlm_r1.config import RolloutConfig
from vlm_r1.distributed.processes import World
from vlm_r1.models.policy import Policy
from vlm_r1.records import Prompt, SamplingParams

CPU_SHARE = 0.25
"""Share of a machine's memory that keys and values may take on CPUs, all its processes together."""
GPU_SHARE = 0.5
"""Share of what a GPU has left beside weights that keys and values may take: the prompts' own pass needs the rest."""


WHOLE_SHARE = 0.5
"""Share of a GPU's memory that a whole model in compute precision may take beside its shards."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """At most so many sequences, and so many bytes of keys and values at `per_token` bytes a token."""

    sequences: int | None
    kv_bytes: int
    per_token: int

    def fit(self, prompt_tokens: int, answers: int, max_new_tokens: int) -> bool:
        """Whether prompts of so many tokens in all, and so many answers, are within the limits."""
        tokens = prompt_tokens + answers * max_new_tokens
        few = self.sequences is None or answers <= self.sequences
        return few and tokens * self.per_token <= self.kv_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Prompts whose answers are decoded together: answers `first` to `first + count - 1` of each."""

    prompts: tuple[Prompt, ...]
    first: int
    count: int


def limits_of(policy: Policy, settings: RolloutConfig, world: World) -> Limits:
    """The limits of `rollout.max_sequences` and `rollout.kv_cache_gb`, the latter from the device where it is unset.

    On a CPU it depends on the machine's memory alone, not on what is free: a run is then cut the same way each time.
    """
    if settings.kv_cache_gb is not None:
        kv_bytes = int(settings.kv_cache_gb * 2**30)
    elif policy.suppressed.device.type == "cuda":
        total = torch.cuda.get_device_properties(policy.suppressed.device).total_memory
        kv_bytes = kv_bytes_on_gpu(total, torch.cuda.memory_allocated(policy.suppressed.device))
    else:
        kv_bytes = int(CPU_SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / world.local_size)
    return Limits(sequences=settings.max_sequences, kv_bytes=kv_bytes, per_token=kv_bytes_per_token(policy))


def kv_bytes_on_gpu(total: int, allocated: int) -> int:
    """Bytes that keys and values may take on a GPU of `total` bytes, of which `allocated` are in use."""
    return int(GPU_SHARE * max(0, 0.9 * total - allocated))


def gathers_by_layer(policy: Policy, settings: RolloutConfig) -> bool:
    """Whether the layers of a sharded policy come together one by one while it answers; see `rollout.gather`."""
    if settings.gather != "auto":
        return settings.gather == "by_layer"
    if policy.suppressed.device.type != "cuda":
        return False
    whole = sum(p.numel() for p in policy.parameters()) * policy.compute_dtype.itemsize
    return too_large(whole, torch.cuda.get_device_properties(policy.suppressed.device).total_memory)


def too_large(whole: int, total: int) -> bool:
    """Whether a model of `whole` bytes is not brought together on a GPU of `total` bytes, beside its shards."""
    return whole > WHOLE_SHARE * total


def kv_bytes_per_token(policy: Policy) -> int:
    """Bytes of keys and values of one token in all layers of the language model."""
    text = policy.model.config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    windows = "sliding_attention" in (getattr(text, "layer_types", None) or ())
    products = windows or getattr(text, "attn_logit_softcapping", None) is not None  # DenseCache holds float32
    itemsize = torch.float32.itemsize if products else policy.compute_dtype.itemsize
    return int(2 * text.num_hidden_layers * heads * width * itemsize)


def longest_answer(sampling: SamplingParams, prompts: Sequence[Prompt]) -> int:
    """Tokens of the longest answer, with what tools write: as a guess, as much as the longest prompt at each call."""
    return sampling.max_tokens + sampling.max_calls * max((len(prompt.token_ids) for prompt in prompts), default=0)


def cut(prompts: Sequence[Prompt], n: int, max_new_tokens: int, limits: Limits) -> Iterator[Piece]:
    """The prompts, in order, in pieces within the limits; one prompt's answers are split where they alone exceed them.

    A single answer is a piece whatever the limits say.
    """
    waiting: list[Prompt] = []
    for prompt in prompts:
        tokens = sum(len(p.token_ids) for p in [*waiting, prompt])
        if waiting and not limits.fit(tokens, n * (len(waiting) + 1), max_new_tokens):
            yield Piece(prompts=tuple(waiting), first=0, count=n)
            waiting = []
        if limits.fit(len(prompt.token_ids), n, max_new_tokens):
            waiting.append(prompt)
        else:
            yield from _split(prompt, n, max_new_tokens, limits)
    if waiting:
        yield Piece(prompts=tuple(waiting), first=0, count=n)


def _split(prompt: Prompt, n: int, max_new_tokens: int, limits: Limits) -> Iterator[Piece]:
    count = n
    while count > 1 and not limits.fit(len(prompt.token_ids), count, max_new_tokens):
        count -= 1
    for first in range(0, n, count):
        yield Piece(prompts=(prompt,), first=first, count=min(count, n - first))
