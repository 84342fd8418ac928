"""Packed rows: prompts once, answers behind them, no padding in any linear layer.

A `Tree` is one prefix and its branches: a prompt and its G answers, or an image and its many questions with their
answers. Several trees become one row of `N` tokens: `[prefix 1 | ... | prefix P | branch 1 | ... | branch B]`. A
branch's positions go on where its prefix ends, and attention (see `shared_prefix.py`) lets it see its prefix and
itself. The last token of a branch predicts nothing that is scored, so it is a target and not in the row: a branch of
one token has none there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vlm_r1.models.layout import Layout, make_layout
from vlm_r1.records import Prompt, VisionInput


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """One continuation of a prefix: token ids `(T,)`, positions `(3, T)`; the first `context` tokens are not scored."""

    token_ids: Tensor
    positions: Tensor
    context: int = 0

    @property
    def n_tokens(self) -> int:
        """Tokens that run through the model: all but the last."""
        return len(self.token_ids) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """A prefix of `L` tokens with positions `(3, L)`, its images, its branches, and its blocks `(L,)` (`Layout`)."""

    token_ids: Tensor
    positions: Tensor
    images: tuple[VisionInput, ...]
    branches: tuple[Branch, ...]
    blocks: Tensor | None = None

    @property
    def n_tokens(self) -> int:
        """Tokens of the prefix and all branches that run through the model."""
        return len(self.token_ids) + sum(b.n_tokens for b in self.branches)


def make_tree(prompts: Sequence[Prompt], answers: Sequence[Sequence[int]], shared: int | None = None) -> Tree:
    """One prefix with a branch for each answer (its token ids), which follows the prompt at the same place.

    The prefix is the first `shared` tokens of all prompts, or the whole first prompt, which all then are; what a prompt
    has beyond it is context of its branch. Positions of an answer go on where its prompt's end.
    """
    first = prompts[0]
    shared = len(first.token_ids) if shared is None else shared
    return Tree(
        token_ids=torch.tensor(first.token_ids[:shared], dtype=torch.long),
        positions=first.positions[:, :shared],
        images=first.images,
        branches=tuple(_branch(prompt, shared, ids) for prompt, ids in zip(prompts, answers, strict=True)),
        blocks=None if first.blocks is None else first.blocks[:shared],
    )


def _branch(prompt: Prompt, shared: int, answer: Sequence[int]) -> Branch:
    tail = prompt.token_ids[shared:]
    positions = (prompt.next_position + torch.arange(len(answer)))[None].expand(3, -1)
    return Branch(
        token_ids=torch.tensor([*tail, *answer], dtype=torch.long),
        positions=torch.cat([prompt.positions[:, shared:], positions], 1) if tail else positions,
        context=len(tail),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedRow:
    """A row of `N` tokens ready for the model, and which of its hidden states predict which scored tokens.

    `predictors` and `targets` are `(S,)`: the hidden state at `predictors[i]` predicts token `targets[i]`, which
    belongs to branch `branch_of_target[i]` of the trees' branches. `layout` knows only those with tokens in the row.
    """

    token_ids: Tensor
    positions: Tensor
    images: tuple[VisionInput, ...]
    layout: Layout
    predictors: Tensor
    targets: Tensor
    branch_of_target: Tensor

    def to(self, device: torch.device) -> PackedRow:
        """The same row on a device; images follow when they are encoded."""
        if device == self.token_ids.device:
            return self
        return PackedRow(
            token_ids=self.token_ids.to(device),
            positions=self.positions.to(device),
            images=self.images,
            layout=self.layout.to(device),
            predictors=self.predictors.to(device),
            targets=self.targets.to(device),
            branch_of_target=self.branch_of_target.to(device),
        )


def pack(trees: Sequence[Tree]) -> PackedRow:
    """One row from several trees."""
    branches = [(number, branch) for number, tree in enumerate(trees) for branch in tree.branches]
    prefix_lengths = [len(tree.token_ids) for tree in trees]
    run = [(number, branch) for number, branch in branches if branch.n_tokens]
    blocks = [tree.blocks for tree in trees]
    layout = make_layout(prefix_lengths, [branch.n_tokens for _, branch in run], [number for number, _ in run], blocks)
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
        start += branch.n_tokens
    return PackedRow(
        token_ids=torch.cat([t.token_ids for t in trees] + [b.token_ids[:-1] for _, b in run]),
        positions=torch.cat([t.positions for t in trees] + [b.positions[:, :-1] for _, b in run], 1),
        images=tuple(image for tree in trees for image in tree.images),
        layout=layout,
        predictors=_cat(predictors),
        targets=_cat(targets),
        branch_of_target=_cat(owners),
    )


def _cat(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.long)


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
        if not pieces or len(tree.token_ids) + used + branch.n_tokens > budget:
            pieces.append([])
            used = 0
        pieces[-1].append(branch)
        used += branch.n_tokens
    return [replace(tree, branches=tuple(piece)) for piece in pieces]
