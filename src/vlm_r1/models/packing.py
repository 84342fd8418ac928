"""Packed rows: prompts once, answers behind them, no padding in any linear layer.

A `Tree` is one prefix and its branches: a prompt and its G answers, or a picture and its many questions with their
answers. Several trees become one row of `N` tokens: `[prefix 1 | ... | prefix P | branch 1 | ... | branch B]`. A
branch's positions go on where its prefix ends, and attention (see `shared_prefix.py`) lets it see its prefix and
itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """One continuation of a prefix: token ids `(T,)`, positions `(3, T)`; the first `context` tokens are not scored."""

    token_ids: Tensor
    positions: Tensor
    context: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """A prefix of `L` tokens with positions `(3, L)`, its vision inputs, and its branches."""

    token_ids: Tensor
    positions: Tensor
    vision: Mapping[str, Tensor]
    branches: tuple[Branch, ...]

    @property
    def n_tokens(self) -> int:
        """Tokens of the prefix and all branches."""
        return len(self.token_ids) + sum(len(b.token_ids) for b in self.branches)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where prefixes and branches lie in a packed row, as attention needs it.

    `prefix_index` `(P, Lmax)` and `branch_index` `(B, Tmax)` point into the row (padding points at the entry's last
    token); `prefix_unpad` and `branch_unpad` take the flattened padded tensors back to row order; `tree_of_branch`
    `(B,)`; `mask` `(B, 1, Tmax, Lmax + Tmax)` is True where a branch token may look: its prefix, then itself up to
    here.
    """

    n_prefix: int
    prefix_index: Tensor
    prefix_unpad: Tensor
    branch_index: Tensor
    branch_unpad: Tensor
    tree_of_branch: Tensor
    mask: Tensor

    def to(self, device: torch.device) -> Layout:
        """The same layout on a device."""
        names = [name for name in Layout.__slots__ if name != "n_prefix"]
        return Layout(n_prefix=self.n_prefix, **{name: getattr(self, name).to(device) for name in names})


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedRow:
    """A row of `N` tokens ready for the model, and which of its hidden states predict which scored tokens.

    `predictors` and `targets` are `(S,)`: the hidden state at `predictors[i]` predicts token `targets[i]`, which
    belongs to branch `branch_of_target[i]` of the row.
    """

    token_ids: Tensor
    positions: Tensor
    vision: Mapping[str, Tensor]
    layout: Layout
    predictors: Tensor
    targets: Tensor
    branch_of_target: Tensor

    def to(self, device: torch.device) -> PackedRow:
        """The same row on a device."""
        if device == self.token_ids.device:
            return self
        return PackedRow(
            token_ids=self.token_ids.to(device),
            positions=self.positions.to(device),
            vision={name: value.to(device) for name, value in self.vision.items()},
            layout=self.layout.to(device),
            predictors=self.predictors.to(device),
            targets=self.targets.to(device),
            branch_of_target=self.branch_of_target.to(device),
        )


def pad_index(lengths: Sequence[int], offset: int = 0) -> tuple[Tensor, Tensor]:
    """Index of consecutive runs as a padded matrix, and its inverse.

    `lengths` are the R runs' lengths, laid one after the other from `offset`. Returns `(R, max)` indices (padding
    repeats the run's last token, so that it stays finite) and the flat positions of the real entries in row order.
    """
    lengths_R = torch.tensor(lengths, dtype=torch.long)
    width = int(lengths_R.max()) if len(lengths) else 0
    starts_R = torch.cumsum(lengths_R, 0) - lengths_R
    column = torch.arange(width)
    index = starts_R[:, None] + torch.minimum(column[None], (lengths_R - 1).clamp(min=0)[:, None]) + offset
    real = column[None] < lengths_R[:, None]
    return index, real.flatten().nonzero()[:, 0]


def make_layout(prefix_lengths: Sequence[int], branch_lengths: Sequence[int], tree_of_branch: Sequence[int]) -> Layout:
    """The layout of prefixes of these lengths followed by branches of these lengths, branch b hanging on its tree."""
    n_prefix = sum(prefix_lengths)
    prefix_index, prefix_unpad = pad_index(prefix_lengths)
    branch_index, branch_unpad = pad_index(branch_lengths, n_prefix)
    tree = torch.tensor(tree_of_branch, dtype=torch.long)
    prefix_lengths_B = torch.tensor(prefix_lengths, dtype=torch.long)[tree]
    return Layout(
        n_prefix=n_prefix,
        prefix_index=prefix_index,
        prefix_unpad=prefix_unpad,
        branch_index=branch_index,
        branch_unpad=branch_unpad,
        tree_of_branch=tree,
        mask=branch_mask(prefix_lengths_B, prefix_index.shape[1], branch_index.shape[1]),
    )


def branch_mask(prefix_lengths_B: Tensor, prefix_width: int, branch_width: int) -> Tensor:
    """`(B, 1, T, L + T)`: a branch token sees its whole prefix and its own branch up to itself."""
    B = len(prefix_lengths_B)
    seen = torch.arange(prefix_width)[None] < prefix_lengths_B[:, None]
    own = torch.ones(branch_width, branch_width, dtype=torch.bool).tril()
    seen = seen[:, None, None].expand(B, 1, branch_width, prefix_width)
    return torch.cat([seen, own[None, None].expand(B, 1, branch_width, branch_width)], -1)


def pack(trees: Sequence[Tree]) -> PackedRow:
    """One row from several trees."""
    branches = [(number, branch) for number, tree in enumerate(trees) for branch in tree.branches]
    prefix_lengths = [len(tree.token_ids) for tree in trees]
    branch_lengths = [len(branch.token_ids) for _, branch in branches]
    layout = make_layout(prefix_lengths, branch_lengths, [number for number, _ in branches])
    prefix_ends = torch.tensor(prefix_lengths).cumsum(0) - 1
    predictors, targets, owners = [], [], []
    start = layout.n_prefix
    for b, (number, branch) in enumerate(branches):
        length = len(branch.token_ids)
        before = torch.arange(start - 1, start + length - 1)
        before[:1] = prefix_ends[number]
        predictors.append(before[branch.context :])
        targets.append(branch.token_ids[branch.context :])
        owners.append(torch.full((length - branch.context,), b))
        start += length
    return PackedRow(
        token_ids=torch.cat([t.token_ids for t in trees] + [b.token_ids for _, b in branches]),
        positions=torch.cat([t.positions for t in trees] + [b.positions for _, b in branches], 1),
        vision=merge_vision([t.vision for t in trees]),
        layout=layout,
        predictors=_cat(predictors),
        targets=_cat(targets),
        branch_of_target=_cat(owners),
    )


def _cat(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.long)


def merge_vision(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Vision inputs of several prompts, one after the other; prompts without pictures add nothing."""
    names = {name: None for part in parts for name in part}
    return {name: torch.cat([part[name] for part in parts if name in part]) for name in names}


def cut_by_budget(trees: Sequence[Tree], budget: int) -> list[list[Tree]]:
    """Trees into rows of at most `budget` tokens, in order.

    A tree that is over the budget by itself is split into sub-trees that share its prefix (each with at least one
    branch).
    """
    rows: list[list[Tree]] = []
    used = budget
    for tree in trees:
        for piece in _split(tree, budget):
            if used + piece.n_tokens > budget or not rows:
                rows.append([])
                used = 0
            rows[-1].append(piece)
            used += piece.n_tokens
    return rows


def _split(tree: Tree, budget: int) -> list[Tree]:
    if tree.n_tokens <= budget or len(tree.branches) < 2:
        return [tree]
    pieces: list[list[Branch]] = []
    used = 0
    for branch in tree.branches:
        length = len(branch.token_ids)
        if not pieces or len(tree.token_ids) + used + length > budget:
            pieces.append([])
            used = 0
        pieces[-1].append(branch)
        used += length
    return [
        Tree(token_ids=tree.token_ids, positions=tree.positions, vision=tree.vision, branches=tuple(piece))
        for piece in pieces
    ]
