"""An engine with weights of its own, as servers have them: what older weights answer is really older."""

import threading
import time
from contextlib import contextmanager
from dataclasses import replace

import torch

from vlm_r1.distributed.sharding import full_tensors
from vlm_r1.models.load import load_policy
from vlm_r1.rl import loop
from vlm_r1.rollout.engine import EngineState, awake
from vlm_r1.rollout.native import NativeEngine

SERVED = {"engine": "vllm", "servers": ["http://127.0.0.1:1"]}
"""`rollout` of a recipe whose engine the tests replace."""


class Apart:
    """The native engine over a policy that only `sync` changes.

    `asked` has (step, numbers, version, name of the thread) for each call; it refuses to be asked or synced while it
    answers. `delay` is slept before each group.
    """

    def __init__(self, recipe, loaded, start, *, delay: float = 0.0) -> None:
        self.native = NativeEngine(load_policy(recipe.model, recipe.prompt, seed=recipe.run.seed), recipe.rollout)
        self.asked, self.delay, self.busy = [], delay, threading.Lock()
        self.sync(full_tensors(loaded.policy), start)

    def generate(self, prompts, sampling, *, n):
        assert self.busy.acquire(blocking=False), "asked while it answers"
        try:
            if sampling.seed is not None and sampling.seed[-1] >= 0:  # of no evaluation and no check at the start
                numbers = [prompt.number for prompt in prompts]
                name = threading.current_thread().name
                self.asked.append((sampling.seed[-1], numbers, self.native.version, name))
            with awake(self.native):
                for group in list(self.native.generate(prompts, sampling, n=n)):
                    time.sleep(self.delay)
                    yield group
        finally:
            self.busy.release()

    @torch.no_grad()
    def sync(self, weights, version):
        assert self.busy.acquire(blocking=False), "synced while it answers"
        own = dict(self.native.loaded.policy.named_parameters())
        for name, tensor in weights:
            own[name].copy_(tensor)
        self.native.version = version
        self.busy.release()

    def wake(self):
        """Always awake."""

    def sleep(self):
        """Never asleep."""

    def check(self):
        return EngineState(name="apart", version=self.native.version, dtype="float32", is_trainer=False)


class Late(Apart):
    """Says of the first answers to step `late` that weights of one version earlier than allowed wrote them."""

    late, times = 2, 1

    def generate(self, prompts, sampling, *, n):
        for group in super().generate(prompts, sampling, n=n):
            first = sum(step == self.late for step, *_ in self.asked) <= self.times
            if sampling.seed is not None and sampling.seed[-1] == self.late and first:
                group = replace(group, rollouts=tuple(replace(r, version=r.version - 1) for r in group.rollouts))
            yield group


def install(monkeypatch, kind=Apart, **options) -> list:
    """Let runs answer through engines of this kind; returns those opened."""
    opened: list = []

    @contextmanager
    def open_engine(recipe, loaded, world, start):
        opened.append(kind(recipe, loaded, start, **options))
        yield opened[-1]

    monkeypatch.setattr(loop, "open_engine", open_engine)
    return opened
