"""Keys and values while answers are sampled: the prompt's once for all its answers, the answers' own beside them.

Both classes are layouts that `models.shared_prefix.attend` hands its tensors to, so the model's own layers run
unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vlm_r1.models.packing import make_layout, merge_vision
from vlm_r1.models.shared_prefix import Policy, attend_prefix
from vlm_r1.records import Prompt


class Prefill:
    """Prompts run through the model once: their keys and values per layer `(P, h, L, d)`, and last hidden states `(P,
    D)`.

    Run with gradients enabled it keeps the graph, and the update can go on from it (see `rl.step`).
    """

    def __init__(self, policy: Policy, prompts: Sequence[Prompt]) -> None:
        device = policy.banned.device
        self.lengths = [len(p.token_ids) for p in prompts]
        self.next_positions = torch.tensor([p.next_position for p in prompts], device=device)
        self.layout = make_layout(self.lengths, [], []).to(device)
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        token_ids = torch.tensor([t for p in prompts for t in p.token_ids], device=device)
        positions = torch.cat([p.positions for p in prompts], 1).to(device)
        vision = {n: v.to(device) for n, v in merge_vision([p.vision for p in prompts]).items()}
        hidden = policy.hidden(token_ids, positions, policy.features(vision), self)
        ends = torch.tensor(self.lengths, device=device).cumsum(0) - 1
        self.last_hidden = hidden[ends]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
        """Causal attention within each prompt; keeps the layer's keys and values."""
        out, k, v = attend_prefix(self.layout, query, key, value, scaling)
        self.keys.append(k)
        self.values.append(v)
        return out[None]


class DecodeCache:
    """One decoded token for every live answer at a time, over a `Prefill`.

    Answers are rows sorted by prompt. The queries of a prompt's answers meet its keys in one matrix product, their own
    keys in another, and the two partial softmaxes are merged exactly by their maxima and sums.
    """

    def __init__(self, prefill: Prefill, group_size: int, max_tokens: int) -> None:
        self.keys = [k.detach() for k in prefill.keys]
        self.values = [v.detach() for v in prefill.values]
        P, heads, width, d = self.keys[0].shape
        k = self.keys[0]
        lengths = torch.tensor(prefill.lengths, device=k.device)
        hidden = torch.arange(width, device=k.device)[None] >= lengths[:, None]
        self.bias = torch.zeros(P, 1, 1, width, device=k.device).masked_fill(hidden[:, None, None], -1e9)
        self.padded = bool(hidden.any())
        self.prompt_of_row = torch.arange(P, device=k.device).repeat_interleave(group_size)
        self.own_keys = [k.new_empty(P * group_size, heads, max_tokens, d) for _ in self.keys]
        self.own_values = [k.new_empty(P * group_size, heads, max_tokens, d) for _ in self.keys]
        self.length = 0
        self._arrange()

    def _arrange(self) -> None:
        """Where each row's queries go in the `(P, S)` rectangle of queries per prompt."""
        counts = torch.bincount(self.prompt_of_row, minlength=len(self.bias))
        self.slots = int(counts.max())
        first = counts.cumsum(0) - counts
        place = torch.arange(len(self.prompt_of_row), device=counts.device) - first[self.prompt_of_row]
        self.place = self.prompt_of_row * self.slots + place
        self.full = len(self.prompt_of_row) == len(self.bias) * self.slots

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these (ascending); prompts without a row left are dropped too."""
        self.prompt_of_row = self.prompt_of_row[rows]
        self.own_keys = [k[rows] for k in self.own_keys]
        self.own_values = [v[rows] for v in self.own_values]
        alive, self.prompt_of_row = torch.unique(self.prompt_of_row, return_inverse=True)
        if len(alive) < len(self.bias):
            self.bias = self.bias[alive]
            self.keys = [k[alive] for k in self.keys]
            self.values = [v[alive] for v in self.values]
        self._arrange()

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
        """Query `(1, H, R, d)`, key and value `(1, h, R, d)` of one new token per row -> `(1, R, H, d)`."""
        t = self.length
        self.own_keys[layer][:, :, t] = key[0].transpose(0, 1)
        self.own_values[layer][:, :, t] = value[0].transpose(0, 1)
        if layer == len(self.keys) - 1:
            self.length += 1
        own_k, own_v = self.own_keys[layer][:, :, : t + 1], self.own_values[layer][:, :, : t + 1]
        R, heads, d = own_k.shape[0], own_k.shape[1], own_k.shape[3]
        scale = d**-0.5 if scaling is None else scaling
        q = query[0].transpose(0, 1).reshape(R, heads, -1, d) * scale
        own = (q @ own_k.transpose(-1, -2)).float()
        prompt = (self._stack(q) @ self.keys[layer].transpose(-1, -2)).float()
        if self.padded:
            prompt = prompt + self.bias
        top = torch.maximum(self._rows(prompt.amax(-1, keepdim=True)), own.amax(-1, keepdim=True))
        own = (own - top).exp_()
        prompt = prompt.sub_(self._stack(top)).exp_()
        total = self._rows(prompt.sum(-1, keepdim=True)) + own.sum(-1, keepdim=True)
        from_prompt = self._rows(prompt.to(own_v.dtype) @ self.values[layer])
        out = (from_prompt + own.to(own_v.dtype) @ own_v) / total
        return out.to(own_v.dtype).reshape(1, R, -1, d)

    def _stack(self, x: Tensor) -> Tensor:
        """Rows `(R, h, r, x)` to one block of queries per prompt `(P, h, S * r, x)`."""
        P, S = len(self.bias), self.slots
        if not self.full:
            padded = x.new_zeros(P * S, *x.shape[1:])
            padded[self.place] = x
            x = padded
        h, r, d = x.shape[1:]
        return x.view(P, S, h, r, d).transpose(1, 2).reshape(P, h, S * r, d)

    def _rows(self, x: Tensor) -> Tensor:
        """The inverse of `_stack`."""
        P, S = len(self.bias), self.slots
        h, d = x.shape[1], x.shape[3]
        rows = x.view(P, h, S, -1, d).transpose(1, 2).reshape(P * S, h, -1, d)
        return rows if self.full else rows[self.place]
