"""Where prefixes and completions lie in a packed row, and which tokens may look at which."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from vlm_r1.models.flash import Runs

CAUSAL, WHOLE = -1, -2
"""Block numbers of prefix tokens that see what lies before them, and of those that see each other at any distance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """How a layer weighs the tokens it sees: `softmax(cap(scaling * q k))` over at most `window` tokens.

    `scaling` None is `d ** -0.5`; `window` counts the token itself; `softcap` c bounds scores by `c * tanh(score / c)`
    (Gemma 2, section 2 of its report). `backend` is one of `shared_prefix.BACKENDS`.
    """

    scaling: float | None = None
    window: int | None = None
    softcap: float | None = None
    backend: str = "auto"

    def plain(self, layout: Layout) -> bool:
        """Whether tokens of a row see all that lies before them, with scores as they are."""
        width = layout.prefixes.longest + layout.above_index.shape[1] + layout.completions.longest
        return layout.blocks is None and self.softcap is None and (self.window is None or self.window >= width)


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """The turns of one depth of a row, and all that goes on from each of them.

    `keys_at` and `queries_at` are their places behind the prefixes; run i of `queries` sees the whole of run i of
    `keys`.
    """

    keys_at: Tensor
    keys: Runs
    queries_at: Tensor
    queries: Runs

    def to(self, device: torch.device) -> Level:
        """The same level on a device."""
        return Level(**{name: getattr(self, name).to(device) for name in Level.__slots__})


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """P prefixes and B completions of a row, as attention needs them.

    A completion goes on from its prefix, or from another completion (a turn): it sees all that it goes on from.

    `prefix_index` `(P, L)` and `completion_index` `(B, T)` point into the row (padding points at the entry's last
    token); `prefix_unpad` and `completion_unpad` take the flattened padded tensors back to row order;
    `group_of_completion` `(B,)`; `prefix_lengths` `(P,)`. `above_index` `(B, A)` points to the tokens of the turns that
    a completion goes on from, of which there are `above_lengths` `(B,)`; `parents` are the turns' numbers themselves,
    -1 for a prefix, and `levels` are the turns by depth. `blocks` `(P, L)`, where a family has them, numbers groups of
    prefix tokens that see each other both ways: from 0 up within a layer's window, `WHOLE` whatever the window;
    `CAUSAL` tokens do not. `prefixes`, `completions` and `per_group` (the tokens of all completions of each
    prefix group) are the row's runs.
    """

    n_prefix: int
    prefix_index: Tensor
    prefix_unpad: Tensor
    completion_index: Tensor
    completion_unpad: Tensor
    group_of_completion: Tensor
    prefix_lengths: Tensor
    prefixes: Runs
    completions: Runs
    per_group: Runs
    above_index: Tensor
    above_lengths: Tensor
    parents: tuple[int, ...] = ()
    levels: tuple[Level, ...] = ()
    blocks: Tensor | None = None
    _masks: dict[tuple[str, int | None], Tensor] = field(default_factory=dict, compare=False, repr=False)

    def to(self, device: torch.device) -> Layout:
        """The same layout on a device."""
        values = ((name, getattr(self, name)) for name in Layout.__slots__)
        moved: dict[str, Any] = {name: v.to(device) for name, v in values if isinstance(v, (Tensor, Runs))}
        return replace(self, **moved, levels=tuple(level.to(device) for level in self.levels), _masks={})

    def prefix_mask(self, window: int | None) -> Tensor | None:
        """`(P, 1, L, L)`: which prefix tokens a prefix token sees; None where that is plain causal."""
        width = self.prefix_index.shape[1]
        window = None if window is None or window >= width else window
        if self.blocks is None and window is None:
            return None
        return self._cached("prefix", window, self._make_prefix_mask)

    def completion_mask(self, window: int | None) -> Tensor:
        """`(B, 1, T, L + A + T)`: a completion token sees its whole prefix, the turns that it goes on from, and its own
        completion up to itself."""
        width = self.prefix_index.shape[1] + self.above_index.shape[1] + self.completion_index.shape[1]
        window = None if window is None or window >= width else window
        return self._cached("completion", window, self._make_completion_mask)

    def _cached(self, kind: str, window: int | None, make: object) -> Tensor:
        if (kind, window) not in self._masks:
            self._masks[kind, window] = make(window)  # type: ignore[operator]
        return self._masks[kind, window]

    def _make_prefix_mask(self, window: int | None) -> Tensor:
        place = torch.arange(self.prefix_index.shape[1], device=self.prefix_index.device)
        seen = (place[:, None] >= place[None])[None]
        if self.blocks is not None:
            seen = seen | self._same_block(self.blocks >= 0)
        if window is not None:
            seen = seen & (place[None] > place[:, None] - window)
        if self.blocks is not None:
            seen = seen | self._same_block(self.blocks == WHOLE)
        return seen[:, None]

    def _same_block(self, counts: Tensor) -> Tensor:
        """`(P, L, L)`: tokens of the same block, of the blocks that count."""
        assert self.blocks is not None
        return (self.blocks[:, :, None] == self.blocks[:, None]) & counts[:, None]

    def _make_completion_mask(self, window: int | None) -> Tensor:
        device = self.prefix_index.device
        L, T = self.prefix_index.shape[1], self.completion_index.shape[1]
        lengths_B = self.prefix_lengths[self.group_of_completion][:, None, None]
        above_B = self.above_lengths[:, None, None]
        at_T, at_L, at_A = (torch.arange(n, device=device) for n in (T, L, self.above_index.shape[1]))
        prefix = (at_L < lengths_B).expand(-1, T, L)
        above = (at_A < above_B).expand(-1, T, -1)
        own = (at_T[:, None] >= at_T[None])[None].expand(len(lengths_B), T, T)
        if window is not None:
            prefix = prefix & (at_L > lengths_B + above_B + at_T[:, None] - window)
            above = above & (at_A > above_B + at_T[:, None] - window)
            own = own & (at_T[None] > at_T[:, None] - window)
        return torch.cat([prefix, above, own], -1)[:, None]


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


def make_layout(
    prefix_lengths: Sequence[int],
    completion_lengths: Sequence[int],
    group_of_completion: Sequence[int],
    blocks: Sequence[Tensor | None] = (),
    parents: Sequence[int] | None = None,
) -> Layout:
    """The layout of prefixes of these lengths followed by completions of these lengths, completion b hanging on its
    prefix group, or on completion `parents[b]`, which comes before it (-1: on the prefix).

    Branches are in the order of their prefix groups. `blocks` holds each prefix's block numbers `(L,)`, or None for a
    plain causal one.
    """
    hung_on = tuple(parents or [-1] * len(completion_lengths))
    above = _above(hung_on)
    starts = torch.tensor((0, *completion_lengths)).cumsum(0).tolist()
    tokens = [[t for c in path for t in range(starts[c], starts[c + 1])] for path in above]
    width = max(map(len, tokens), default=0)
    n_prefix = sum(prefix_lengths)
    prefix_index, prefix_unpad = pad_index(prefix_lengths)
    completion_index, completion_unpad = pad_index(completion_lengths, n_prefix)
    per_group = [0] * len(prefix_lengths)
    for group, length in zip(group_of_completion, completion_lengths, strict=True):
        per_group[group] += length
    return Layout(
        n_prefix=n_prefix,
        prefix_index=prefix_index,
        prefix_unpad=prefix_unpad,
        completion_index=completion_index,
        completion_unpad=completion_unpad,
        group_of_completion=torch.tensor(group_of_completion, dtype=torch.long),
        prefix_lengths=torch.tensor(prefix_lengths, dtype=torch.long),
        prefixes=Runs.of(prefix_lengths),
        completions=Runs.of(completion_lengths),
        per_group=Runs.of(per_group),
        above_index=torch.tensor([[*row, *[0] * (width - len(row))] for row in tokens], dtype=torch.long).view(
            len(tokens), width
        ),
        above_lengths=torch.tensor([len(row) for row in tokens], dtype=torch.long),
        parents=hung_on,
        levels=tuple(_levels(above, starts)),
        blocks=_padded_blocks(blocks, prefix_index.shape),
    )


def _above(parents: Sequence[int]) -> list[tuple[int, ...]]:
    """The turns that each completion goes on from, the first one first."""
    found: list[tuple[int, ...]] = []
    for parent in parents:
        found.append((*found[parent], parent) if parent >= 0 else ())
    return found


def _levels(above: Sequence[tuple[int, ...]], starts: Sequence[int]) -> Iterator[Level]:
    for depth in range(max(map(len, above), default=0)):
        turns = list(dict.fromkeys(path[depth] for path in above if len(path) > depth))
        behind = [[c for c, path in enumerate(above) if turn in path[depth : depth + 1]] for turn in turns]
        keys = [list(range(starts[turn], starts[turn + 1])) for turn in turns]
        queries = [[t for c in run for t in range(starts[c], starts[c + 1])] for run in behind]
        at = [torch.tensor([t for run in runs for t in run], dtype=torch.long) for runs in (keys, queries)]
        lengths = [[len(run) for run in runs] for runs in (keys, queries)]
        yield Level(keys_at=at[0], keys=Runs.of(lengths[0]), queries_at=at[1], queries=Runs.of(lengths[1]))


def _padded_blocks(blocks: Sequence[Tensor | None], shape: torch.Size) -> Tensor | None:
    if all(block is None for block in blocks):
        return None
    padded = torch.full(shape, CAUSAL)
    for row, block in enumerate(blocks):
        if block is not None:
            padded[row, : len(block)] = block
    return padded
