"""Packed rows: prompts once, answers behind them, no padding in any linear layer.

A `PrefixGroup` is one prefix and its completions: a prompt and its G answers, or an image and its many questions with
their answers. Several prefix groups become one row of `N` tokens: `[prefix 1 | ... | prefix P | completion 1 | ... |
completion B]`. A completion's positions go on where its prefix ends, and attention (see `shared_prefix.py`) lets it see
its prefix and itself. The last token of a completion predicts nothing that is scored, so it is a target and not in the
row: a completion of one token has none there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vlm_r1.models.layout import Layout, make_layout
from vlm_r1.records import Prompt, VisionInput


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One continuation of a prefix: token ids `(T,)`, positions `(3, T)`; the first `context` tokens are not scored."""

    token_ids: Tensor
    positions: Tensor
    context: int = 0

    @property
    def n_tokens(self) -> int:
        """Tokens that run through the model: all but the last."""
        return len(self.token_ids) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixGroup:
    """A prefix of `L` tokens with positions `(3, L)`, its images, its completions, and its blocks `(L,)` (`Layout`)."""

    token_ids: Tensor
    positions: Tensor
    images: tuple[VisionInput, ...]
    completions: tuple[Completion, ...]
    blocks: Tensor | None = None

    @property
    def n_tokens(self) -> int:
        """Tokens of the prefix and all completions that run through the model."""
        return len(self.token_ids) + sum(b.n_tokens for b in self.completions)


def make_prefix_group(
    prompts: Sequence[Prompt], answers: Sequence[Sequence[int]], shared: int | None = None
) -> PrefixGroup:
    """One prefix with a completion for each answer (its token ids), which follows the prompt at the same place.

    The prefix is the first `shared` tokens of all prompts, or the whole first prompt, which all then are; what a prompt
    has beyond it is context of its completion. Positions of an answer go on where its prompt's end.
    """
    first = prompts[0]
    shared = len(first.token_ids) if shared is None else shared
    return PrefixGroup(
        token_ids=torch.tensor(first.token_ids[:shared], dtype=torch.long),
        positions=first.positions[:, :shared],
        images=first.images,
        completions=tuple(_completion(prompt, shared, ids) for prompt, ids in zip(prompts, answers, strict=True)),
        blocks=None if first.blocks is None else first.blocks[:shared],
    )


def _completion(prompt: Prompt, shared: int, answer: Sequence[int]) -> Completion:
    tail = prompt.token_ids[shared:]
    positions = (prompt.next_position + torch.arange(len(answer)))[None].expand(3, -1)
    return Completion(
        token_ids=torch.tensor([*tail, *answer], dtype=torch.long),
        positions=torch.cat([prompt.positions[:, shared:], positions], 1) if tail else positions,
        context=len(tail),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedRow:
    """A row of `N` tokens ready for the model, and which of its hidden states predict which scored tokens.

    `predictors` and `targets` are `(S,)`: the hidden state at `predictors[i]` predicts token `targets[i]`, which
    belongs to completion `completion_of_target[i]` of the prefix groups' completions. `layout` knows only those with
    tokens in the row.
    """

    token_ids: Tensor
    positions: Tensor
    images: tuple[VisionInput, ...]
    layout: Layout
    predictors: Tensor
    targets: Tensor
    completion_of_target: Tensor

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
            completion_of_target=self.completion_of_target.to(device),
        )


def pack(groups: Sequence[PrefixGroup]) -> PackedRow:
    """One row from several prefix groups."""
    completions = [(number, completion) for number, group in enumerate(groups) for completion in group.completions]
    prefix_lengths = [len(group.token_ids) for group in groups]
    run = [(number, completion) for number, completion in completions if completion.n_tokens]
    blocks = [group.blocks for group in groups]
    layout = make_layout(
        prefix_lengths, [completion.n_tokens for _, completion in run], [number for number, _ in run], blocks
    )
    prefix_ends = torch.tensor(prefix_lengths).cumsum(0) - 1
    predictors, targets, owners = [], [], []
    start = layout.n_prefix
    for b, (number, completion) in enumerate(completions):
        length = len(completion.token_ids)
        before = torch.arange(start - 1, start + length - 1)
        before[:1] = prefix_ends[number]
        predictors.append(before[completion.context :])
        targets.append(completion.token_ids[completion.context :])
        owners.append(torch.full((length - completion.context,), b))
        start += completion.n_tokens
    return PackedRow(
        token_ids=torch.cat([t.token_ids for t in groups] + [b.token_ids[:-1] for _, b in run]),
        positions=torch.cat([t.positions for t in groups] + [b.positions[:, :-1] for _, b in run], 1),
        images=tuple(image for group in groups for image in group.images),
        layout=layout,
        predictors=_cat(predictors),
        targets=_cat(targets),
        completion_of_target=_cat(owners),
    )


def _cat(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.long)


def cut_by_budget(groups: Sequence[PrefixGroup], budget: int) -> list[list[PrefixGroup]]:
    """Prefix groups into rows of at most `budget` tokens, in order.

    A prefix group that is over the budget by itself is split into groups of fewer completions that share its prefix
    (each with at least one completion).
    """
    rows: list[list[PrefixGroup]] = []
    used = budget
    for group in groups:
        for piece in _split(group, budget):
            if used + piece.n_tokens > budget or not rows:
                rows.append([])
                used = 0
            rows[-1].append(piece)
            used += piece.n_tokens
    return rows


def _split(group: PrefixGroup, budget: int) -> list[PrefixGroup]:
    if group.n_tokens <= budget or len(group.completions) < 2:
        return [group]
    pieces: list[list[Completion]] = []
    used = 0
    for completion in group.completions:
        if not pieces or len(group.token_ids) + used + completion.n_tokens > budget:
            pieces.append([])
            used = 0
        pieces[-1].append(completion)
        used += completion.n_tokens
    return [replace(group, completions=tuple(piece)) for piece in pieces]
