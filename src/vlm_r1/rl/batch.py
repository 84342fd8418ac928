"""From scored rollouts to what one update needs: trees for the model, and numbers for each answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_r1.models.packing import Branch, Tree
from vlm_r1.records import RolloutGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainBatch:
    """The groups that an update runs over, as trees, with numbers per answer in the trees' order.

    `advantages_B` and `weights_B` (the weight of each token of an answer in the loss, normalised over the whole step)
    have one entry per kept answer; `group_numbers` says which of the step's groups were kept.
    """

    trees: tuple[Tree, ...]
    advantages_B: Tensor
    weights_B: Tensor
    group_numbers: tuple[int, ...]

    @property
    def n_prompt_tokens(self) -> int:
        """Prompt tokens that the update runs through the model."""
        return sum(len(tree.token_ids) for tree in self.trees)

    @property
    def n_answer_tokens(self) -> int:
        """Answer tokens that the update runs through the model."""
        return sum(len(branch.token_ids) for tree in self.trees for branch in tree.branches)


def group_tree(group: RolloutGroup) -> Tree:
    """A prompt and its answers; positions of each answer go on where the prompt's end."""
    prompt = group.prompt
    branches = []
    for rollout in group.rollouts:
        positions = prompt.next_position + torch.arange(len(rollout.token_ids))
        branches.append(Branch(token_ids=torch.tensor(rollout.token_ids), positions=positions[None].expand(3, -1)))
    return Tree(
        token_ids=torch.tensor(prompt.token_ids),
        positions=prompt.positions,
        pictures=prompt.pictures,
        branches=tuple(branches),
        blocks=prompt.blocks,
    )


def make_batch(
    groups: Sequence[RolloutGroup], advantages_PG: Tensor, weights_PG: Tensor, *, keep_all: bool, keep_one: bool = False
) -> TrainBatch:
    """The batch of a step, without groups whose advantages are all zero unless `keep_all` (a KL term needs them).

    `keep_one` keeps the first group where none would be left: with several processes each must take part in the
    backward.
    """
    kept = [p for p in range(len(groups)) if keep_all or bool(advantages_PG[p].any())]
    kept = kept or ([0] if keep_one and groups else [])
    return TrainBatch(
        trees=tuple(group_tree(groups[p]) for p in kept),
        advantages_B=advantages_PG[kept].flatten(),
        weights_B=weights_PG[kept].flatten(),
        group_numbers=tuple(kept),
    )
