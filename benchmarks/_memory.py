"""The most memory that the phases of a real step hold, as torch's profiler sees every allocation. Nothing of the plan.

Answers run to their limit, a tenth ends one token before it, and every group is trained on: what a plan assumes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.state import AcceleratorState
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from vlm_r1.config import Recipe
from vlm_r1.data.source import load_source
from vlm_r1.eval.run import evaluate, load_splits
from vlm_r1.rl.algorithms import ALGORITHMS
from vlm_r1.rl.batch import make_batch
from vlm_r1.rl.experience import roll_out
from vlm_r1.rl.reference import load_reference
from vlm_r1.rl.step import Updater
from vlm_r1.rollout.sampling import StopRule
from vlm_r1.runtime.session import Session, open_session
from vlm_r1.sft.batch import ByPicture, make_trees
from vlm_r1.sft.train import sft_step


def measure(recipe: Recipe) -> dict[str, int]:
    """Peak bytes of each phase of the second step of a recipe (CPU): the first leaves the optimiser's state."""
    AcceleratorState._reset_state(True)
    session = open_session(recipe)
    if recipe.method == "sft":
        return _measure_sft(session)
    reference = load_reference(session) if recipe.rl.beta else None
    updater = Updater(session, ALGORITHMS[recipe.rl.algorithm], reference)
    samples = load_source(recipe.data.train[0], seed=recipe.run.seed)
    prompts = [session.loaded.family.encode(samples[i]) for i in range(recipe.rl.prompts_per_step)]
    shape = len(prompts), recipe.rl.group_size

    def answer(seed: int) -> Any:
        session.loaded.policy.train()
        with session.accelerator.autocast(), _long_answers(recipe.rollout.max_new_tokens):
            return roll_out(session, prompts, seed)

    def update(rolled: Any, step: int) -> None:
        groups, prefill = rolled
        batch = make_batch(groups, torch.randn(shape), torch.full(shape, 1e-3), keep_all=True)
        updater.update(batch, prefill, step)

    update(answer(0), 0)
    meter = Meter(_held(session, reference))
    rolled = [meter.run("rollout", lambda: answer(1))]
    meter.run("update", lambda: update(rolled.pop(), 1))
    if splits := load_splits(recipe):
        with session.accelerator.autocast(), _long_answers(recipe.eval.max_new_tokens):
            meter.run("evaluation", lambda: evaluate(session.loaded, splits, recipe))
    return meter.peaks


def _measure_sft(session: Session) -> dict[str, int]:
    recipe = session.recipe
    pictures = ByPicture(load_source(recipe.data.train[0], seed=recipe.run.seed))[: recipe.sft.pictures_per_step]
    trees = [tree for samples in pictures for tree in make_trees(samples, session.loaded.family)]
    sft_step(session, trees, 0)
    meter = Meter(_held(session, None))
    meter.run("update", lambda: sft_step(session, trees, 1))
    return meter.peaks


class Meter:
    """Follows the memory in use from `held` bytes on; `peaks` has the most of each run."""

    def __init__(self, held: int) -> None:
        self.level = held
        self.peaks: dict[str, int] = {}

    def run(self, name: str, call: Callable[[], Any]) -> Any:
        """Call and return what it returns."""
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            result = call()
        most = self.level
        for event in profiler.profiler.kineto_results.events():
            if event.name() == "[memory]":
                self.level += event.nbytes()
                most = max(most, self.level)
        self.peaks[name] = most
        return result


@contextmanager
def _long_answers(limit: int) -> Iterator[None]:
    """Let no answer end before one token below the limit; there a tenth of them does."""
    usual = StopRule.finished

    def finished(self: StopRule, last_R: Tensor, tokens_BT: Tensor, rows: Tensor) -> Tensor:
        ended = -(-len(last_R) // 10) if tokens_BT.shape[1] == limit - 1 else 0
        return torch.arange(len(last_R)) < ended

    StopRule.finished = finished  # type: ignore[method-assign]
    try:
        yield
    finally:
        StopRule.finished = usual  # type: ignore[method-assign]


def _held(session: Session, reference: Any) -> int:
    """Bytes of weights, reference model and optimiser state, each storage once."""
    optimizer = getattr(session.optimizer, "optimizer", session.optimizer)
    tensors: list[Tensor] = [*session.loaded.policy.parameters(), *session.loaded.policy.buffers()]
    tensors += [*reference.parameters(), *reference.buffers()] if isinstance(reference, torch.nn.Module) else []
    tensors += [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    tensors += [master for _, master in getattr(optimizer, "pairs", ())]
    return _bytes(tensors)


def _bytes(tensors: Iterable[Tensor]) -> int:
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
