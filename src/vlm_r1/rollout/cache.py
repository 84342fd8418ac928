"""Keys and values while answers are sampled: the prompt's once for all its answers, the answers' own beside them.

A recurrent layer has a state in their place: the prompt's once, then one for every answer.

Both classes are layouts that `models.shared_prefix.attend` and `models.recurrent` hand their tensors to, so the model's
own layers run unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vlm_r1.models.layout import Rule, make_layout
from vlm_r1.models.policy import Policy
from vlm_r1.models.recurrent import State, recur_prefix, run
from vlm_r1.models.shared_prefix import attend_prefix
from vlm_r1.records import Prompt


class Prefill:
    """Prompts run through the model once: their keys and values per layer `(P, h, L, d)`, the states of recurrent
    layers, and last hidden states `(P, D)`.
    """

    def __init__(self, policy: Policy, prompts: Sequence[Prompt]) -> None:
        device = policy.banned.device
        self.lengths = [len(p.token_ids) for p in prompts]
        self.next_positions = torch.tensor([p.next_position for p in prompts], device=device)
        self.layout = make_layout(self.lengths, [], [], [p.blocks for p in prompts]).to(device)
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        self.states: dict[int, State] = {}
        token_ids = torch.tensor([t for p in prompts for t in p.token_ids], device=device)
        positions = torch.cat([p.positions for p in prompts], 1).to(device)
        features = policy.features([picture for prompt in prompts for picture in prompt.pictures])
        hidden = policy.hidden(token_ids, positions, features, self)
        ends = torch.tensor(self.lengths, device=device).cumsum(0) - 1
        self.last_hidden = hidden[ends]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
        """Attention within each prompt; keeps the layer's keys and values."""
        out, self.keys[layer], self.values[layer] = attend_prefix(self.layout, query, key, value, rule)
        return out[None]

    def recur(self, layer: nn.Module, hidden: Tensor) -> Tensor:
        """A recurrent layer over each prompt; keeps its states at the prompts' ends."""
        out, self.states[layer.layer_idx] = recur_prefix(self.layout, layer, hidden)  # type: ignore[index]
        return out


class DecodeCache:
    """One decoded token for every live answer at a time, over a `Prefill`.

    Answers are rows sorted by prompt. The queries of a prompt's answers meet its keys in one matrix product, their own
    keys in another, and the two partial softmaxes are merged exactly by their maxima and sums.
    """

    def __init__(self, prefill: Prefill, group_size: int, max_tokens: int) -> None:
        self.keys = dict(prefill.keys)
        self.values = dict(prefill.values)
        self.last_layer = max(self.keys)
        self.lengths = prefill.layout.prefix_lengths
        self.padded = bool((self.lengths < self.keys[self.last_layer].shape[2]).any())
        P = len(self.lengths)
        self.prompt_of_row = torch.arange(P, device=self.lengths.device).repeat_interleave(group_size)
        self.own_keys, self.own_values = (
            {layer: x.new_empty(P * group_size, x.shape[1], max_tokens, x.shape[3]) for layer, x in kept.items()}
            for kept in (self.keys, self.values)
        )
        self.states = {layer: s.take(self.prompt_of_row) for layer, s in prefill.states.items()}
        self.length = 0
        self._biases: dict[int | None, Tensor | None] = {}
        self._arrange()

    def _arrange(self) -> None:
        """Where each row's queries go in the `(P, S)` rectangle of queries per prompt."""
        counts = torch.bincount(self.prompt_of_row, minlength=len(self.lengths))
        self.slots = int(counts.max())
        first = counts.cumsum(0) - counts
        place = torch.arange(len(self.prompt_of_row), device=counts.device) - first[self.prompt_of_row]
        self.place = self.prompt_of_row * self.slots + place
        self.full = len(self.prompt_of_row) == len(self.lengths) * self.slots

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these (ascending); prompts without a row left are dropped too."""
        self.prompt_of_row = self.prompt_of_row[rows]
        self.own_keys = {layer: k[rows] for layer, k in self.own_keys.items()}
        self.own_values = {layer: v[rows] for layer, v in self.own_values.items()}
        self.states = {layer: state.take(rows) for layer, state in self.states.items()}
        alive, self.prompt_of_row = torch.unique(self.prompt_of_row, return_inverse=True)
        if len(alive) < len(self.lengths):
            self.lengths = self.lengths[alive]
            self.keys = {layer: k[alive] for layer, k in self.keys.items()}
            self.values = {layer: v[alive] for layer, v in self.values.items()}
            self._biases = {}
        self._arrange()

    def recur(self, layer: nn.Module, hidden: Tensor) -> Tensor:
        """A recurrent layer for one new token per row, `(R, D)`."""
        return run(layer, hidden[:, None], self.states[layer.layer_idx])[:, 0]  # type: ignore[index]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
        """Query `(1, H, R, d)`, key and value `(1, h, R, d)` of one new token per row -> `(1, R, H, d)`."""
        t = self.length
        self.own_keys[layer][:, :, t] = key[0].transpose(0, 1)
        self.own_values[layer][:, :, t] = value[0].transpose(0, 1)
        bias = self._bias(rule.window)
        if layer == self.last_layer:
            self.length += 1
            self._biases = {window: b for window, b in self._biases.items() if window is None}
        first = 0 if rule.window is None else max(0, t + 1 - rule.window)
        own_k, own_v = self.own_keys[layer][:, :, first : t + 1], self.own_values[layer][:, :, first : t + 1]
        R, heads, d = own_k.shape[0], own_k.shape[1], own_k.shape[3]
        scale = d**-0.5 if rule.scaling is None else rule.scaling
        q = query[0].transpose(0, 1).reshape(R, heads, -1, d) * scale
        own = (q @ own_k.transpose(-1, -2)).float()
        prompt = (self._stack(q) @ self.keys[layer].transpose(-1, -2)).float()
        if rule.softcap is not None:
            own, prompt = (torch.tanh(x / rule.softcap) * rule.softcap for x in (own, prompt))
        if bias is not None:
            prompt = prompt + bias
        top = torch.maximum(self._rows(prompt.amax(-1, keepdim=True)), own.amax(-1, keepdim=True))
        own = (own - top).exp_()
        prompt = prompt.sub_(self._stack(top)).exp_()
        total = self._rows(prompt.sum(-1, keepdim=True)) + own.sum(-1, keepdim=True)
        from_prompt = self._rows(prompt.to(own_v.dtype) @ self.values[layer])
        out = (from_prompt + own.to(own_v.dtype) @ own_v) / total
        return out.to(own_v.dtype).reshape(1, R, -1, own_v.shape[3])

    def _bias(self, window: int | None) -> Tensor | None:
        """`(P, 1, 1, L)`, added to the scores of prompt tokens: hides padding and what lies before the window."""
        if window not in self._biases:
            at = torch.arange(self.keys[self.last_layer].shape[2], device=self.lengths.device)[None]
            lengths = self.lengths[:, None]
            hidden = at >= lengths
            if window is not None:
                hidden = hidden | (at <= lengths + self.length - window)
            bias = torch.zeros(hidden.shape, device=hidden.device).masked_fill(hidden, -1e9)[:, None, None]
            self._biases[window] = bias if window is not None or self.padded else None
        return self._biases[window]

    def _stack(self, x: Tensor) -> Tensor:
        """Rows `(R, h, r, x)` to one block of queries per prompt `(P, h, S * r, x)`."""
        P, S = len(self.lengths), self.slots
        if not self.full:
            padded = x.new_zeros(P * S, *x.shape[1:])
            padded[self.place] = x
            x = padded
        h, r, d = x.shape[1:]
        return x.view(P, S, h, r, d).transpose(1, 2).reshape(P, h, S * r, d)

    def _rows(self, x: Tensor) -> Tensor:
        """The inverse of `_stack`."""
        P, S = len(self.lengths), self.slots
        h, d = x.shape[1], x.shape[3]
        rows = x.view(P, h, S, -1, d).transpose(1, 2).reshape(P * S, h, -1, d)
        return rows if self.full else rows[self.place]
