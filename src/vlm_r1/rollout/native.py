"""Rollouts by the model itself: the prompt once, its keys and values once, then one token at a time for all answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vlm_r1.config import RolloutConfig
from vlm_r1.distributed.processes import ALONE, World
from vlm_r1.distributed.sharding import by_layer, gathered
from vlm_r1.models.load import LoadedPolicy
from vlm_r1.models.logprobs import masked_logprobs
from vlm_r1.models.policy import Policy
from vlm_r1.records import Prompt, Rollout, RolloutGroup, SamplingParams
from vlm_r1.rollout.cache import DecodeCache, Prefill
from vlm_r1.rollout.concurrency import Piece, cut, gathers_by_layer, limits_of
from vlm_r1.rollout.engine import EngineState
from vlm_r1.rollout.sampling import StopRule, choose, uniforms

DROP_SHARE = 0.1
"""Finished rows are dropped once they are this share of the rows: dropping copies the other rows' keys and values."""

Watch = Callable[[Tensor, Tensor], None]
"""Called after each token: all tokens so far `(B, t)`, and how many of each row count `(B,)`. It may raise to stop."""


class NativeEngine:
    """Answers with the policy itself, which may be the one that is trained: nothing is sent, nothing is stale.

    `settings` bound how many answers are decoded at once. Where the policy is sharded, waking brings all its
    parameters (in compute precision) to every process, so that each decodes at its own pace; where they do not fit
    (`rollout.gather`), layers come together one by one and all processes decode in step.
    """

    def __init__(self, loaded: LoadedPolicy, settings: RolloutConfig | None = None, world: World = ALONE) -> None:
        self.loaded, self.settings, self.world = loaded, settings or RolloutConfig(), world
        self.version = 0
        self.in_step = world.size > 1 and gathers_by_layer(loaded.policy, self.settings)
        self._awake: ExitStack | None = None

    def generate(
        self, prompts: Sequence[Prompt], sampling: SamplingParams, *, n: int, watch: Watch | None = None
    ) -> Iterator[RolloutGroup]:
        """`n` answers to each prompt; `watch` sees the tokens of each piece of the work as they are sampled.

        Every process calls it, and draws all groups.
        """
        limits = limits_of(self.loaded.policy, self.settings, self.world)
        pieces = list(cut(prompts, n, sampling.max_new_tokens, limits))
        for _ in range(self._missing(pieces)):
            self._decode(Piece(prompts=(self.loaded.family.filler(picture=False),), first=0, count=1), sampling)
        unfinished: list[Rollout] = []
        for piece in pieces:
            rollouts = self._decode(piece, sampling, watch)
            if piece.count == n:
                groups = [rollouts[i : i + n] for i in range(0, len(rollouts), n)]
            else:  # part of the answers to one prompt
                unfinished += rollouts
                groups = [unfinished] if len(unfinished) == n else []
                unfinished = [] if groups else unfinished
            for prompt, group in zip(piece.prompts, groups, strict=False):
                yield RolloutGroup(prompt=prompt, rollouts=tuple(group), sampling=sampling)

    def _missing(self, pieces: Sequence[Piece]) -> int:
        """How many more pieces another process has, where all decode in step."""
        return int(self.world.maximum(len(pieces))[0]) - len(pieces) if self.in_step else 0

    def _decode(self, piece: Piece, sampling: SamplingParams, watch: Watch | None = None) -> list[Rollout]:
        policy = self.loaded.policy
        alive: Callable[[int], bool] = bool
        with torch.no_grad():
            if self.in_step:
                alive = self._any_alive
                own = any(prompt.pictures for prompt in piece.prompts)
                if self.world.maximum(own)[0] and not own and policy.vision_cache is None:
                    policy.features(self.loaded.family.filler(picture=True).pictures)
            prefill = Prefill(policy, piece.prompts)
            rollouts = decode(self.loaded, piece, prefill, sampling, watch=watch, beat=self.world.beat, alive=alive)
        return [replace(rollout, version=self.version) for rollout in rollouts]

    def _any_alive(self, n_live: int) -> bool:
        return bool(self.world.maximum(n_live)[0])

    def sync(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Only the version changes: the weights are the trainer's own."""
        self.version = version

    def wake(self) -> None:
        """Bring the parameters of a sharded policy together, and leave training mode (recomputation, dropout)."""
        if self._awake is None:
            stack = ExitStack()
            together = by_layer if self.in_step else gathered
            stack.enter_context(together(self.loaded.policy))
            stack.callback(self.loaded.policy.train, self.loaded.policy.training)
            self.loaded.policy.eval()
            self._awake = stack

    def sleep(self) -> None:
        """Shard again, and go back to the mode before."""
        if self._awake is not None:
            self._awake.close()
            self._awake = None

    def check(self) -> EngineState:
        """The trainer's own weights."""
        dtype = str(self.loaded.policy.compute_dtype).removeprefix("torch.")
        return EngineState(name="native", version=self.version, dtype=dtype, is_trainer=True)


class Decoding:
    """The state of answers that are sampled over a prefill, one token of each at a time."""

    def __init__(self, policy: Policy, prefill: Prefill, n: int, sampling: SamplingParams) -> None:
        self.policy, self.sampling = policy, sampling
        self.temperature = 1.0 if sampling.seed is None else sampling.temperature
        self.cache = DecodeCache(prefill, n, sampling.max_new_tokens)
        self.position = prefill.next_positions.repeat_interleave(n)
        self.logits = policy.logits(prefill.last_hidden).repeat_interleave(n, 0)

    def sample(self, u_R: Tensor | None) -> tuple[Tensor, Tensor]:
        """The next token of each row `(R,)` and its log-prob, from a random number in [0, 1) per row."""
        logprobs_RV = masked_logprobs(self.logits, self.policy.banned, self.temperature)
        chosen = choose(logprobs_RV, self.sampling, u_R)
        return chosen, logprobs_RV.gather(-1, chosen[:, None])[:, 0]

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these."""
        self.cache.keep(rows)
        self.position = self.position[rows]

    def run(self, tokens_R: Tensor, step: int) -> None:
        """Run the tokens sampled at `step` through the model, for the logits of the next ones."""
        positions = (self.position + step).expand(3, -1)
        self.logits = self.policy.logits(self.policy.hidden(tokens_R, positions, {}, self.cache))


@torch.no_grad()
def decode(
    loaded: LoadedPolicy,
    piece: Piece,
    prefill: Prefill,
    sampling: SamplingParams,
    *,
    watch: Watch | None = None,
    beat: Callable[[], None] = lambda: None,
    alive: Callable[[int], bool] = bool,
) -> list[Rollout]:
    """Sample the answers of a piece over its prefill; in order of prompts, then answers.

    Each token's log-prob is that of `softmax(logits / temperature)` without the suppressed placeholders. It goes on
    while `alive` says so of the number of unfinished answers: other processes may need this one's company.
    """
    policy, tokenizer = loaded.policy, loaded.tokenizer
    device, limit = policy.banned.device, sampling.max_new_tokens
    B = len(piece.prompts) * piece.count
    u = uniforms(piece.prompts, piece.first, piece.count, sampling)
    u_BT = None if u is None else u.to(device)
    stop = StopRule(tokenizer, eos_token_ids(policy, tokenizer), sampling.stop_at_answer)
    decoding = Decoding(policy, prefill, piece.count, sampling)
    tokens_BT = torch.zeros(B, limit, dtype=torch.long, device=device)
    logprobs_BT = torch.zeros(B, limit, device=device)
    lengths_B = torch.full((B,), limit, device=device)
    stopped_B = torch.zeros(B, dtype=torch.bool, device=device)
    rows = torch.arange(B, device=device)  # the answers that the cache's rows belong to
    live = torch.ones(B, dtype=torch.bool, device=device)
    for step in range(limit):
        beat()
        chosen, logprobs = decoding.sample(None if u_BT is None else u_BT[rows, step])
        tokens_BT[rows, step] = chosen  # what a finished row goes on writing lies beyond its length
        logprobs_BT[rows, step] = logprobs
        done = live & stop.finished(chosen, tokens_BT[:, : step + 1], rows)
        lengths_B[rows[done]] = step + 1
        stopped_B[rows[done]] = True
        if watch is not None:
            watch(tokens_BT[:, : step + 1], lengths_B.clamp(max=step + 1))
        live = live & ~done
        n_live = int(live.sum())
        if step + 1 == limit or not alive(n_live):
            break
        if n_live and len(live) - n_live >= max(1, DROP_SHARE * len(live)):
            kept = live.nonzero()[:, 0]
            decoding.keep(kept)
            rows, chosen, live = rows[kept], chosen[kept], live[kept]
        decoding.run(chosen, step)
    return _rollouts(tokenizer, tokens_BT, logprobs_BT, lengths_B, stopped_B)


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


def eos_token_ids(policy: Policy, tokenizer: object) -> list[int]:
    """End-of-text tokens: the generation configuration's and the tokenizer's."""
    found = policy.model.generation_config.eos_token_id
    ids = list(found) if isinstance(found, (list, tuple)) else [found]
    return [int(i) for i in {*ids, tokenizer.eos_token_id} if i is not None]  # type: ignore[attr-defined]
