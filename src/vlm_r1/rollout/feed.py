"""What an environment tells answers that are being sampled: its tokens run once, over the keys and values that are
there. The prompt, and what was written before, are not run again."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vlm_r1.models.layout import Rule, pad_index
from vlm_r1.models.recurrent import State, run
from vlm_r1.models.shared_prefix import pad, unpad, weigh
from vlm_r1.rollout.cache import DecodeCache, places_of


class Feed:
    """A layout under which runs of new tokens, one for each row of a cache, see all that their row holds and their own
    run up to themselves. The cache holds them afterwards.

    `ends` `(R,)` are the places of the runs' last tokens.
    """

    def __init__(self, cache: DecodeCache, counts_R: Tensor, lengths: Sequence[int], more: int) -> None:
        """`counts_R` own tokens of each row count; a run of `lengths` follows, and room for `more` tokens."""
        cache.settle(counts_R, max(lengths) + more)
        device = counts_R.device
        lengths_R = torch.tensor(lengths, device=device)
        index, unpadded = pad_index(lengths)
        self.cache, self.shape, self.unpadded = cache, index.shape, unpadded.to(device)
        self.lengths, self.ends = lengths, lengths_R.cumsum(0) - 1
        self.rows = torch.arange(len(lengths), device=device).repeat_interleave(lengths_R)
        self.slots = (
            counts_R[self.rows] + torch.arange(len(self.rows), device=device) - (self.ends - lengths_R + 1)[self.rows]
        )
        begins = (cache.prompt_lengths[cache.prompt_of_row] + counts_R)[:, None]
        own = begins + torch.arange(self.shape[1], device=device)
        held = places_of(cache)
        held = held.masked_fill(held >= begins, -1)  # slots that are not filled, or will be
        self.places = torch.cat([held, own], 1)[:, None]  # of keys, (R, 1, L + T + S); of queries the last S
        self._masks: dict[int | None, Tensor] = {}

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
        """Query `(1, H, N, d)`, key and value `(1, h, N, d)` of the runs -> `(1, N, H, d)`."""
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
        rows = [pad(x, self.shape, self.unpadded).transpose(1, 2) for x in (q, k, v)]
        held = self.cache.held(layer)
        keys, values = (torch.cat([old, new.to(old.dtype)], 2) for old, new in zip(held, rows[1:], strict=True))
        out = weigh(rows[0].to(keys.dtype), keys, values, self._mask(rule.window), rule)
        self.cache.append(layer, self.rows, self.slots, k, v)
        return unpad(out.transpose(1, 2), self.unpadded)[None].to(query.dtype)

    def recur(self, layer: nn.Module, hidden: Tensor) -> Tensor:
        """A recurrent layer over each run, from its row's states, which go on."""
        state = self.cache.states[layer.layer_idx]  # type: ignore[index]
        out, states = [], []
        for row, part in enumerate(hidden.split(list(self.lengths))):
            states.append(state.take(torch.tensor([row], device=hidden.device)))
            out.append(run(layer, part[None], states[-1])[0])
        self.cache.states[layer.layer_idx] = State.joined(states)  # type: ignore[index]
        return torch.cat(out)

    def done(self) -> None:
        """All layers have seen the runs."""
        self.cache.settle(self.slots[self.ends] + 1, 0)

    def _mask(self, window: int | None) -> Tensor:
        """`(R, 1, S, L + T + S)`."""
        if window not in self._masks:
            queries = self.places[..., -self.shape[1] :].transpose(1, 2)
            seen = (self.places >= 0) & (self.places <= queries) & (self.places > queries - (window or 1 << 40))
            self._masks[window] = seen[:, None]
        return self._masks[window]
