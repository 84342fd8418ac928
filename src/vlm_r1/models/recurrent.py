"""Recurrent layers over packed rows: the prompt's state is computed once, and every answer goes on from it.

A gated delta net carries a state from token to token, so one answer of a row cannot stand behind another. Inside such a
layer the prefixes run as one batch, and the completions as a second one that starts from their prefix's states. The
layer's projections, convolution and delta rule are the model's own. All of it happens within one call of the layer, so
gradient checkpointing works as for any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlm_r1.models.layout import Layout


@dataclass(slots=True)
class State:
    """What a layer carries for R rows: the last inputs of its convolution `(R, C, K)` and its memory `(R, H, k, v)`.

    It is the cache that a layer is given, as transformers' layers use theirs, and is replaced after each call instead
    of written in place: the graph stays whole.
    """

    conv: Tensor | None = None
    memory: Tensor | None = None

    def take(self, rows: Tensor) -> State:
        """The states of these rows `(R',)`, which may repeat."""
        assert self.conv is not None and self.memory is not None
        return State(self.conv[rows], self.memory[rows])

    @staticmethod
    def joined(states: Sequence[State]) -> State:
        """The rows of several states, one after the other."""
        return State(*(torch.cat([getattr(one, name) for one in states]) for name in ("conv", "memory")))

    def restore(self, before: State, rows: Tensor) -> None:
        """Take the states of these rows `(R,)` (bool) from those before; each only once there was one."""
        for name in ("conv", "memory"):
            old, new = getattr(before, name), getattr(self, name)
            if old is not None:
                setattr(self, name, torch.where(rows.view(-1, *[1] * (new.ndim - 1)), old, new))

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        """Inputs of the convolution before the next token; None before the first one."""
        return self.conv

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        """The memory; None before the first token."""
        return self.memory

    def is_recording_past(self, layer_idx: int) -> bool:
        """True: the layer takes its general path also for one token; the other one writes into the state."""
        return True

    def update_conv_state(self, inputs: Tensor, layer_idx: int, conv_kernel_size: int, **_: Any) -> Tensor:
        """Add inputs `(R, C, T)`; returns what the convolution runs over, `(R, C, K + T)` or, at first, `(R, C, T)`."""
        full = inputs if self.conv is None else torch.cat([self.conv, inputs], -1)
        self.conv = F.pad(full, (max(0, conv_kernel_size - full.shape[-1]), 0))[..., -conv_kernel_size:]
        return full

    def update_recurrent_state(self, memory: Tensor, layer_idx: int, **_: Any) -> None:
        """Replace the memory."""
        self.memory = memory


class Recurs(Protocol):
    """A layout with states of its own, as rollouts have."""

    def recur(self, layer: nn.Module, hidden: Tensor) -> Tensor:
        """One layer's output `(N, D)` for inputs `(N, D)`."""


def share_states(layer: nn.Module) -> None:
    """Make a recurrent layer follow the layout that reaches it as a keyword; without one it is unchanged."""
    layer.forward = _Forward(layer)  # type: ignore[method-assign,assignment]


class _Forward:
    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer

    def __call__(self, hidden_states: Tensor, *, layout: Layout | Recurs | None = None, **kwargs: Any) -> Tensor:
        if layout is None:
            return type(self.layer).forward(self.layer, hidden_states, **kwargs)  # type: ignore[no-any-return]
        if isinstance(layout, Layout):
            return recur_packed(layout, self.layer, hidden_states[0])[None]
        return layout.recur(self.layer, hidden_states[0])[None]


def run(layer: nn.Module, hidden: Tensor, state: State) -> Tensor:
    """The layer's own forward on `(R, T, D)`, going on from `state`, which it replaces."""
    return type(layer).forward(layer, hidden, cache_params=state)  # type: ignore[no-any-return]


def recur_packed(layout: Layout, layer: nn.Module, hidden: Tensor) -> Tensor:
    """Prefixes by themselves; completions from their prefix's states. In and out `(N, D)`."""
    out, state = recur_prefix(layout, layer, hidden)
    if len(layout.group_of_completion):
        out = torch.cat([out, recur_completions(layout, layer, hidden, state)])
    return out


def recur_prefix(layout: Layout, layer: nn.Module, hidden: Tensor) -> tuple[Tensor, State]:
    """The prefixes' output `(N_prefix, D)` and their states.

    They are padded on the left with zeros, which leave both states zero, so that all end together.
    """
    P, L = layout.prefix_index.shape
    place = layout.prefix_unpad + (L - layout.prefix_lengths)[layout.prefix_unpad // L]
    padded = hidden.new_zeros(P * L, hidden.shape[-1]).index_copy(0, place, hidden[: layout.n_prefix])
    state = State()
    out = run(layer, padded.view(P, L, -1), state)
    return out.flatten(0, 1)[place], state


def recur_completions(layout: Layout, layer: nn.Module, hidden: Tensor, prefixes: State) -> Tensor:
    """The completions' output `(N_completion, D)`, each from its prefix's states, or from those of its turn."""
    if layout.levels:
        return _recur_tree(layout, layer, hidden, prefixes)
    return _recur_padded(layer, hidden[layout.completion_index], prefixes.take(layout.group_of_completion))[
        layout.completion_unpad
    ]


def _recur_padded(layer: nn.Module, batch: Tensor, state: State) -> Tensor:
    """The output `(R T, D)` for rows `(R, T, D)`; what is padded behind them changes nothing before it."""
    T = batch.shape[1]
    if T == 1:  # the rule for one token after a state is the one of decoding, whose fast kernel has no gradient
        batch = F.pad(batch, (0, 0, 0, 1))
    return run(layer, batch, state)[:, :T].flatten(0, 1)


def _recur_tree(layout: Layout, layer: nn.Module, hidden: Tensor, prefixes: State) -> Tensor:
    """Completions one by one: a turn's state is the one at its last token, so it cannot be padded."""
    found: dict[int, State] = {}
    turns, out = {*layout.parents}, []
    groups = layout.group_of_completion.split(1)
    for c, rows in enumerate(hidden[layout.n_prefix :].split(layout.completions.lengths)):
        parent = layout.parents[c]
        state = prefixes.take(groups[c]) if parent < 0 else State(found[parent].conv, found[parent].memory)
        if c in turns:
            found[c] = state
        out.append(run(layer, rows[None], state)[0] if len(rows) > 1 else _recur_padded(layer, rows[None], state))
    return torch.cat(out)
