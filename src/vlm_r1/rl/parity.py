"""Whether a rollout engine answers as the trainer would: the same prompts through both, log-prob against log-prob."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from vlm_r1.distributed.processes import ALONE, World
from vlm_r1.errors import EngineError
from vlm_r1.models.load import LoadedPolicy
from vlm_r1.models.packing import pack
from vlm_r1.records import Prompt, RolloutGroup, SamplingParams
from vlm_r1.rl.batch import as_prefix_group
from vlm_r1.rl.objective import k3
from vlm_r1.rollout.engine import RolloutEngine, awake

TIE = 1e-3
"""Nats between the two likeliest tokens below which it is chance, and the order of sums, which one is taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """The sampler against the trainer over `tokens` sampled tokens.

    `mean` and `maximum` are of |trainer - sampler| in nats, `kl` estimates KL(sampler || trainer) a token. Of `greedy`
    greedy answers `same` are the trainer's own and `ties` part from it at a token that is as likely as another one.
    """

    family: str
    tokens: int
    mean: float
    maximum: float
    kl: float
    greedy: int
    same: int
    ties: int

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    def demand(self, bound: float) -> None:
        """Raises `EngineError` where the mean difference is above `bound` nats."""
        if self.mean <= bound:
            return
        raise EngineError(
            f"the engine is not the trainer's model: log-probs of {self.tokens} tokens differ by {self.mean:.3g} nats "
            f"on average (maximum {self.maximum:.3g}), the bound is {bound:g} (rollout.max_mismatch). vlm-r1 "
            "check-engine shows more; vlm-r1 docs vllm lists what to look for"
        )


def compare(
    loaded: LoadedPolicy,
    engine: RolloutEngine,
    own: RolloutEngine,
    prompts: Sequence[Prompt],
    sampling: SamplingParams,
    n: int,
    world: World = ALONE,
) -> Parity:
    """`n` sampled answers and a greedy one to each prompt by `engine`, scored by the trainer; `own` is its own engine.

    Every process calls it with the same prompts, because a sharded policy scores with all of them.
    """
    greedy = SamplingParams(max_new_tokens=sampling.max_new_tokens, stop_at_answer=sampling.stop_at_answer)
    with awake(engine):
        sampled = _in_order(engine.generate(prompts, sampling, n=n))
        likeliest = _in_order(engine.generate(prompts, greedy, n=1))
    with awake(own):  # scoring too: a sharded forward without a backward spoils the gradients of the next one
        mine = _in_order(own.generate(prompts, greedy, n=1))
        pairs = [(score(loaded, group, sampling.temperature), _sampler(group)) for group in sampled]
        gaps = [_gap(loaded, a, b) for a, b in zip(likeliest, mine, strict=True) if _tokens(a) != _tokens(b)]
    trainer, sampler = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    difference = (trainer - sampler).abs()
    return Parity(
        family=loaded.policy.model.config.model_type,
        tokens=len(sampler),
        mean=float(difference.mean()),
        maximum=float(difference.max()),
        kl=float(k3(sampler.double(), trainer.double()).mean()),
        greedy=len(prompts),
        same=len(prompts) - len(gaps),
        ties=sum(gap < TIE for gap in gaps),
    )


@torch.no_grad()
def score(loaded: LoadedPolicy, group: RolloutGroup, temperature: float) -> Tensor:
    """The trainer's log-probs `(S,)` of all tokens of a group's answers, one answer after the other, on the CPU."""
    policy = loaded.policy
    policy.eval()
    logprobs_S, _ = policy(pack([as_prefix_group(group)]).to(policy.suppressed.device), temperature)
    return logprobs_S.float().cpu()


def _sampler(group: RolloutGroup) -> Tensor:
    return torch.tensor([logprob for rollout in group.rollouts for logprob in rollout.logprobs])


def _in_order(groups: Any) -> list[RolloutGroup]:
    return sorted(groups, key=lambda group: group.prompt.number)


def _tokens(group: RolloutGroup) -> tuple[int, ...]:
    return group.rollouts[0].token_ids


def _gap(loaded: LoadedPolicy, theirs: RolloutGroup, mine: RolloutGroup) -> float:
    """By how much the trainer prefers its own token where two greedy answers part."""
    a, b = _tokens(theirs), _tokens(mine)
    at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)
    if at is None:
        return float("inf")  # one goes on where the other ends
    return abs(float(score(loaded, theirs, 1.0)[at] - score(loaded, mine, 1.0)[at]))
