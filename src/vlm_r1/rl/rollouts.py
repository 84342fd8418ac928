"""The groups of each step: their prompts, their answers from the engine, and the bound on the age of the weights."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Any

from torch import Tensor

from vlm_r1.config import Recipe
from vlm_r1.errors import EngineError, Stopped
from vlm_r1.records import Prompt, RolloutGroup, Sample, SamplingParams
from vlm_r1.rl.experience import deal
from vlm_r1.rollout.engine import RolloutEngine, at_own_pace, awake
from vlm_r1.rollout.vllm import VLLMEngine
from vlm_r1.runtime.prefetch import Prefetcher
from vlm_r1.runtime.session import Session
from vlm_r1.runtime.tally import Tally


class Rollouts:
    """Asks for a step's answers when the step begins. Every process calls every method, in the same order.

    Where servers answer, one may be lost, or behind the trainer: groups older than `rollout.staleness` steps are
    dropped, counted and asked for again, and an engine that is lost on one process is lost on all.
    """

    def __init__(self, session: Session, engine: RolloutEngine, batches: Prefetcher[Sample, Prompt]) -> None:
        self.session, self.engine, self.batches = session, engine, batches
        self.recipe, self.world = session.recipe, session.world
        self.bound = self.recipe.rollout.staleness
        self.served = self.recipe.rollout.engine == "vllm"
        self.lost: EngineError | None = None
        self._drawn: dict[int, dict[str, Any]] = {}  # step -> where the stream stood before it
        self._tally = Tally()

    def __enter__(self) -> Rollouts:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        """Nothing is in flight."""

    def prompts(self, step: int, count: int, drawn: int = 0, held: float = 0.0) -> list[Prompt]:
        """The prompts of this process of the next `count` samples of `step`, as `deal` has it."""
        if not drawn:
            self._drawn[step] = self.batches.state_dict()
        return deal(self.batches, count, self.world, drawn, held)

    def generate(self, step: int, prompts: list[Prompt]) -> list[RolloutGroup]:
        """The groups of these prompts, in order of their numbers, none older than the bound.

        Raises `EngineError` on every process where one cannot get answers, or keeps getting old ones, and `Stopped`
        where a signal asked one to end.
        """
        groups: list[RolloutGroup] = []
        failure: EngineError | Stopped | None = None
        try:
            groups = self._fresh(step, self._found(step, prompts))
        except (EngineError, Stopped) as error:
            failure = error
        self.world.raise_together(failure or self.world.asked())
        return sorted(groups, key=lambda group: group.prompt.number)

    def prefetch(self, step: int) -> None:
        """Start to read the batch that is asked for next, where there is one."""
        if step + self.bound + 1 < self.recipe.run.steps:
            self.batches.prefetch(self.recipe.rl.prompts_per_step)

    def sync(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """The step before `version` is done: hand over the weights. Of an engine lost here, `raise_if_lost` tells."""
        self._drawn.pop(version - 1, None)
        try:
            self.engine.sync(weights, version=version)
        except EngineError as error:
            self.lost = error

    def raise_if_lost(self) -> None:
        """Raise `EngineError` on every process where the engine was lost on one."""
        if self.served:
            self.world.raise_together(self.lost)
        elif self.lost is not None:
            raise self.lost

    def tally(self) -> Tally:
        """What was measured since the last call."""
        tally, self._tally = self._tally, Tally()
        if isinstance(self.engine, VLLMEngine):
            for name, count in self.engine.take_counts().items():
                tally.total(f"rollout/{name}", count)
        return tally

    def state(self, step: int) -> dict[str, Any]:
        """What a checkpoint keeps to go on with `step`, whose prompts may have been drawn; on the main process."""
        return {"stream": self._drawn[step] if step in self._drawn else self.batches.state_dict()}

    def _found(self, step: int, prompts: list[Prompt]) -> list[RolloutGroup]:
        """The groups of the prompts, of any age."""
        with awake(self.engine):
            return self._ask(step, prompts)

    def _ask(self, step: int, prompts: list[Prompt]) -> list[RolloutGroup]:
        sampling, n = sampling_of(self.recipe, step), self.recipe.rl.group_size
        with at_own_pace(self.engine, self.world):
            return list(self.engine.generate(prompts, sampling, n=n))

    def _again(self, step: int, prompts: list[Prompt]) -> list[RolloutGroup]:
        """New answers to prompts whose answers were too old."""
        return self._found(step, prompts)

    def _fresh(self, step: int, groups: list[RolloutGroup]) -> list[RolloutGroup]:
        if not self.served:
            return groups
        stale = [group for group in groups if not self._usable(step, group)]
        groups = [group for group in groups if self._usable(step, group)]
        self._tally.total("rollout/stale_groups", len(stale))
        if stale:
            groups += self._again(step, [group.prompt for group in stale])
        for group in groups:
            if not self._usable(step, group):
                raise EngineError(
                    f"the servers keep answering with weights of version {version_of(group)} at step {step} (sample "
                    f"{group.prompt.sample.id}; rollout.staleness: {self.bound}): they do not take over new weights. "
                    "Start them again; the same command continues the run"
                )
        ages = [step - version_of(group) for group in groups]
        self._tally.mean("rollout/staleness", sum(ages), len(ages))
        self._tally.maximum("rollout/staleness_max", max(ages, default=0))
        return groups

    def _usable(self, step: int, group: RolloutGroup) -> bool:
        return 0 <= step - version_of(group) <= self.bound


def version_of(group: RolloutGroup) -> int:
    """The oldest weights that wrote any of a group's answers: optimizer steps before them."""
    return min(rollout.version for rollout in group.rollouts)


def sampling_of(recipe: Recipe, step: int) -> SamplingParams:
    """How the answers of a step are sampled: seeded by the run and the step."""
    r = recipe.rollout
    return SamplingParams(
        seed=(recipe.run.seed, step),
        max_new_tokens=r.max_new_tokens,
        temperature=r.temperature,
        top_p=r.top_p,
        top_k=r.top_k,
        min_p=r.min_p,
        stop_at_answer=r.stop_at_answer,
        max_calls=recipe.max_calls,
    )
