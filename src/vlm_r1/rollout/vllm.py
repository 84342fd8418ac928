"""Rollouts by vLLM servers: prompts go out over HTTP, each image once for its whole group, and groups come back.

Every weight version has a label that only this run uses, and a server says of every token which label wrote it: an
answer under any other label is thrown away and asked for again. A server that dies, hangs, refuses or comes back with
other weights is left out until it holds the current ones; the process that drives it starts it again (where the run
started it) and sends them.
"""

from __future__ import annotations

import asyncio
import queue
import sys
import threading
import time
import uuid
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor

from vlm_r1.config import RolloutConfig
from vlm_r1.distributed.processes import ALONE, World
from vlm_r1.distributed.wire import WeightFiles
from vlm_r1.envs.host import Host, Talk
from vlm_r1.errors import EngineError
from vlm_r1.models.load import LoadedPolicy
from vlm_r1.records import Prompt, Rollout, RolloutGroup, SamplingParams
from vlm_r1.rollout.engine import EngineState
from vlm_r1.rollout.vllm_client import FROM_FOLDER, RouteError, Unfit
from vlm_r1.rollout.vllm_launch import MODEL
from vlm_r1.rollout.vllm_request import body_of, rollouts_of, stops_of
from vlm_r1.rollout.vllm_server import Seat

LOOK_S = 1.0
"""Seconds between two looks at a server."""
HANG_S = 60.0
"""Seconds after which a server that does not answer a look counts as hanging."""
SAME_FAILURE = 10
"""Times that a prompt may end in an error inside a server before it is taken for the cause."""
AT_ONCE = 256
"""Prompts of this process that are with the servers at the same time; they queue further."""


class VLLMEngine:
    """Answers through vLLM servers. Its methods may be called from two threads.

    `seats` are the servers that this process asks; `files` is None where the servers keep the weights they were started
    with (evaluation of a model folder). With `sleeps` they give their GPU back outside `wake` and `sleep`.
    """

    def __init__(
        self,
        loaded: LoadedPolicy,
        settings: RolloutConfig,
        seats: Sequence[Seat],
        world: World = ALONE,
        *,
        files: WeightFiles | None = None,
        sleeps: bool = False,
        host: Host | None = None,
    ) -> None:
        self.host = host
        self.loaded, self.settings, self.world, self.files, self.sleeps = loaded, settings, world, files, sleeps
        self.seats = list(seats)
        self.version = 0
        self.run = world.gather(uuid.uuid4().hex[:8])[0]
        self.label: str | None = None  # None: whatever the servers hold
        self.weights: list[str] = []
        self.asleep = False
        self.closing = False
        self.counts = {"asked_again": 0, "servers_lost": 0}
        self._stops = stops_of(loaded)
        self._last_seen = time.monotonic()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True, name="vllm").start()
        for seat in self.seats:
            asyncio.run_coroutine_threadsafe(self._watch(seat), self._loop)

    # -- answers -----------------------------------------------------------------------------------------------------

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingParams, *, n: int) -> Iterator[RolloutGroup]:
        """`n` answers to each prompt, group by group as they finish.

        Raises `EngineError` where no server has been there for `rollout.server_timeout_s`.
        """
        found: queue.SimpleQueue[RolloutGroup] = queue.SimpleQueue()
        job = asyncio.run_coroutine_threadsafe(self._answer_all(prompts, sampling, n, found), self._loop)
        try:
            for _ in prompts:
                yield self._next(found, job)
        finally:
            job.cancel()

    def _next(self, found: queue.SimpleQueue[RolloutGroup], job: Any) -> RolloutGroup:
        while True:
            self.world.beat("waiting for answers")
            try:
                return found.get(timeout=LOOK_S)
            except queue.Empty:
                if job.done() and found.empty():
                    job.result()

    async def _answer_all(
        self, prompts: Sequence[Prompt], sampling: SamplingParams, n: int, found: queue.SimpleQueue[RolloutGroup]
    ) -> None:
        room = asyncio.Semaphore(AT_ONCE)

        async def answer(prompt: Prompt) -> None:
            async with room:
                found.put(await self._answer(prompt, sampling, n))

        self._last_seen = time.monotonic()
        tasks = [asyncio.ensure_future(answer(prompt)) for prompt in prompts]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _answer(self, prompt: Prompt, sampling: SamplingParams, n: int) -> RolloutGroup:
        rollouts = await self._ask(prompt, sampling, n)
        if sampling.max_calls and self.host is not None:
            talks = await asyncio.to_thread(self.host.talks, prompt, n)
            numbered = enumerate(zip(talks, rollouts, strict=True))
            told = await asyncio.gather(*(self._converse(*pair, sampling, number) for number, pair in numbered))
            rollouts = tuple(await asyncio.to_thread(self.host.scores, talks, told))
        return RolloutGroup(prompt=prompt, rollouts=rollouts, sampling=sampling)

    async def _converse(self, talk: Talk, rollout: Rollout, sampling: SamplingParams, number: int) -> Rollout:
        """Let an answer speak with its environment; the others do not wait for it."""
        assert self.host is not None
        parts = [rollout]
        while (asked := self.host.ask(talk, parts[-1])) is not None:
            turn = await asyncio.wrap_future(asked)
            if turn is None:
                break
            talk.add(turn, parts[-1].token_ids)
            parts += await self._ask(talk.prompt, sampling, 1, talk, number)
        return talk.finish(parts[-1], parts[:-1])

    async def _ask(
        self, prompt: Prompt, sampling: SamplingParams, n: int, talk: Talk | None = None, number: int = 0
    ) -> tuple[Rollout, ...]:
        body = await asyncio.to_thread(body_of, self.loaded, prompt, sampling, n, self._stops, talk, number)
        failures = 0
        while True:
            seat = await self._free()
            label, version = self.label, self.version
            body["model"] = label if self._adapted and label else MODEL
            asking = asyncio.ensure_future(seat.server.generate(body, self.settings.request_timeout_s))
            seat.asking.add(asking)
            try:
                answer = await asking
                held = None if self._adapted else label  # an adapter's name is its version
                greedy = sampling.seed is None
                rollouts = rollouts_of(self.loaded, prompt, answer, n, version, held, greedy=greedy, talk=talk)
                self._last_seen = time.monotonic()
                return rollouts
            except Unfit as why:
                self._lose(seat, str(why))
                failures += isinstance(why, RouteError) and why.status == 500
                if failures == SAME_FAILURE:
                    raise EngineError(
                        f"sample {prompt.sample.id}: servers failed on it {failures} times ({why}); their logs say why"
                    ) from None
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    raise
                # the watcher gave the server up
            finally:
                seat.asking.discard(asking)
            self.counts["asked_again"] += 1

    async def _free(self) -> Seat:
        """The usable server with the least to do of this process; waits for one, up to `rollout.server_timeout_s`."""
        while True:
            order = sorted(range(len(self.seats)), key=lambda i: (i - self.world.rank) % len(self.seats))
            usable = [self.seats[i] for i in order if self.seats[i].usable]
            silent = time.monotonic() - self._last_seen
            if usable and (silent < self.settings.server_timeout_s or not any(seat.why for seat in usable)):
                return min(usable, key=lambda seat: len(seat.asking))
            if silent > self.settings.server_timeout_s:
                told = "; ".join(f"{seat.server.url}: {seat.why}" for seat in self.seats)
                raise EngineError(
                    f"no server has answered for {silent:.0f} s ({told}). Start one again (vlm-r1 serve), or raise "
                    "rollout.server_timeout_s; the same command continues the run"
                )
            await asyncio.sleep(LOOK_S / 4)

    # -- health ------------------------------------------------------------------------------------------------------

    def _lose(self, seat: Seat, why: str) -> None:
        """Leave a server out; what is with it is asked again elsewhere, or later."""
        if seat.usable:
            seat.usable = False
            self.counts["servers_lost"] += 1
            where = "elsewhere" if any(other.usable for other in self.seats) else "when it is back"
            self._tell(f"{seat.server.url} is left out: {why}; its answers are asked for again {where}")
        seat.why = why
        for asking in list(seat.asking):
            asking.cancel()

    def _tell(self, what: str) -> None:
        who = f"rank {self.world.rank}: " if self.world.size > 1 else ""
        print(f"{who}{what}", file=sys.stderr, flush=True)

    async def _watch(self, seat: Seat) -> None:
        """Look after a server for as long as the engine lives."""
        while not self.closing:
            await asyncio.sleep(LOOK_S)
            if self._unwatched(seat):
                continue
            try:
                async with seat.lock:
                    if self._unwatched(seat):
                        continue
                    label = self.label
                    current = await self._holds_current(seat)
                    if self._unwatched(seat) or self.label != label:
                        continue  # a sync began meanwhile: the server spoke of the weights before it
                    if seat.usable and not current:
                        raise Unfit("it holds other weights than the current ones")
                    if not seat.usable and seat.driven and not current:
                        await self._send(seat)
                        current = True
                    if not seat.usable and current:
                        self._back(seat)
            except Exception as why:  # whatever it is: a server that nobody looks after would never come back
                self._lose(seat, str(why) or type(why).__name__)
                await self._revive(seat)

    def _unwatched(self, seat: Seat) -> bool:
        return self.asleep or (seat.usable and not seat.asking)

    async def _holds_current(self, seat: Seat) -> bool:
        """Whether a server answers, and with the current weights."""
        held = await seat.server.label(HANG_S)
        if self._adapted:
            return self.label in await seat.server.models()
        return self.label is None or held == self.label

    @property
    def _adapted(self) -> bool:
        return self.files is not None and self.files.adapted

    def _back(self, seat: Seat) -> None:
        seat.usable = True
        self._tell(f"{seat.server.url} is back, with the weights of version {self.version}")

    async def _revive(self, seat: Seat) -> None:
        """Start a server again that this process started and that died or hangs."""
        if seat.process is None or self.closing:
            return
        self._tell(f"{seat.server.url} is started again")
        try:
            await asyncio.to_thread(seat.process.restart)
            await asyncio.to_thread(seat.process.wait_ready)
            if self.asleep:  # the update has its GPU by now
                await seat.server.sleep()
        except (Unfit, EngineError) as why:
            seat.why = str(why)

    # -- weights -----------------------------------------------------------------------------------------------------

    def sync(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Write the weights where servers find them, and have those that are awake take them over.

        Every process calls it, with nothing asked. A server that fails at it is left out; it gets them when it is back.
        """
        if self.files is None:
            raise EngineError("this engine answers with the weights that its servers were started with")
        files = self.files.write(weights, version)
        self.world.barrier()
        self.weights, self.version, self.label = files, version, f"{self.run}-v{version}"
        if not self.asleep:
            self._do(self._each(self._send_to_usable))
        self.world.barrier()
        self.files.drop_before(version)

    def checksums(self, *, fresh: bool = False) -> list[dict[str, str]]:
        """A hash of every parameter, of each server that this process drives; they read all their weights for it.

        With `fresh` only of those that have the weights of their model folder yet.
        """
        seats = [seat for seat in self.seats if seat.driven and seat.usable]
        if fresh:
            seats = [seat for seat in seats if self._do(seat.server.label()) == FROM_FOLDER]
        return [self._do(seat.server.checksums()) for seat in seats]

    def take_counts(self) -> dict[str, int]:
        """How many groups were asked for again, and how often a server was left out, since the last call."""
        counts, self.counts = self.counts, dict.fromkeys(self.counts, 0)
        return counts

    async def _each(self, act: Callable[[Seat], Coroutine[Any, Any, None]]) -> None:
        """Do something with each server that this process drives. One that fails at it is left out: an error raised
        here would leave the other processes waiting."""

        async def one(seat: Seat) -> None:
            async with seat.lock:
                try:
                    await act(seat)
                except (Unfit, EngineError) as why:
                    self._lose(seat, str(why))

        await asyncio.gather(*(one(seat) for seat in self.seats if seat.driven))

    async def _send_to_usable(self, seat: Seat) -> None:
        if seat.usable:
            await self._send(seat)

    async def _send(self, seat: Seat) -> None:
        assert self.label is not None and self.files is not None
        if not self._adapted:
            await seat.server.load(self.weights, self.label)
        else:
            known = await seat.server.models()
            if self.label not in known:
                await seat.server.load_adapter(self.weights[0], self.label)
            for old in known - {self.label, MODEL}:
                await seat.server.unload_adapter(old)

    # -- memory ------------------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Servers that slept get their memory and the current weights."""
        if self.sleeps and self.asleep:
            self._do(self._each(self._wake))
            self.asleep = False
            self.world.barrier()

    async def _wake(self, seat: Seat) -> None:
        await seat.server.wake("weights")
        if self.label is not None:
            await self._send(seat)
        await seat.server.wake("kv_cache")

    def sleep(self) -> None:
        """Servers on the GPUs of the run give their memory back to the update."""
        if self.sleeps and not self.asleep:
            self.world.barrier()  # another process may still be asking
            self.asleep = True
            self._do(self._each(lambda seat: seat.server.sleep()))
            self.world.barrier()

    # -- all in all ----------------------------------------------------------------------------------------------------

    def check(self) -> EngineState:
        """Its version and what its servers lack. Raises `EngineError` where none of them answers."""
        dtype = str(self.loaded.policy.compute_dtype).removeprefix("torch.")
        problems: list[str] = []
        for seat in self.seats:
            try:
                lacks = self._do(seat.server.problems(adapted=self._adapted, sleeps=self.sleeps))
                problems += [f"{seat.server.url}: {sentence}" for sentence in lacks]
            except Unfit as why:
                raise EngineError(
                    f"{seat.server.url}: is not a vLLM server that answers ({why}); start it with vlm-r1 serve, or "
                    "correct rollout.servers"
                ) from None
        return EngineState(name="vllm", version=self.version, dtype=dtype, is_trainer=False, problems=tuple(problems))

    def close(self) -> None:
        """End the servers that the run started, and delete the weights on their way."""
        if self.closing:
            return
        self.closing = True
        self._do(self._end())
        for seat in self.seats:
            if seat.process is not None:
                seat.process.kill()
        if self.files is not None:
            self.files.close()
        self._loop.call_soon_threadsafe(self._loop.stop)

    async def _end(self) -> None:
        """Give up all that runs in the loop."""
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        for seat in self.seats:
            await seat.server.http.aclose()

    def _do(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run something in the loop, and keep the watchdog informed."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        while True:
            self.world.beat("speaking to servers")
            try:
                return future.result(LOOK_S)
            except TimeoutError:
                if future.done():
                    raise
