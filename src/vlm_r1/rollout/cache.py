"""Keys and values while answers are sampled: the prompt's once for all its answers, the answers' own beside them.

A recurrent layer has a state in their place: the prompt's once, then one for every answer.

All classes are layouts that `models.shared_prefix.attend` and `models.recurrent` hand their tensors to, so the model's
own layers run unchanged; `rollout.lean` hands over rows. `DenseCache` computes in float32 with matrix products over
rectangles, `FlashCache` with variable-length kernels, without padding, and with nothing of a step on the host.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vlm_r1.models.flash import Runs, attention, merge
from vlm_r1.models.layout import Rule, make_layout
from vlm_r1.models.policy import Policy
from vlm_r1.models.recurrent import State, recur_prefix, run
from vlm_r1.models.shared_prefix import attend_packed, flash_works, pad
from vlm_r1.records import Prompt


class Prefill:
    """Prompts run through the model once: per layer their keys and values `(N, h, d)`, prompts one behind another, and
    the rule of its attention; the states of recurrent layers; and last hidden states `(P, D)`.
    """

    def __init__(self, policy: Policy, prompts: Sequence[Prompt]) -> None:
        device = policy.suppressed.device
        self.lengths = [len(p.token_ids) for p in prompts]
        self.next_positions = torch.tensor([p.next_position for p in prompts], device=device)
        self.layout = make_layout(self.lengths, [], [], [p.blocks for p in prompts]).to(device)
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        self.rules: dict[int, Rule] = {}
        self.states: dict[int, State] = {}
        token_ids = torch.tensor([t for p in prompts for t in p.token_ids], device=device)
        positions = torch.cat([p.positions for p in prompts], 1).to(device)
        features = policy.features([image for prompt in prompts for image in prompt.images])
        hidden = policy.hidden(token_ids, positions, features, self)
        ends = torch.tensor(self.lengths, device=device).cumsum(0) - 1
        self.last_hidden = hidden[ends]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
        """Attention within each prompt; keeps the layer's keys and values."""
        self.keys[layer], self.values[layer] = (x[0].transpose(0, 1).contiguous() for x in (key, value))
        self.rules[layer] = rule
        return attend_packed(self.layout, query, key, value, rule)

    def recur(self, layer: nn.Module, hidden: Tensor) -> Tensor:
        """A recurrent layer over each prompt; keeps its states at the prompts' ends."""
        out, self.states[layer.layer_idx] = recur_prefix(self.layout, layer, hidden)  # type: ignore[index]
        return out


class DecodeCache:
    """One decoded token for every live answer at a time, over a `Prefill`, whose keys and values it takes over.

    Answers are rows sorted by prompt, and each has a number of own tokens. Where they have calls, `settle` says how
    many those are, and `rollout.feed` adds what they were told. `live`, where set, are the rows whose states go on.
    """

    own_keys: dict[int, Tensor]
    own_values: dict[int, Tensor]
    live: Tensor | None = None

    def __init__(self, prefill: Prefill, group_size: int, max_tokens: int) -> None:
        self.n_prompts, self.max_tokens = len(prefill.lengths), max_tokens
        self.prompt_lengths, self.width = prefill.layout.prefix_lengths, prefill.layout.prefixes.longest
        rows = torch.arange(self.n_prompts, device=prefill.layout.prefix_lengths.device)
        self.prompt_of_row = rows.repeat_interleave(group_size)
        self.states = {layer: s.take(self.prompt_of_row) for layer, s in prefill.states.items()}

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
        """Query `(1, H, R, d)`, key and value `(1, h, R, d)` of one new token per row -> `(1, R, H, d)`."""
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
        return self.attend_rows(layer, q, k, v, rule)[None]

    def attend_rows(self, layer: int, q: Tensor, k: Tensor, v: Tensor, rule: Rule) -> Tensor:
        """Query `(R, H, d)`, key and value `(R, h, d)` of one new token per row -> `(R, H, d)`."""
        raise NotImplementedError

    def recur(self, layer: nn.Module, hidden: Tensor) -> Tensor:
        """A recurrent layer for one new token per row, `(R, D)`."""
        state = self.states[layer.layer_idx]  # type: ignore[index]
        before = State(state.conv, state.memory)
        out = run(layer, hidden[:, None], state)[:, 0]
        if self.live is not None:
            state.restore(before, ~self.live)
        return out

    def advance(self) -> None:
        """All layers have seen the token."""
        raise NotImplementedError

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these (ascending)."""
        self.prompt_of_row = self.prompt_of_row[rows]
        self.states = {layer: state.take(rows) for layer, state in self.states.items()}

    def settle(self, counts_R: Tensor, more: int) -> None:
        """Only so many own tokens of each row count; there is room for `more` behind the longest."""
        raise NotImplementedError

    def held(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values of all rows, their prompt's and their own, `(R, h, L + T, d)`."""
        raise NotImplementedError

    def append(self, layer: int, rows_N: Tensor, slots_N: Tensor, k: Tensor, v: Tensor) -> None:
        """Put keys and values `(N, h, d)` into own slots of rows."""
        raise NotImplementedError


class DenseCache(DecodeCache):
    """Prompts' keys and values as `(P, h, L, d)`, answers' own as `(P, h, S, T, d)`: a rectangle of P prompts with S
    places for answers each.

    Scores over the prompt and over a row's own tokens lie beside each other and meet in one softmax. A prompt's keys
    meet the queries of all its answers in one matrix product. Scores are float32 whatever the model computes in.
    """

    def __init__(self, prefill: Prefill, group_size: int, max_tokens: int) -> None:
        super().__init__(prefill, group_size, max_tokens)
        layout = prefill.layout
        shape, places = layout.prefix_index.shape, layout.prefix_unpad
        self.keys, self.values = (
            {i: pad(kept.pop(i), shape, places).transpose(1, 2).float().contiguous() for i in list(kept)}
            for kept in (prefill.keys, prefill.values)
        )
        self.lengths = self.prompt_lengths
        self.padded = min(prefill.lengths) < layout.prefixes.longest
        self.own_keys, self.own_values = (
            {i: x.new_empty(*x.shape[:2], group_size, max_tokens, x.shape[3]) for i, x in kept.items()}
            for kept in (self.keys, self.values)
        )
        self.length = 0
        self.at: Tensor | None = None  # own tokens of each row, where they are not all `length`
        self._biases: dict[int | None, Tensor | None] = {}
        self._arrange()
        self._look()

    def _arrange(self) -> None:
        """Where each row lies in the `(P, S)` rectangle."""
        counts = torch.bincount(self.prompt_of_row, minlength=len(self.lengths))
        self.slots = int(counts.max())
        first = counts.cumsum(0) - counts
        place = torch.arange(len(self.prompt_of_row), device=counts.device) - first[self.prompt_of_row]
        self.place = self.prompt_of_row * self.slots + place
        self.full = len(self.prompt_of_row) == len(self.lengths) * self.slots

    def _look(self) -> None:
        """As products want them: keys `(P h, d, L)`, `(P h S, d, T)`, values `(P h, L, d)`, `(P h S, T, d)`."""
        self._views = {
            i: (
                self.keys[i].flatten(0, 1).transpose(1, 2),
                self.values[i].flatten(0, 1),
                self.own_keys[i].flatten(0, 2).transpose(1, 2),
                self.own_values[i].flatten(0, 2),
            )
            for i in self.keys
        }

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these (ascending); prompts without a row left are dropped too."""
        old = self.place[rows]
        before = self.slots
        super().keep(rows)
        alive, self.prompt_of_row = torch.unique(self.prompt_of_row, return_inverse=True)
        if len(alive) < len(self.lengths):
            self.lengths = self.lengths[alive]
            self.keys = {layer: k[alive] for layer, k in self.keys.items()}
            self.values = {layer: v[alive] for layer, v in self.values.items()}
        self._biases = {}
        self._arrange()
        prompts, slots = old // before, old % before
        at, in_slot = self.place // self.slots, self.place % self.slots
        self._views = {}  # they hold what is replaced here, layer by layer
        for own in (self.own_keys, self.own_values):
            for layer, x in own.items():
                kept = x.new_zeros(len(self.lengths), x.shape[1], self.slots, *x.shape[3:])
                kept[at, :, in_slot, : self.length] = x[prompts, :, slots, : self.length]
                own[layer] = kept
        self._look()
        self.prompt_lengths = self.lengths
        self.at = None if self.at is None else self.at[rows]

    def advance(self) -> None:
        """All layers have seen the token."""
        self.length += 1
        self._biases = {window: b for window, b in self._biases.items() if window is None and self.at is None}
        self.at = None if self.at is None else self.at + 1

    def settle(self, counts_R: Tensor, more: int) -> None:
        """Only so many own tokens of each row count; there is room for `more` behind the longest."""
        self.at, self.length, self._biases = counts_R, int(counts_R.max()), {}
        self.max_tokens = max(self.max_tokens, self.length + more)
        self._views = {}
        for own in (self.own_keys, self.own_values):
            for layer, x in own.items():
                if x.shape[3] < self.max_tokens:
                    own[layer] = torch.cat([x, x.new_zeros(*x.shape[:3], self.max_tokens - x.shape[3], x.shape[4])], 3)
        self._look()

    def held(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values of all rows, their prompt's and their own, `(R, h, L + T, d)`."""
        pairs = ((self.keys, self.own_keys), (self.values, self.own_values))
        parts = [(x[layer][self.prompt_of_row], o[layer].transpose(1, 2).flatten(0, 1)[self.place]) for x, o in pairs]
        return torch.cat(parts[0], 2), torch.cat(parts[1], 2)

    def append(self, layer: int, rows_N: Tensor, slots_N: Tensor, k: Tensor, v: Tensor) -> None:
        """Put keys and values `(N, h, d)` into own slots of rows."""
        prompts, places = self.place[rows_N] // self.slots, self.place[rows_N] % self.slots
        for own, new in ((self.own_keys, k), (self.own_values, v)):
            own[layer][prompts, :, places, slots_N] = new.to(own[layer].dtype)

    def attend_rows(self, layer: int, q: Tensor, k: Tensor, v: Tensor, rule: Rule) -> Tensor:
        """Query `(R, H, d)`, key and value `(R, h, d)` of one new token per row -> `(R, H, d)`."""
        keys, values, own_keys, own_values = self._views[layer]
        n, d, L = keys.shape
        P, S, t = len(self.lengths), self.slots, self.length
        h, r = n // P, q.shape[1] * P // n
        if self.at is None:
            self.own_keys[layer].select(3, t).copy_(self._rectangle(k))
            self.own_values[layer].select(3, t).copy_(self._rectangle(v))
        else:
            self.append(layer, torch.arange(len(k), device=k.device), self.at, k, v)
        first = 0 if rule.window is None or self.at is not None else max(0, t + 1 - rule.window)
        own_k, own_v = own_keys[..., first : t + 1], own_values[:, first : t + 1]
        query = self._rectangle(q.unflatten(1, (h, r))) * (d**-0.5 if rule.scaling is None else rule.scaling)
        query = query.reshape(n, S * r, d).to(keys.dtype)
        scores = query.new_empty(n, S * r, L + t + 1 - first)
        # Written into a part of the scores directly, the products of a batch would run one by one.
        scores[..., :L] = torch.bmm(query, keys)
        scores.view(n * S, r, -1)[..., L:] = torch.bmm(query.view(n * S, r, d), own_k)
        if rule.softcap is not None:
            scores = torch.tanh(scores / rule.softcap) * rule.softcap
        bias = self._bias(rule.window)
        if bias is not None and self.at is not None:
            scores.view(P, h, S, r, -1).add_(bias)
        elif bias is not None:
            scores.view(P, -1, scores.shape[-1])[..., :L] += bias
        probs = scores.softmax(-1)
        out = torch.bmm(probs[..., :L], values).view(n * S, r, d)
        out = out.baddbmm_(probs.view(n * S, r, -1)[..., L:], own_v)
        rows = out.view(P, h, S, r, d).transpose(1, 2).reshape(P * S, h * r, d)
        return (rows if self.full else rows[self.place]).to(q.dtype)

    def _bias(self, window: int | None) -> Tensor | None:
        """`(P, 1, L)`, added to the scores of prompt tokens: hides padding and what lies before the window. Where rows
        have different numbers of own tokens `(P, 1, S, 1, L + t + 1)`, added to all scores."""
        if window not in self._biases and self.at is not None:
            places = places_of(self)[:, : self.width + self.length + 1]
            ends = (self.lengths[self.prompt_of_row] + self.at)[:, None]
            hidden = (places < 0) | (places > ends) | (places <= ends - (window or 1 << 40))
            bias = torch.zeros(hidden.shape, device=hidden.device).masked_fill(hidden, -1e9)
            self._biases[window] = self._rectangle(bias[:, None]).unsqueeze(3)
        elif window not in self._biases:
            longest = next(iter(self.keys.values())).shape[2]
            at = torch.arange(longest, device=self.lengths.device)[None]
            lengths = self.lengths[:, None]
            hidden = at >= lengths
            if window is not None:
                hidden = hidden | (at <= lengths + self.length - window)
            bias = torch.zeros(hidden.shape, device=hidden.device).masked_fill(hidden, -1e9)[:, None]
            self._biases[window] = bias if window is not None or self.padded else None
        return self._biases[window]

    def _rectangle(self, x: Tensor) -> Tensor:
        """Rows `(R, h, ...)` as `(P, h, S, ...)`."""
        P, S = len(self.lengths), self.slots
        if not self.full:
            x = x.new_zeros(P * S, *x.shape[1:]).index_copy_(0, self.place, x)
        return x.unflatten(0, (P, S)).transpose(1, 2)


class FlashCache(DecodeCache):
    """Prompts' keys and values one behind another, answers' own as `(R, T, h, d)`; every row is a run of its own.

    How far the answers are is a tensor on the device, so that a step is the same work each time and can be recorded
    (CUDA graphs).
    """

    def __init__(self, prefill: Prefill, group_size: int, max_tokens: int) -> None:
        super().__init__(prefill, group_size, max_tokens)
        self.prompts, self.keys, self.values = prefill.layout.prefixes, prefill.keys, prefill.values
        rows = len(self.prompt_of_row)
        self.own_keys, self.own_values = (
            {layer: x.new_zeros(rows, max_tokens, *x.shape[1:]) for layer, x in kept.items()}
            for kept in (self.keys, self.values)
        )
        self.padding = prefill.layout.prefix_index.shape, prefill.layout.prefix_unpad
        self.at = torch.zeros_like(self.prompt_of_row)
        self.counts = [group_size] * self.n_prompts
        self._arrange()

    def _arrange(self) -> None:
        device, rows = self.at.device, len(self.prompt_of_row)
        self.rows = torch.arange(rows, device=device)
        self.used = (self.at + 1).to(torch.int32)
        self.own_runs = Runs.of([self.max_tokens] * rows).to(device)
        self._queries: dict[int, tuple[Runs, Runs]] = {}

    def _runs_of_queries(self, r: int) -> tuple[Runs, Runs]:
        """The runs of queries of each prompt, and of each row, where `r` heads share a key."""
        if r not in self._queries:
            per_prompt, per_row = Runs.of([n * r for n in self.counts]), Runs.of([r] * len(self.prompt_of_row))
            self._queries[r] = per_prompt.to(self.at.device), per_row.to(self.at.device)
        return self._queries[r]

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these (ascending)."""
        super().keep(rows)
        self.counts = torch.bincount(self.prompt_of_row, minlength=self.n_prompts).tolist()
        for own in (self.own_keys, self.own_values):
            for layer, x in own.items():  # each old one is gone before the next is made
                own[layer] = x[rows]
        self.at = self.at[rows]
        self._arrange()

    def settle(self, counts_R: Tensor, more: int) -> None:
        """Only so many own tokens of each row count; there is room for `more` behind the longest."""
        self.at, self.max_tokens = counts_R, max(self.max_tokens, int(counts_R.max()) + more)
        for own in (self.own_keys, self.own_values):
            for layer, x in own.items():
                own[layer] = torch.cat([x, x.new_zeros(len(x), self.max_tokens - x.shape[1], *x.shape[2:])], 1)
        self._arrange()

    def held(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values of all rows, their prompt's and their own, `(R, h, L + T, d)`."""
        pairs = ((self.keys, self.own_keys), (self.values, self.own_values))
        parts = [(pad(x[layer], *self.padding)[self.prompt_of_row], own[layer]) for x, own in pairs]
        return torch.cat(parts[0], 1).transpose(1, 2), torch.cat(parts[1], 1).transpose(1, 2)

    def append(self, layer: int, rows_N: Tensor, slots_N: Tensor, k: Tensor, v: Tensor) -> None:
        """Put keys and values `(N, h, d)` into own slots of rows."""
        self.own_keys[layer][rows_N, slots_N] = k
        self.own_values[layer][rows_N, slots_N] = v

    def advance(self, tokens: int = 1) -> None:
        """All layers have seen the token (or, with -1, the last one counts as not seen)."""
        self.at += tokens
        self.used += tokens

    def attend_rows(self, layer: int, q: Tensor, k: Tensor, v: Tensor, rule: Rule) -> Tensor:
        """Query `(R, H, d)`, key and value `(R, h, d)` of one new token per row -> `(R, H, d)`."""
        self.append(layer, self.rows, self.at, k, v)
        (R, H, d), h = q.shape, k.shape[1]
        of_prompts, of_rows = self._runs_of_queries(H // h)
        # Heads that share a key become queries of one run: the kernel then reads that key once for all of them.
        query = q.view(R, h, -1, d).transpose(1, 2).reshape(-1, h, d)
        own_k, own_v = (x[layer].flatten(0, 1) for x in (self.own_keys, self.own_values))
        over = attention(query, self.keys[layer], self.values[layer], of_prompts, self.prompts, scale=rule.scaling)
        beside = attention(query, own_k, own_v, of_rows, self.own_runs, scale=rule.scaling, used=self.used)
        out, _ = merge(over, beside)
        return out.view(R, -1, h, d).transpose(1, 2).reshape(R, H, d)


def places_of(cache: DecodeCache) -> Tensor:
    """The place in its sequence of all that each row holds, `(R, L + T)` as in `held`: -1 behind a shorter prompt."""
    lengths = cache.prompt_lengths[cache.prompt_of_row][:, None]
    prompt = torch.arange(cache.width, device=lengths.device).expand(len(lengths), -1)
    own = lengths + torch.arange(cache.max_tokens, device=lengths.device)
    return torch.cat([prompt.masked_fill(prompt >= lengths, -1), own], 1)


def decode_cache(prefill: Prefill, group_size: int, max_tokens: int) -> DecodeCache:
    """The cache that fits: kernels in half precision, where no layer has a window or a soft cap; else products."""
    rules, longest = prefill.rules.values(), prefill.layout.prefixes.longest + max_tokens
    plain = all(r.softcap is None and (r.window is None or r.window >= longest) for r in rules)
    kind = FlashCache if plain and _kernels(prefill) else DenseCache
    return kind(prefill, group_size, max_tokens)


def _kernels(prefill: Prefill) -> bool:
    keys, backends = next(iter(prefill.keys.values())), {rule.backend for rule in prefill.rules.values()}
    half = keys.dtype in (torch.float16, torch.bfloat16)
    if keys.is_cuda or half:
        return "sdpa" not in backends and flash_works(keys)
    return backends == {"flash"}  # in float32 on a CPU products are faster
