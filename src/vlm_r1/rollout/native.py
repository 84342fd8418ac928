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
from vlm_r1.envs.host import Host
from vlm_r1.errors import ConfigError
from vlm_r1.models.load import LoadedPolicy
from vlm_r1.models.policy import Policy
from vlm_r1.records import Prompt, Rollout, RolloutGroup, SamplingParams
from vlm_r1.rollout.cache import Prefill
from vlm_r1.rollout.concurrency import Piece, cut, gathers_by_layer, limits_of, longest_answer
from vlm_r1.rollout.decoding import Watch, decode
from vlm_r1.rollout.engine import EngineState
from vlm_r1.rollout.sampling import StoppingCriteria, endings


class NativeEngine:
    """Answers with the policy itself, which may be the one that is trained: nothing is sent, nothing is stale.

    `settings` bound how many answers are decoded at once. Where the policy is sharded, waking brings all its
    parameters (in compute precision) to every process, so that each decodes at its own pace; where they do not fit
    (`rollout.gather`), layers come together one by one and all processes decode in step. `host` runs the environment,
    where there is one.
    """

    def __init__(
        self,
        loaded: LoadedPolicy,
        settings: RolloutConfig | None = None,
        world: World = ALONE,
        host: Host | None = None,
    ) -> None:
        self.loaded, self.settings, self.world, self.host = loaded, settings or RolloutConfig(), world, host
        self.version = 0
        self.in_step = world.size > 1 and gathers_by_layer(loaded.policy, self.settings)
        if self.in_step and host is not None:
            raise ConfigError(
                "env: answers with calls are not decoded in step by all processes; set rollout.gather: whole, or "
                "rollout.engine: vllm"
            )
        self._awake: ExitStack | None = None
        self._criteria: dict[tuple[object, ...], StoppingCriteria] = {}

    def generate(
        self, prompts: Sequence[Prompt], sampling: SamplingParams, *, n: int, watch: Watch | None = None
    ) -> Iterator[RolloutGroup]:
        """`n` answers to each prompt; `watch` sees the tokens of each piece of the work as they are sampled.

        Every process calls it, and draws all groups.
        """
        limits = limits_of(self.loaded.policy, self.settings, self.world)
        pieces = list(cut(prompts, n, longest_answer(sampling, prompts), limits))
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
            stop = self.stopping(endings(sampling))
            graphs = self.settings.cuda_graphs and not self.in_step
            settings: dict[str, Any] = {"watch": watch, "beat": self.world.beat, "alive": alive, "graphs": graphs}
            host = self.host if sampling.max_calls else None
            rollouts = decode(self.loaded, piece, prefill, sampling, stop, host=host, **settings)
        return [replace(rollout, version=self.version) for rollout in rollouts]

    def stopping(self, texts: Sequence[str]) -> StoppingCriteria:
        """When an answer is finished: built once per tokenizer, set of end-of-text tokens and of such texts."""
        policy, tokenizer = self.loaded.policy, self.loaded.tokenizer
        ends = eos_token_ids(policy, tokenizer)
        key = (*texts, len(tokenizer), *sorted(ends))
        if key not in self._criteria:
            vocabulary = policy.model.get_output_embeddings().weight.shape[0]
            self._criteria[key] = StoppingCriteria(tokenizer, ends, texts, vocabulary).to(policy.suppressed.device)
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


def eos_token_ids(policy: Policy, tokenizer: object) -> list[int]:
    """End-of-text tokens: the generation configuration's and the tokenizer's."""
    found = policy.model.generation_config.eos_token_id
    ids = list(found) if isinstance(found, (list, tuple)) else [found]
    return [int(i) for i in {*ids, tokenizer.eos_token_id} if i is not None]  # type: ignore[attr-defined]
