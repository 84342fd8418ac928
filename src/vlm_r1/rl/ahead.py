"""Answers of later steps while this one's update runs (`rollout.staleness`).

At the start of step s a thread has the engine answer the prompts of all steps up to s + k, under the weights of version
s; it has finished before the next weights are sent. So step s is answered by version s - k (the first k steps by the
version that the run started with), whatever the machines' speed, and nothing is in flight when weights are sent, when
questions are evaluated and when a checkpoint is written.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from torch import Tensor

from vlm_r1.errors import EngineError
from vlm_r1.records import Prompt, RolloutGroup, Sample
from vlm_r1.rl.buffer import group_of, group_row
from vlm_r1.rl.rollouts import Rollouts, sampling_of
from vlm_r1.rollout.engine import RolloutEngine
from vlm_r1.runtime.prefetch import Prefetcher
from vlm_r1.runtime.session import Session
from vlm_r1.runtime.tally import Tally

BEAT_S = 1.0
"""Seconds between two signs of life while answers are waited for; the engine has time-outs of its own."""
LEAVE_S = 5.0
"""Seconds that a run which ends by an error waits for the thread."""


@dataclass(slots=True, kw_only=True)
class Order:
    """Prompts of a step that the engine is asked to answer, and what is there of the answers.

    The thread adds to `groups`; `done` is set when all are there, or to what went wrong. `seconds` is the time that the
    engine worked on it.
    """

    step: int
    prompts: list[Prompt]
    groups: list[RolloutGroup] = field(default_factory=list)
    seconds: float = 0.0
    done: Future[None] = field(default_factory=Future)


class Ahead(Rollouts):
    """`with Ahead(session, engine, batches) as rollouts: ...`; the thread is the only one that asks the engine within
    a step, and runs no collective."""

    def __init__(self, session: Session, engine: RolloutEngine, batches: Prefetcher[Sample, Prompt]) -> None:
        super().__init__(session, engine, batches)
        rows: Iterable[Mapping[str, Any]] = session.state.get("rollouts", ())
        self._kept = {(row["step"], row["number"]): row for row in rows}
        self._orders: dict[int, Order] = {}
        self._waited = 0.0
        self._ended = threading.Event()
        self._failure: Exception | None = None
        self._queue: queue.SimpleQueue[Order | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, daemon=True, name="rollouts")

    def __enter__(self) -> Ahead:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._ended.set()
        self._queue.put(None)
        self._thread.join(None if kind is None else LEAVE_S)

    def prompts(self, step: int, count: int, drawn: int = 0, held: float = 0.0) -> list[Prompt]:
        """The prompts of `step`; those of the steps that may be answered under its weights are asked for."""
        self.engine.wake()
        for later in range(step, min(step + self.bound + 1, self.recipe.run.steps)):
            if later not in self._orders:
                self._orders[later] = self._place(later, count)
        return self._orders[step].prompts

    def sync(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Wait until all processes have what they asked for, then hand over the weights."""
        failure: EngineError | None = None
        for order in self._orders.values():
            try:
                self._wait(order)
            except EngineError as error:
                failure = error
        self._orders.pop(version - 1)
        self.lost = next(filter(None, self.world.gather(failure)), None)  # no process is still asking after this
        if not self.lost:
            super().sync(weights, version)

    def tally(self) -> Tally:
        """Also the seconds that the update waited for answers since the last call."""
        tally = super().tally()
        tally.maximum("rollout/wait_s", self._waited)
        self._waited = 0.0
        return tally

    def state(self, step: int) -> dict[str, Any]:
        """Also the groups that are there of `step` and later steps."""
        rows = [group_row(order.step, group) for order in self._orders.values() for group in list(order.groups)]
        return super().state(step) | {"rollouts": self.world.collect(rows)}

    def _place(self, step: int, count: int) -> Order:
        """Draw the prompts of a step, and ask for the groups that the checkpoint does not hold."""
        sampling = sampling_of(self.recipe, step)
        order = Order(step=step, prompts=super().prompts(step, count))
        for prompt in order.prompts:
            row = self._kept.pop((step, prompt.number), None)
            if row is not None and row["sample_id"] == prompt.sample.id:
                order.groups.append(group_of(row, prompt, sampling, self.session.loaded.family))
        self._queue.put(order)
        return order

    def _found(self, step: int, prompts: list[Prompt]) -> list[RolloutGroup]:
        order = self._orders[step]
        with self.world.alone():
            self._wait(order)
        self._tally.maximum("rollout/generate_s", order.seconds)
        return order.groups

    def _again(self, step: int, prompts: list[Prompt]) -> list[RolloutGroup]:
        order = Order(step=step, prompts=prompts)
        self._queue.put(order)
        self._wait(order)
        return order.groups

    def _wait(self, order: Order) -> None:
        """Until the thread is done with it; raises what it raised."""
        started = time.perf_counter()
        while not wait([order.done], BEAT_S).done:
            self.world.beat("waiting for answers")
        self._waited += time.perf_counter() - started
        order.done.result()

    # -- the thread --------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        """Fill orders one after the other. After an error all others fail with it: nobody waits twice for a server."""
        while (order := self._queue.get()) is not None:
            try:
                if self._failure is not None:
                    raise self._failure
                self._fill(order)
                order.done.set_result(None)
            except Exception as error:  # raised again by `_wait`
                self._failure = error
                order.done.set_exception(error)

    def _fill(self, order: Order) -> None:
        started, there = time.perf_counter(), {group.prompt.number for group in order.groups}
        missing = [prompt for prompt in order.prompts if prompt.number not in there]
        sampling, n = sampling_of(self.recipe, order.step), self.recipe.rl.group_size
        for group in self.engine.generate(missing, sampling, n=n):
            order.groups.append(group)
            if self._ended.is_set():
                return
        order.seconds = time.perf_counter() - started


def open_rollouts(session: Session, engine: RolloutEngine, batches: Prefetcher[Sample, Prompt]) -> Rollouts:
    """What asks for a run's answers: in step with it, or ahead of it by `rollout.staleness` steps."""
    kind = Ahead if session.recipe.rollout.staleness else Rollouts
    return kind(session, engine, batches)
