"""From scored rollouts to what one update needs: prefix groups for the model, and numbers for each answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_r1.models.packing import PrefixGroup, cut_by_budget, make_prefix_group
from vlm_r1.records import RolloutGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainBatch:
    """The groups that an update runs over, as prefix groups, with numbers per answer in the prefix groups' order.

    `advantages_B`, `weights_B` (the weight of each token of an answer in the loss, normalised over the whole step of
    all processes) and `sampler_B` (the sampler's log-probs of its tokens) have one entry per kept answer. `finite` says
    that the log-probs of all answers were finite; groups where they are not are left out.
    """

    prefix_groups: tuple[PrefixGroup, ...]
    advantages_B: Tensor
    weights_B: Tensor
    sampler_B: tuple[Tensor, ...]
    finite: bool = True

    @property
    def n_prompt_tokens(self) -> int:
        """Prompt tokens that the update runs through the model."""
        return sum(len(prefix_group.token_ids) for prefix_group in self.prefix_groups)

    @property
    def n_answer_tokens(self) -> int:
        """Answer tokens that the update runs through the model, those of tools too: all but each answer's last."""
        return sum(prefix_group.n_tokens - len(prefix_group.token_ids) for prefix_group in self.prefix_groups)

    def cut(self, budget: int) -> list[TrainBatch]:
        """The batch in rows of at most `budget` tokens, in order."""
        rows, start = [], 0
        for prefix_groups in cut_by_budget(self.prefix_groups, budget):
            stop = start + sum(len(prefix_group.completions) for prefix_group in prefix_groups)
            rows.append(
                TrainBatch(
                    prefix_groups=tuple(prefix_groups),
                    advantages_B=self.advantages_B[start:stop],
                    weights_B=self.weights_B[start:stop],
                    sampler_B=self.sampler_B[start:stop],
                )
            )
            start = stop
        return rows


EMPTY = TrainBatch(prefix_groups=(), advantages_B=torch.zeros(0), weights_B=torch.zeros(0), sampler_B=())


def as_prefix_group(group: RolloutGroup) -> PrefixGroup:
    """A prompt and its answers; positions of each answer go on where the prompt's end."""
    answers = group.rollouts
    turns = [rollout.turns for rollout in answers]
    return make_prefix_group([group.prompt] * len(answers), [r.token_ids for r in answers], turns=turns)


def make_batch(
    groups: Sequence[RolloutGroup], advantages_PG: Tensor, weights_PG: Tensor, *, keep_all: bool
) -> TrainBatch:
    """The batch of a step, without groups whose advantages are all zero unless `keep_all` (a KL term needs them)."""
    finite = [all(math.isfinite(sum(rollout.logprobs)) for rollout in group.rollouts) for group in groups]
    kept = [p for p in range(len(groups)) if finite[p] and (keep_all or bool(advantages_PG[p].any()))]
    return TrainBatch(
        prefix_groups=tuple(as_prefix_group(groups[p]) for p in kept),
        advantages_B=advantages_PG[kept].flatten(),
        weights_B=weights_PG[kept].flatten(),
        sampler_B=tuple(logprobs for p in kept for logprobs in _sampler(groups[p])),
        finite=all(finite),
    )


def _sampler(group: RolloutGroup) -> tuple[Tensor, ...]:
    flat = torch.tensor([logprob for rollout in group.rollouts for logprob in rollout.logprobs], dtype=torch.float32)
    return flat.split([len(rollout.logprobs) for rollout in group.rollouts])
