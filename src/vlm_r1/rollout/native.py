"""Rollouts by the model itself: the prompt once, its keys and values once, then one token at a time for all answers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vlm_r1.config import RolloutConfig
from vlm_r1.models.load import LoadedPolicy
from vlm_r1.models.shared_prefix import Policy, masked_logprobs
from vlm_r1.records import Prompt, Rollout, RolloutGroup
from vlm_r1.rollout.cache import DecodeCache, Prefill
from vlm_r1.rollout.sampling import StopRule, choose

DROP_SHARE = 0.1
"""Finished rows are dropped once they are this share of the rows: dropping copies the other rows' keys and values."""


@torch.no_grad()
def generate(
    loaded: LoadedPolicy, prompts: Sequence[Prompt], group_size: int, settings: RolloutConfig, *, seed: int | None
) -> list[RolloutGroup]:
    """`group_size` answers to each prompt; the same seed gives the same answers, no seed the greedy ones."""
    with torch.no_grad():
        prefill = Prefill(loaded.policy, prompts)
    return decode(loaded, prompts, prefill, group_size, settings, seed=seed)


@torch.no_grad()
def decode(
    loaded: LoadedPolicy,
    prompts: Sequence[Prompt],
    prefill: Prefill,
    group_size: int,
    settings: RolloutConfig,
    *,
    seed: int | None,
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
    head = policy.model.get_output_embeddings()
    B = len(prompts) * group_size
    tokens: list[list[int]] = [[] for _ in range(B)]
    logprobs: list[list[float]] = [[] for _ in range(B)]
    stopped = [False] * B
    rows = torch.arange(B, device=device)  # the answers that the cache's rows belong to
    live = torch.ones(B, dtype=torch.bool, device=device)
    position = prefill.next_positions.repeat_interleave(group_size)
    logits = head(prefill.last_hidden.detach()).repeat_interleave(group_size, 0)
    for step in range(settings.max_new_tokens):
        logprobs_BV = masked_logprobs(logits, policy.banned, temperature)
        chosen = choose(logprobs_BV, settings, generator)
        taken = logprobs_BV.gather(-1, chosen[:, None])[:, 0]
        _record(rows, live, chosen, taken, tokens, logprobs)
        done = stop.finished(chosen, [tokens[r] for r in rows.tolist()]) & live
        for r in rows[done].tolist():
            stopped[r] = True
        live = live & ~done
        if step + 1 == settings.max_new_tokens or not live.any():
            break
        if int((~live).sum()) >= max(1, DROP_SHARE * len(live)):
            kept = live.nonzero()[:, 0]
            cache.keep(kept)
            rows, chosen, position, live = rows[kept], chosen[kept], position[kept], live[kept]
        logits = head(policy.hidden(chosen, (position + step).expand(3, -1), {}, cache))
    texts = tokenizer.batch_decode(tokens, skip_special_tokens=True)
    answers = [
        Rollout(token_ids=tuple(t), logprobs=tuple(lp), text=text, finish="stop" if s else "length")
        for t, lp, text, s in zip(tokens, logprobs, texts, stopped, strict=True)
    ]
    groups = [tuple(answers[i : i + group_size]) for i in range(0, B, group_size)]
    return [RolloutGroup(prompt=p, rollouts=g) for p, g in zip(prompts, groups, strict=True)]


def _record(
    rows: Tensor, live: Tensor, chosen: Tensor, taken: Tensor, tokens: list[list[int]], logprobs: list[list[float]]
) -> None:
    for row, alive, token, logprob in zip(rows.tolist(), live.tolist(), chosen.tolist(), taken.tolist(), strict=True):
        if alive:
            tokens[row].append(token)
            logprobs[row].append(logprob)


def eos_token_ids(policy: Policy, tokenizer: object) -> list[int]:
    """End-of-text tokens: the generation configuration's and the tokenizer's."""
    found = policy.model.generation_config.eos_token_id
    ids = list(found) if isinstance(found, (list, tuple)) else [found]
    return [int(i) for i in {*ids, tokenizer.eos_token_id} if i is not None]  # type: ignore[attr-defined]
