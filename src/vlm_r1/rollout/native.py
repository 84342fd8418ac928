"""Rollouts by the model itself: the prompt once, its keys and values once, then one token at a time for all answers."""

from __future__ import annotations

import weakref
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
from vlm_r1.rollout.cache import FlashCache, Prefill, decode_cache
from vlm_r1.rollout.concurrency import Piece, cut, gathers_by_layer, limits_of
from vlm_r1.rollout.engine import EngineState
from vlm_r1.rollout.graphs import StepGraph
from vlm_r1.rollout.lean import LeanLayers
from vlm_r1.rollout.sampling import StoppingCriteria, choose, uniforms

DROP_SHARE = 0.1
"""Finished rows are dropped once they are this share of the rows: dropping copies the other rows' keys and values."""
LOOK_EVERY = 8
"""Tokens between two looks at which answers have finished, on a GPU."""

GPU_DROP_SHARE = 0.5
"""The same on a GPU, where a step takes about as long with fewer rows, and is recorded again for them."""

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
        self._criteria: dict[tuple[int, ...], StoppingCriteria] = {}

    def generate(
        self, prompts: Sequence[Prompt], sampling: SamplingParams, *, n: int, watch: Watch | None = None
    ) -> Iterator[RolloutGroup]:
        """`n` answers to each prompt; `watch` sees the tokens of each piece of the work as they are sampled.

        Every process calls it, and draws all groups.
        """
        limits = limits_of(self.loaded.policy, self.settings, self.world)
        pieces = list(cut(prompts, n, sampling.max_new_tokens, limits))
        for _ in range(self._missing(pieces)):
            self._decode(Piece(prompts=(self.loaded.family.filler(image=False),), first=0, count=1), sampling)
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
                own = any(prompt.images for prompt in piece.prompts)
                if self.world.maximum(own)[0] and not own and policy.vision_cache is None:
                    policy.features(self.loaded.family.filler(image=True).images)
            prefill = Prefill(policy, piece.prompts)
            stop = self.stopping(sampling.stop_at_answer)
            graphs = self.settings.cuda_graphs and not self.in_step
            beat = self.world.beat
            rollouts = decode(
                self.loaded, piece, prefill, sampling, stop, watch=watch, beat=beat, alive=alive, graphs=graphs
            )
        return [replace(rollout, version=self.version) for rollout in rollouts]

    def stopping(self, at_answer: bool) -> StoppingCriteria:
        """When an answer is finished: built once per tokenizer and set of end-of-text tokens."""
        policy, tokenizer = self.loaded.policy, self.loaded.tokenizer
        ends = eos_token_ids(policy, tokenizer)
        key = (at_answer, len(tokenizer), *sorted(ends))
        if key not in self._criteria:
            vocabulary = policy.model.get_output_embeddings().weight.shape[0]
            self._criteria[key] = StoppingCriteria(tokenizer, ends, at_answer, vocabulary).to(policy.suppressed.device)
        return self._criteria[key]

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
        me = weakref.proxy(self)  # holding itself, it would hold the cache until garbage is collected
        self.step: Callable[[Tensor], Tensor] = lambda tokens_R: me._forward(tokens_R)
        if graphs and isinstance(self.cache, FlashCache) and not self.cache.states:
            self.step = StepGraph(self.step, lambda: me._rewind())

    def sample(self, u_R: Tensor | None) -> tuple[Tensor, Tensor]:
        """The next token of each row `(R,)` and its log-prob, from a random number in [0, 1) per row."""
        logprobs_RV = masked_logprobs(self.logits, self.policy.suppressed, self.temperature)
        chosen = choose(logprobs_RV, self.sampling, u_R)
        return chosen, logprobs_RV.gather(-1, chosen[:, None])[:, 0]

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these."""
        self.cache.keep(rows)
        self.position = self.position[rows]

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
    watch: Watch | None = None,
    beat: Callable[[], None] = lambda: None,
    alive: Callable[[int], bool] = bool,
    graphs: bool = False,
) -> list[Rollout]:
    """Sample the answers of a piece over its prefill; in order of prompts, then answers.

    Each token's log-prob is that of `softmax(logits / temperature)` without the suppressed placeholders. It goes on
    while `alive` says so of the number of unfinished answers: other processes may need this one's company. The host
    asks the device for that number every `look_every` tokens, and for nothing else until rows are dropped or it ends.
    """
    policy = loaded.policy
    device, limit = policy.suppressed.device, sampling.max_new_tokens
    B, every = len(piece.prompts) * piece.count, look_every(device)
    u_BT = uniforms(piece.prompts, piece.first, piece.count, sampling)
    u_BT = None if u_BT is None else u_BT.to(device)
    decoding = Decoding(policy, prefill, piece.count, sampling, graphs=graphs and device.type == "cuda")
    drop_share = GPU_DROP_SHARE if device.type == "cuda" else DROP_SHARE
    tokens_BT = torch.zeros(B, limit, dtype=torch.long, device=device)
    logprobs_BT = torch.zeros(B, limit, device=device)
    lengths_B = torch.zeros(B, dtype=torch.long, device=device)
    states_B = torch.zeros(B, dtype=torch.uint8, device=device)
    unfinished_B = torch.ones(B, dtype=torch.bool, device=device)
    rows: Tensor | None = None  # the answers that the cache's rows belong to, once some were dropped
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
            if not alive(n_live):
                break
            n_rows = B if rows is None else len(rows)
            if n_live and n_rows - n_live >= max(1, drop_share * n_rows):
                live = unfinished_B if rows is None else unfinished_B[rows]
                kept = live.nonzero()[:, 0]
                decoding.keep(kept)
                rows, chosen = kept if rows is None else rows[kept], chosen[kept]
        decoding.run(chosen)
    return _rollouts(loaded.tokenizer, tokens_BT, logprobs_BT, lengths_B, states_B == stop.done)


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


def eos_token_ids(policy: Policy, tokenizer: object) -> list[int]:
    """End-of-text tokens: the generation configuration's and the tokenizer's."""
    found = policy.model.generation_config.eos_token_id
    ids = list(found) if isinstance(found, (list, tuple)) else [found]
    return [int(i) for i in {*ids, tokenizer.eos_token_id} if i is not None]  # type: ignore[attr-defined]
