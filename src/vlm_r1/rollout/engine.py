"""What answers prompts: the protocol of rollout engines. Training, evaluation, `predict` and `play` answer through one.

The group is the unit, because the image and the prompt are computed once for it. `native` shares the module that is
trained; `vllm` asks servers, which get its weights by `sync`; `replay` answers from recorded rollouts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from vlm_r1.distributed.processes import World
from vlm_r1.records import Prompt, RolloutGroup, SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineState:
    """What an engine says about itself: the version and precision of its weights, and what it would refuse.

    `is_trainer` is True where its log-probs are those of the module that is trained: then nothing is corrected.
    """

    name: str
    version: int
    dtype: str
    is_trainer: bool
    problems: tuple[str, ...] = ()


class RolloutEngine(Protocol):
    """Prompts in, groups of answers out, under weights of a version."""

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingParams, *, n: int) -> Iterator[RolloutGroup]:
        """`n` answers to each of the prompts of this process, group by group as they finish (in any order).

        Where the engine is not the trainer, another thread may call it while the trainer updates the weights.
        """

    def sync(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Take over weights: full tensors by name. Every process calls it."""

    def wake(self) -> None:
        """Get ready to answer; every process calls it, and may answer different numbers of prompts afterwards."""

    def sleep(self) -> None:
        """Give the memory back to the update; every process calls it."""

    def check(self) -> EngineState:
        """What it would answer with. Raises a `UserError` where it cannot answer at all."""


def at_own_pace(engine: RolloutEngine, world: World) -> AbstractContextManager[None]:
    """Within, a signal may stop this process while the engine answers, unless all processes decode in step."""
    return nullcontext() if getattr(engine, "in_step", False) else world.alone()


@contextmanager
def awake(engine: RolloutEngine) -> Iterator[RolloutEngine]:
    """An engine that can answer within, and gives its memory back afterwards."""
    engine.wake()
    try:
        yield engine
    finally:
        engine.sleep()
