"""Going on from a rollout's prefill: the prompt (tower included) runs once in the whole step.

Where the update is on-policy and everything fits in one row, the rollout's prompt pass keeps its graph and the
answers run over its keys, values and states; the gradient is the packed row's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor, nn

from vlm_r1.models.layout import Layout, Rule, pad_index
from vlm_r1.models.packing import PackedRow
from vlm_r1.models.policy import Policy
from vlm_r1.models.recurrent import recur_branches
from vlm_r1.models.shared_prefix import attend_branches
from vlm_r1.rollout.cache import Prefill


class HasGroups(Protocol):
    """What says which of a prefill's prompts a row holds."""

    @property
    def group_numbers(self) -> Sequence[int]:
        """Numbers of the prompts, in the row's order."""


class Continuation:
    """The layout of answers alone, over a prefill's keys, values and states."""

    def __init__(self, prefill: Prefill, layout: Layout) -> None:
        self.prefill, self.layout = prefill, layout

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
        """Attention of the answers over their prompt and themselves."""
        keys, values = self.prefill.keys[layer], self.prefill.values[layer]
        return attend_branches(self.layout, query, key, value, keys, values, rule)[None]

    def recur(self, layer: nn.Module, hidden: Tensor) -> Tensor:
        """A recurrent layer over the answers, from their prompt's states."""
        return recur_branches(self.layout, layer, hidden, self.prefill.states[layer.layer_idx])  # type: ignore[index]


def continued_row(
    policy: Policy, prefill: Prefill, part: HasGroups, row: PackedRow, temperature: float
) -> tuple[Tensor, Tensor]:
    """Log-prob and entropy `(S,)` of a row's scored tokens, like `policy(row)`, without running its prompts again.

    `part.group_numbers` are the prompts of `prefill` that the row's trees are about, in order.
    """
    device = row.token_ids.device
    n_prefix = row.layout.n_prefix
    prompt_of_tree = torch.tensor(list(part.group_numbers), device=device)
    prompt_of_branch = prompt_of_tree[row.layout.tree_of_branch]
    lengths = torch.bincount(row.branch_of_target, minlength=len(prompt_of_branch))
    index, unpad = pad_index(lengths.tolist())
    layout = replace(
        prefill.layout,
        n_prefix=0,
        branch_index=index.to(device),
        branch_unpad=unpad.to(device),
        tree_of_branch=prompt_of_branch,
        _masks={},
    )
    hidden = policy.hidden(row.token_ids[n_prefix:], row.positions[:, n_prefix:], {}, Continuation(prefill, layout))
    starts = row.predictors < n_prefix  # an answer's first token is predicted by its prompt's last hidden state
    own = (row.predictors - n_prefix + len(prefill.lengths)).clamp(min=0)
    source = torch.where(starts, prompt_of_branch[row.branch_of_target], own)
    states = torch.cat([prefill.last_hidden, hidden])[source]
    return policy.score(states, row.targets, temperature)
