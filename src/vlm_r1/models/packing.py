"""Packed rows: prompts once, answers behind them, no padding in any linear layer.

A `PrefixGroup` is one prefix and its completions: a prompt and its G answers, or an image and its many questions with
their answers. Several prefix groups become one row of `N` tokens: `[prefix 1 | ... | prefix P | completion 1 | ... |
completion B]`. A completion's positions go on where its prefix ends, and attention (see `shared_prefix.py`) lets it see
its prefix and itself. The last token of a completion predicts nothing that is scored, so it is a target and not in the
row: a completion of one token has none there.

A completion may have turns before its last tokens: what the model wrote up to a call, and what a tool answered. Each
turn lies in the row once for all completions of its group that begin with it, with its images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

import torch
from torch import Tensor

from vlm_r1.models.layout import Layout, make_layout
from vlm_r1.records import Prompt, ToolTurn, VisionInput


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A part of a completion that ends where a tool has answered: token ids `(T,)`, positions `(3, T)`, and the tool's
    images. The tokens from `context` to `written` are scored: the model's own."""

    token_ids: Tensor
    positions: Tensor
    written: int
    context: int = 0
    images: tuple[VisionInput, ...] = ()

    @property
    def key(self) -> tuple[object, ...]:
        """Turns of equal keys that go on from the same place are the same."""
        return (*self.token_ids.tolist(), self.context, self.written, *(image.key for image in self.images))


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One continuation of a prefix: its turns, if it has any, and its last token ids `(T,)` at positions `(3, T)`, of
    which the first `context` are not scored."""

    token_ids: Tensor
    positions: Tensor
    context: int = 0
    turns: tuple[Turn, ...] = ()

    @property
    def n_tokens(self) -> int:
        """Tokens that run through the model: all but the last."""
        return sum(len(turn.token_ids) for turn in self.turns) + len(self.token_ids) - 1

    @property
    def paths(self) -> list[tuple[object, ...]]:
        """For each turn its key behind those before it: completions of a group share the turns of equal paths."""
        return list(accumulate((turn.key,) for turn in self.turns))

    @property
    def n_scored(self) -> int:
        """Tokens whose log-probs count."""
        return sum(turn.written - turn.context for turn in self.turns) + len(self.token_ids) - self.context


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
        """Tokens of the prefix and all completions that run through the model: shared turns once."""
        own = sum(len(b.token_ids) - 1 for b in self.completions)
        return len(self.token_ids) + own + sum(len(turn.token_ids) for turn in self.turns)

    @property
    def turns(self) -> list[Turn]:
        """The turns of all completions; one that several begin with once."""
        found = {path: turn for b in self.completions for path, turn in zip(b.paths, b.turns, strict=True)}
        return list(found.values())

    @property
    def all_images(self) -> tuple[VisionInput, ...]:
        """The prefix's images and those of all turns."""
        return (*self.images, *(image for turn in self.turns for image in turn.images))


def make_prefix_group(
    prompts: Sequence[Prompt],
    answers: Sequence[Sequence[int]],
    shared: int | None = None,
    turns: Sequence[Sequence[ToolTurn]] | None = None,
) -> PrefixGroup:
    """One prefix with a completion for each answer (the token ids that the model wrote), which follows the prompt at
    the same place; `turns` are what tools wrote into each.

    The prefix is the first `shared` tokens of all prompts, or the whole first prompt, which all then are; what a prompt
    has beyond it is context of its completion. Positions of an answer go on where its prompt's end.
    """
    first = prompts[0]
    tools = turns or [()] * len(prompts)
    shared = len(first.token_ids) if shared is None else shared
    return PrefixGroup(
        token_ids=torch.tensor(first.token_ids[:shared], dtype=torch.long),
        positions=first.positions[:, :shared],
        images=first.images,
        completions=tuple(_completion(p, shared, a, t) for p, a, t in zip(prompts, answers, tools, strict=True)),
        blocks=None if first.blocks is None else first.blocks[:shared],
    )


def _completion(prompt: Prompt, shared: int, answer: Sequence[int], tools: Sequence[ToolTurn]) -> Completion:
    tail, ahead = list(prompt.token_ids[shared:]), [prompt.positions[:, shared:]]
    position, done = prompt.next_position, 0
    turns = []
    for tool in tools:
        own = answer[done : tool.at]
        token_ids = torch.tensor([*tail, *own, *tool.token_ids], dtype=torch.long)
        positions = torch.cat([*ahead, _counting(position, len(own)), tool.positions], 1)
        written = len(tail) + len(own)
        turns.append(
            Turn(token_ids=token_ids, positions=positions, written=written, context=len(tail), images=tool.images)
        )
        tail, ahead, position, done = [], [], tool.next_position, tool.at
    return Completion(
        token_ids=torch.tensor([*tail, *answer[done:]], dtype=torch.long),
        positions=torch.cat([*ahead, _counting(position, len(answer) - done)], 1),
        context=len(tail),
        turns=tuple(turns),
    )


def _counting(start: int, count: int) -> Tensor:
    return (start + torch.arange(count))[None].expand(3, -1)


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedRow:
    """A row of `N` tokens ready for the model, and which of its hidden states predict which scored tokens.

    `predictors` and `targets` are `(U,)`: the hidden state at `predictors[i]` predicts token `targets[i]`. The scored
    tokens of the prefix groups' completions, one after the other, are those at `scored` `(S,)`, which is None where
    that is each once; `completion_of_target` `(S,)` says whose they are. `layout` knows only completions with tokens
    in the row, and turns.
    """

    token_ids: Tensor
    positions: Tensor
    images: tuple[VisionInput, ...]
    layout: Layout
    predictors: Tensor
    targets: Tensor
    completion_of_target: Tensor
    scored: Tensor | None = None

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
            scored=None if self.scored is None else self.scored.to(device),
        )


def pack(groups: Sequence[PrefixGroup]) -> PackedRow:
    """One row from several prefix groups."""
    ends = torch.tensor([len(group.token_ids) for group in groups]).cumsum(0).tolist()
    row, scored, owners = _Branches(start=ends[-1] if ends else 0), [], []
    for number, group in enumerate(groups):
        turns: dict[tuple[object, ...], _Placed] = {}
        for completion in group.completions:
            at, before = -1, ends[number] - 1
            for path, turn in zip(completion.paths, completion.turns, strict=True):
                if path not in turns:
                    whole = (turn.token_ids, turn.positions, slice(turn.context, turn.written))
                    turns[path] = row.add(number, at, before, *whole, run=len(turn.token_ids), images=turn.images)
                at, before = turns[path].number, turns[path].end
                scored.append(turns[path].targets)
            own, last = slice(completion.context, None), len(completion.token_ids) - 1
            placed = row.add(number, at, before, completion.token_ids, completion.positions, own, run=last)
            scored.append(placed.targets)
            owners.append(completion.n_scored)
    every = _cat(scored)
    return PackedRow(
        token_ids=torch.cat([group.token_ids for group in groups] + row.token_ids),
        positions=torch.cat([group.positions for group in groups] + row.positions, 1),
        images=tuple(image for group in groups for image in group.images) + tuple(row.images),
        layout=make_layout(
            [len(group.token_ids) for group in groups],
            [len(ids) for ids in row.token_ids],
            row.groups,
            [group.blocks for group in groups],
            row.parents,
        ),
        predictors=_cat(row.predictors),
        targets=_cat(row.targets),
        completion_of_target=torch.arange(len(owners)).repeat_interleave(torch.tensor(owners, dtype=torch.long)),
        scored=every if any(group.turns for group in groups) else None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Placed:
    """A part of a completion in a row: its number, its last token's place, and which of the targets are its own."""

    number: int
    end: int
    targets: Tensor


@dataclass(slots=True)
class _Branches:
    """What follows the prefixes of a row, which end at `start`; lists run over its parts."""

    start: int
    token_ids: list[Tensor] = field(default_factory=list)
    positions: list[Tensor] = field(default_factory=list)
    groups: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    images: list[VisionInput] = field(default_factory=list)
    predictors: list[Tensor] = field(default_factory=list)
    targets: list[Tensor] = field(default_factory=list)
    n_targets: int = 0

    def add(
        self,
        group: int,
        parent: int,
        before: int,
        token_ids: Tensor,
        positions: Tensor,
        scored: slice,
        *,
        run: int,
        images: Sequence[VisionInput] = (),
    ) -> _Placed:
        """Put the first `run` tokens behind the others; the token at `before` predicts the first."""
        places = torch.cat([torch.tensor([before]), torch.arange(self.start, self.start + run)])[: len(token_ids)]
        self.predictors.append(places[scored])
        self.targets.append(token_ids[scored])
        count = len(self.targets[-1])
        self.n_targets += count
        self.images += images
        self.start += run
        if run:
            self.token_ids.append(token_ids[:run])
            self.positions.append(positions[:, :run])
            self.groups.append(group)
            self.parents.append(parent)
        targets = torch.arange(self.n_targets - count, self.n_targets)
        return _Placed(number=len(self.groups) - 1, end=self.start - 1, targets=targets)


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
    pieces: list[PrefixGroup] = []
    for completion in group.completions:
        wider = replace(group, completions=(*(pieces[-1].completions if pieces else ()), completion))
        if not pieces or wider.n_tokens > budget:
            pieces.append(replace(group, completions=(completion,)))
        else:
            pieces[-1] = wider
    return pieces
