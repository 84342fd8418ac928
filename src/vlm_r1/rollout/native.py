"""Rollouts by the model itself: the prompt once, its keys and values once, then one token at a time for all answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vlm_r1.config import RolloutConfig
from vlm_r1.models.load import LoadedPolicy
from vlm_r1.models.policy import Policy, masked_logprobs
from vlm_r1.records import Prompt, Rollout, RolloutGroup
from vlm_r1.rollout.cache import DecodeCache, Prefill
from vlm_r1.rollout.sampling import StopRule, choose

DROP_SHARE = 0.1
"""Finished rows are dropped once they are this share of the rows: dropping copies the other rows' keys and values."""

Watch = Callable[[Tensor, Tensor], None]
"""Called after each token: all tokens so far `(B, t)`, and how many of each row count `(B,)`. It may raise to stop."""


@torch.no_grad()
def generate(
    loaded: LoadedPolicy,
    prompts: Sequence[Prompt],
    group_size: int,
    settings: RolloutConfig,
    *,
    seed: int | None,
    watch: Watch | None = None,
) -> list[RolloutGroup]:
    """`group_size` answers to each prompt; the same seed gives the same answers, no seed the greedy ones."""
    with torch.no_grad():
        prefill = Prefill(loaded.policy, prompts)
    return decode(loaded, prompts, prefill, group_size, settings, seed=seed, watch=watch)


@torch.no_grad()
def decode(
    loaded: LoadedPolicy,
    prompts: Sequence[Prompt],
    prefill: Prefill,
    group_size: int,
    settings: RolloutConfig,
    *,
    seed: int | None,
    watch: Watch | None = None,
) -> list[RolloutGroup]:
    """Sample over a prefill.

    Each token's log-prob is that of `softmax(logits / temperature)` with placeholders banned.
    """
    policy, tokenizer = loaded.policy, loaded.tokenizer
    device = policy.banned.device
    generator = None if seed is None else torch.Generator(device=device).manual_seed(seed)
    temperature = 1.0 if seed is None else settings.temperature
    stop = StopRule(tokenizer, eos_token_ids(policy, tokenizer), settings.stop_at_answer)
    cache = DecodeCache(prefill, group_size, settings.max_new_tokens)
    B, limit = len(prompts) * group_size, settings.max_new_tokens
    tokens_BT = torch.zeros(B, limit, dtype=torch.long, device=device)
    logprobs_BT = torch.zeros(B, limit, device=device)
    lengths_B = torch.full((B,), limit, device=device)
    stopped_B = torch.zeros(B, dtype=torch.bool, device=device)
    rows = torch.arange(B, device=device)  # the answers that the cache's rows belong to
    live = torch.ones(B, dtype=torch.bool, device=device)
    position = prefill.next_positions.repeat_interleave(group_size)
    logits = policy.logits(prefill.last_hidden.detach()).repeat_interleave(group_size, 0)
    for step in range(limit):
        logprobs_RV = masked_logprobs(logits, policy.banned, temperature)
        chosen = choose(logprobs_RV, settings, generator)
        tokens_BT[rows, step] = chosen  # what a finished row goes on writing lies beyond its length
        logprobs_BT[rows, step] = logprobs_RV.gather(-1, chosen[:, None])[:, 0]
        done = live & stop.finished(chosen, tokens_BT[:, : step + 1], rows)
        lengths_B[rows[done]] = step + 1
        stopped_B[rows[done]] = True
        if watch is not None:
            watch(tokens_BT[:, : step + 1], lengths_B.clamp(max=step + 1))
        live = live & ~done
        n_live = int(live.sum())
        if step + 1 == limit or not n_live:
            break
        if len(live) - n_live >= max(1, DROP_SHARE * len(live)):
            kept = live.nonzero()[:, 0]
            cache.keep(kept)
            rows, chosen, position, live = rows[kept], chosen[kept], position[kept], live[kept]
        logits = policy.logits(policy.hidden(chosen, (position + step).expand(3, -1), {}, cache))
    answers = _rollouts(tokenizer, tokens_BT, logprobs_BT, lengths_B, stopped_B)
    groups = [tuple(answers[i : i + group_size]) for i in range(0, B, group_size)]
    return [RolloutGroup(prompt=p, rollouts=g) for p, g in zip(prompts, groups, strict=True)]


def _rollouts(
    tokenizer: Any, tokens_BT: Tensor, logprobs_BT: Tensor, lengths_B: Tensor, stopped_B: Tensor
) -> list[Rollout]:
    lengths = lengths_B.tolist()
    tokens = [row[:n] for row, n in zip(tokens_BT.tolist(), lengths, strict=True)]
    logprobs = [row[:n] for row, n in zip(logprobs_BT.tolist(), lengths, strict=True)]
    texts = tokenizer.batch_decode(tokens, skip_special_tokens=True)
    return [
        Rollout(token_ids=tuple(t), logprobs=tuple(lp), text=text, finish="stop" if stopped else "length")
        for t, lp, text, stopped in zip(tokens, logprobs, texts, stopped_B.tolist(), strict=True)
    ]


def eos_token_ids(policy: Policy, tokenizer: object) -> list[int]:
    """End-of-text tokens: the generation configuration's and the tokenizer's."""
    found = policy.model.generation_config.eos_token_id
    ids = list(found) if isinstance(found, (list, tuple)) else [found]
    return [int(i) for i in {*ids, tokenizer.eos_token_id} if i is not None]  # type: ignore[attr-defined]
