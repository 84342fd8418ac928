"""Sampling over prompts that have run: one token of every answer at a time, and what answers are told in between."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import torch
from torch import Tensor

from vlm_r1.envs.host import Host
from vlm_r1.models.load import LoadedPolicy
from vlm_r1.models.logprobs import masked_logprobs
from vlm_r1.models.policy import Policy
from vlm_r1.records import Rollout, SamplingParams, ToolTurn
from vlm_r1.rollout.cache import FlashCache, Prefill, decode_cache
from vlm_r1.rollout.concurrency import Piece
from vlm_r1.rollout.feed import Feed
from vlm_r1.rollout.graphs import StepGraph
from vlm_r1.rollout.lean import LeanLayers
from vlm_r1.rollout.sampling import StoppingCriteria, choose, uniforms

DROP_SHARE = 0.1
"""Finished rows are dropped once they are this share of the rows: dropping copies the other rows' keys and values."""
LOOK_EVERY = 8
"""Tokens between two looks at which answers have finished, on a GPU."""

GPU_DROP_SHARE = 0.5
"""The same on a GPU, where a step takes about as long with fewer rows, and is recorded again for them."""

Heard = Callable[[int, Rollout], None]
"""Called with the number of a row that has come to an end, and what it wrote."""
Watch = Callable[[Tensor, Tensor], None]
"""Called after each token: all tokens so far `(B, t)`, and how many of each row count `(B,)`. It may raise to stop."""


class Decoding:
    """The state of answers that are sampled over a prefill, one token of each at a time.

    With `graphs`, steps are recorded where they can be.
    """

    def __init__(
        self, policy: Policy, prefill: Prefill, n: int, sampling: SamplingParams, *, graphs: bool = False
    ) -> None:
        self.policy, self.sampling = policy, sampling
        self.temperature = 1.0 if sampling.seed is None else sampling.temperature
        self.cache = decode_cache(prefill, n, sampling.max_new_tokens)
        self.position = prefill.next_positions.repeat_interleave(n)
        self.logits = policy.logits(prefill.last_hidden).repeat_interleave(n, 0)
        self.lean = LeanLayers(policy, prefill.rules) if LeanLayers.fit(policy) else None
        self.graphs = graphs and isinstance(self.cache, FlashCache) and not self.cache.states
        self.step = self._stepping()

    def _stepping(self) -> Callable[[Tensor], Tensor]:
        """What runs a step, on the cache's present tensors."""
        me = weakref.proxy(self)  # holding itself, it would hold the cache until garbage is collected
        step: Callable[[Tensor], Tensor] = lambda tokens_R: me._forward(tokens_R)  # noqa: E731
        return StepGraph(step, lambda: me._rewind()) if self.graphs else step

    def sample(self, u_R: Tensor | None) -> tuple[Tensor, Tensor]:
        """The next token of each row `(R,)` and its log-prob, from a random number in [0, 1) per row."""
        logprobs_RV = masked_logprobs(self.logits, self.policy.suppressed, self.temperature)
        chosen = choose(logprobs_RV, self.sampling, u_R)
        return chosen, logprobs_RV.gather(-1, chosen[:, None])[:, 0]

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these."""
        self.cache.keep(rows)
        self.position = self.position[rows]

    def feed(self, counts_R: Tensor, last_R: Sequence[int], turns: Sequence[ToolTurn]) -> None:
        """Run the last token that each row wrote and what it was told, for the logits of its next one.

        `counts_R` own tokens of each row have been run and count.
        """
        ids = [[token, *turn.token_ids] for token, turn in zip(last_R, turns, strict=True)]
        feed = Feed(self.cache, counts_R, [len(row) for row in ids], self.sampling.max_new_tokens)
        device = counts_R.device
        token_ids = torch.tensor([token for row in ids for token in row], device=device)
        before = [torch.full((3, 1), int(turn.positions[:, 0].min()) - 1) for turn in turns]
        positions = torch.cat(
            [x for first, turn in zip(before, turns, strict=True) for x in (first, turn.positions)], 1
        )
        features = self.policy.features([image for turn in turns for image in turn.images])
        hidden = self.policy.hidden(token_ids, positions.to(device), features, feed)
        feed.done()
        self.logits = self.policy.logits(hidden[feed.ends])
        self.position = torch.tensor([turn.next_position for turn in turns], device=device)
        self.step = self._stepping()

    def run(self, tokens_R: Tensor) -> None:
        """Run the tokens sampled last through the model, for the logits of the next ones."""
        self.logits = self.step(tokens_R)

    def _forward(self, tokens_R: Tensor) -> Tensor:
        if self.lean is not None:
            hidden = self.lean(tokens_R, self.position, self.cache)
        else:
            hidden = self.policy.hidden(tokens_R, self.position.expand(3, -1), {}, self.cache)
        self.cache.advance()
        self.position += 1
        return self.policy.logits(hidden)

    def _rewind(self) -> None:
        assert isinstance(self.cache, FlashCache)
        self.cache.advance(-1)
        self.position -= 1


@torch.no_grad()
def decode(
    loaded: LoadedPolicy,
    piece: Piece,
    prefill: Prefill,
    sampling: SamplingParams,
    stop: StoppingCriteria,
    *,
    host: Host | None = None,
    graphs: bool = False,
    **speaking: Any,
) -> list[Rollout]:
    """Sample the answers of a piece over its prefill; in order of prompts, then answers.

    Each token's log-prob is that of `softmax(logits / temperature)` without the suppressed placeholders. With `host`,
    answers speak with their environment. `speaking` are keywords of `speak`.
    """
    graphs = graphs and loaded.policy.suppressed.device.type == "cuda"
    decoding = Decoding(loaded.policy, prefill, piece.count, sampling, graphs=graphs)

    def written(calls: int, rows: Sequence[int], heard: Heard | None, before: Sequence[Sequence[int]]) -> list[Rollout]:
        u_BT = uniforms(piece.prompts, piece.first, piece.count, sampling, calls)
        u_BT = u_BT if u_BT is None else u_BT[list(rows)]
        watched = speaking | ({"watch": _whole(watch, rows, before)} if watch and calls else {})
        return speak(loaded.tokenizer, decoding, u_BT, stop, heard=heard, **watched)

    watch = speaking.get("watch")
    everything = range(len(piece.prompts) * piece.count)
    return written(0, everything, None, ()) if host is None else converse(host, piece, decoding, written)


def _whole(watch: Watch, rows: Sequence[int], before: Sequence[Sequence[int]]) -> Watch:
    """A watch of some answers' last part as one of all answers, `before` being what each has written until then."""

    def look(tokens_BT: Tensor, lengths_B: Tensor) -> None:
        written = [list(ids) for ids in before]
        for row, ids, length in zip(rows, tokens_BT.tolist(), lengths_B.tolist(), strict=True):
            written[row] += ids[:length]
        longest = max(map(len, written))
        watch(torch.tensor([ids + [0] * (longest - len(ids)) for ids in written]), torch.tensor([*map(len, written)]))

    return look


def speak(
    tokenizer: Any,
    decoding: Decoding,
    u_BT: Tensor | None,
    stop: StoppingCriteria,
    *,
    watch: Watch | None = None,
    beat: Callable[[], None] = lambda: None,
    alive: Callable[[int], bool] = bool,
    heard: Heard | None = None,
) -> list[Rollout]:
    """Sample until all rows of a decoding have come to an end.

    It goes on while `alive` says so of the number of unfinished answers: other processes may need this one's company.
    The host asks the device for that number every `look_every` tokens, and for nothing else until rows are dropped or
    it ends. With `heard`, which is told of rows as they end, all rows stay.
    """
    device, limit = decoding.logits.device, decoding.sampling.max_new_tokens
    B, every = len(decoding.logits), look_every(device)
    u_BT = None if u_BT is None else u_BT.to(device)
    drop_share = GPU_DROP_SHARE if device.type == "cuda" else DROP_SHARE
    tokens_BT = torch.zeros(B, limit, dtype=torch.long, device=device)
    logprobs_BT = torch.zeros(B, limit, device=device)
    lengths_B = torch.zeros(B, dtype=torch.long, device=device)
    states_B = torch.zeros(B, dtype=torch.uint8, device=device)
    unfinished_B = torch.ones(B, dtype=torch.bool, device=device)
    rows: Tensor | None = None  # the answers that the cache's rows belong to, once some were dropped

    def found(which: list[int] | slice) -> list[Rollout]:
        stopped = states_B[which] == stop.done
        return _rollouts(tokenizer, tokens_BT[which], logprobs_BT[which], lengths_B[which], stopped)

    told = Ends(heard, found) if heard else None
    for step in range(limit):
        beat()
        u_R = None if u_BT is None else u_BT[:, step] if rows is None else u_BT[rows, step]
        chosen, logprobs = decoding.sample(u_R)
        if rows is None:
            tokens_BT[:, step], logprobs_BT[:, step] = chosen, logprobs
            states_B = stop.follow(states_B, chosen)
        else:  # what a finished row goes on writing lies beyond its length
            tokens_BT[rows, step], logprobs_BT[rows, step] = chosen, logprobs
            states_B[rows] = stop.follow(states_B[rows], chosen)
        lengths_B += unfinished_B
        unfinished_B = states_B != stop.done
        if watch is not None:
            watch(tokens_BT[:, : step + 1], lengths_B)
        if step + 1 == limit:
            break
        if (step + 1) % every == 0:
            n_live = int(unfinished_B.sum())
            if told is not None:
                told.look(unfinished_B)
            if not alive(n_live):
                break
            n_rows = B if rows is None else len(rows)
            if told is None and n_live and n_rows - n_live >= max(1, drop_share * n_rows):
                live = unfinished_B if rows is None else unfinished_B[rows]
                kept = live.nonzero()[:, 0]
                decoding.keep(kept)
                rows, chosen = kept if rows is None else rows[kept], chosen[kept]
        if told is not None:
            decoding.cache.live = unfinished_B
        decoding.run(chosen)
    if told is not None:
        told.look(torch.zeros_like(unfinished_B))
    return found(slice(None))


class Ends:
    """Tells of rows that have come to an end, each once."""

    def __init__(self, heard: Heard, found: Callable[[list[int]], list[Rollout]]) -> None:
        self.heard, self.found = heard, found
        self.told: set[int] = set()

    def look(self, unfinished_B: Tensor) -> None:
        """Tell of the rows that were not told of yet."""
        new = sorted({*(~unfinished_B).nonzero()[:, 0].tolist()} - self.told)
        for row, rollout in zip(new, self.found(new) if new else [], strict=True):
            self.heard(row, rollout)
        self.told.update(new)


def converse(
    host: Host,
    piece: Piece,
    decoding: Decoding,
    written: Callable[[int, Sequence[int], Heard | None, Sequence[Sequence[int]]], list[Rollout]],
) -> list[Rollout]:
    """Let each answer speak with its environment: it writes, is told, and goes on where it was.

    Environments answer as soon as an answer asks, while others are still written; all go on together, so that a run is
    the same each time.
    """
    talks = [talk for prompt in piece.prompts for talk in host.talks(prompt, piece.count)]
    parts: list[list[Rollout]] = [[] for _ in talks]
    going, at_R = list(range(len(talks))), torch.zeros(len(talks), dtype=torch.long)
    for calls in range(host.max_calls + 1):
        asked: dict[int, Future[ToolTurn | None]] = {}

        def heard(row: int, rollout: Rollout, asked: dict[int, Any] = asked, going: list[int] = going) -> None:
            if (reply := host.ask(talks[going[row]], rollout)) is not None:
                asked[row] = reply

        before = [[token for part in own for token in part.token_ids] for own in parts]
        for row, rollout in enumerate(written(calls, going, heard, before)):
            parts[going[row]].append(rollout)
            at_R[row] += len(rollout.token_ids) - 1
        turns = {row: turn for row in sorted(asked) if (turn := asked[row].result()) is not None}
        if not turns:
            break
        rows = torch.tensor(list(turns))
        decoding.cache.live = None
        decoding.keep(rows.to(decoding.logits.device))
        for row, turn in turns.items():
            talks[going[row]].add(turn, parts[going[row]][-1].token_ids)
        going = [going[row] for row in turns]
        at_R = at_R[rows]
        last = [parts[g][-1].token_ids[-1] for g in going]
        decoding.feed(at_R.to(decoding.logits.device), last, list(turns.values()))
        at_R += torch.tensor([1 + len(turn.token_ids) for turn in turns.values()])
    found = [talk.finish(own[-1], own[:-1]) for talk, own in zip(talks, parts, strict=True)]
    each = piece.count
    return [r for i in range(0, len(found), each) for r in host.scores(talks[i : i + each], found[i : i + each])]


def look_every(device: torch.device) -> int:
    """After how many tokens it is looked who has finished: on a GPU that makes the host wait for the device."""
    return 1 if device.type == "cpu" else LOOK_EVERY


def _rollouts(
    tokenizer: Any, tokens_BT: Tensor, logprobs_BT: Tensor, lengths_B: Tensor, stopped_B: Tensor
) -> list[Rollout]:
    lengths = lengths_B.tolist()
    tokens = [row[:n] for row, n in zip(tokens_BT.tolist(), lengths, strict=True)]
    logprobs = [row[:n] for row, n in zip(logprobs_BT.tolist(), lengths, strict=True)]
    texts = tokenizer.batch_decode(tokens, skip_special_tokens=True)
    return [
        Rollout(token_ids=tuple(t), logprobs=tuple(lp), text=text, finish="stop" if stopped else "length")
        for t, lp, text, stopped in zip(tokens, logprobs, texts, stopped_B.tolist(), strict=True)
    ]
