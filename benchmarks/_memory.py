"""The peak memory of the phases of a real step, as torch's profiler sees every allocation. Nothing of the plan.

Answers run to their limit, a tenth ends one token before it, and every group is trained on: what a plan assumes.
Several processes (gloo) are started by torchrun, which runs this file:

    torchrun --nproc_per_node 2 benchmarks/_memory.py RECIPE OUT.json
"""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from vlm_r1.config import Recipe
from vlm_r1.config_file import load_config, resolved_yaml
from vlm_r1.data.source import load_source
from vlm_r1.distributed.sharding import local_bytes
from vlm_r1.eval.run import evaluate
from vlm_r1.models.vision_cache import VisionCache
from vlm_r1.rl.algorithms import ALGORITHMS
from vlm_r1.rl.batch import make_batch
from vlm_r1.rl.experience import deal, prompt_batches
from vlm_r1.rl.reference import load_reference
from vlm_r1.rl.rollouts import sampling_of
from vlm_r1.rl.step import Trainer
from vlm_r1.rollout.engine import awake
from vlm_r1.rollout.sampling import StoppingCriteria
from vlm_r1.runtime.session import Session, open_session
from vlm_r1.sft import train as sft
from vlm_r1.sft.batch import ByImage


def measure(recipe: Recipe, processes: int = 1) -> dict[str, int]:
    """Peak bytes of each phase of the second step of a recipe (CPU), on the process where it is highest.

    The first step leaves the optimizer's state, which the phase "states" has alone with the weights.
    """
    if processes == 1:
        return _here(recipe)
    with tempfile.TemporaryDirectory() as folder:
        file, out = Path(folder, "recipe.yaml"), Path(folder, "peaks.json")
        file.write_text(resolved_yaml(recipe))
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*command, __file__, str(file), str(out)], env=environment, capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(done.stderr[-4000:])
        ranks = json.loads(out.read_text())
    return {name: max(peaks[name] for peaks in ranks) for name in ranks[0]}


def _here(recipe: Recipe) -> dict[str, int]:
    with open_session(recipe) as session:
        return _measure_sft(session) if recipe.method == "sft" else _measure(session)


def _measure(session: Session) -> dict[str, int]:
    recipe, family, world = session.recipe, session.loaded.family, session.world
    reference = load_reference(session)
    trainer = Trainer(session, ALGORITHMS[recipe.rl.algorithm], reference)
    samples = load_source(recipe.data.train[0], seed=recipe.run.seed)
    with prompt_batches(session, _InOrder(samples)) as batches:  # type: ignore[arg-type]
        prompts = deal(batches, recipe.rl.prompts_per_step, world, 0, 0.0)
    shape = len(prompts), recipe.rl.group_size

    def answer(step: int) -> Any:
        with awake(session.engine), _long_answers(recipe.rollout.max_new_tokens):
            return list(session.engine.generate(prompts, sampling_of(recipe, step), n=recipe.rl.group_size))

    def update(groups: Any, step: int) -> None:
        trainer.step(make_batch(groups, torch.randn(shape), torch.full(shape, 1e-3), keep_all=True), step)

    update(answer(0), 0)
    forget(session)
    meter = Meter(session, reference)
    rolled = [meter.run("rollout", lambda: answer(1))]
    meter.run("update", lambda: update(rolled.pop(), 1))
    if splits := session.inputs.splits:
        with _long_answers(recipe.eval.max_new_tokens):
            meter.run("evaluation", lambda: evaluate(session.engine, family, splits, recipe, world))
    return meter.peaks


def _measure_sft(session: Session) -> dict[str, int]:
    recipe = session.recipe
    images = ByImage(load_source(recipe.data.train[0], seed=recipe.run.seed))
    with sft.group_batches(session, _InOrder(images)) as batches:  # type: ignore[arg-type]
        prefix_groups = [group for _, made in batches.take(recipe.sft.images_per_step) for group in made]
    sft.sft_step(session, prefix_groups, 0)
    forget(session)
    meter = Meter(session, None)
    meter.run("update", lambda: sft.sft_step(session, prefix_groups, 1))
    return meter.peaks


def forget(session: Session) -> None:
    """Empty the cache of what a frozen tower makes: a plan is of a step whose images it has not seen."""
    policy = session.policy
    if (cache := policy.vision_cache) is not None:
        policy.vision_cache = VisionCache(cache.capacity, cache.folder)


class Meter:
    """Follows the memory in use beside what a session holds throughout; `peaks` has the highest of each run.

    The profiler does not see what other threads free (gloo's), so each run starts again from what is held.
    """

    def __init__(self, session: Session, reference: Any) -> None:
        self.held = _held(session, reference)
        self.peaks: dict[str, int] = {"states": self.held}

    def run(self, name: str, call: Callable[[], Any]) -> Any:
        """Call and return what it returns."""
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            result = call()
        level = highest = self.held
        for event in profiler.profiler.kineto_results.events():
            if event.name() == "[memory]":
                level += event.nbytes()
                highest = max(highest, level)
        self.peaks[name] = highest
        return result


class _InOrder:
    """Samples as a stream, from the first on."""

    def __init__(self, samples: Sequence[Any]) -> None:
        self.samples = samples

    def take(self, n: int) -> list[Any]:
        return [self.samples[i] for i in range(n)]

    def state_dict(self) -> dict[str, Any]:
        return {}


@contextmanager
def _long_answers(limit: int) -> Iterator[None]:
    """Let no answer end before one token below the limit; there a tenth of them does."""
    usual, written = StoppingCriteria.follow, [0]

    def follow(self: StoppingCriteria, states_R: Tensor, tokens_R: Tensor) -> Tensor:
        written[0] = 1 if written[0] == limit else written[0] + 1
        ended = -(-len(tokens_R) // 10) if written[0] == limit - 1 else 0
        return torch.where(torch.arange(len(tokens_R)) < ended, self.done, 0).to(torch.uint8)

    StoppingCriteria.follow = follow  # type: ignore[method-assign]
    try:
        yield
    finally:
        StoppingCriteria.follow = usual  # type: ignore[method-assign]


def _held(session: Session, reference: Any) -> int:
    """Bytes of weights, reference model and optimizer states on this process, each storage once."""
    policies = [session.policy]
    if reference is not None:  # a function over a policy, which beside an adapter is the session's own
        policies.append(inspect.getclosurevars(reference).nonlocals["policy"])
    tensors = [t for policy in policies for t in (*policy.parameters(), *policy.buffers())]
    tensors += [v for state in session.optimizer.state.values() for v in state.values() if torch.is_tensor(v)]
    return local_bytes(tensors)


def main() -> None:
    """Measure on the processes that torchrun started; the first one writes the peaks of each."""
    torch.set_num_threads(1)
    recipe, out = load_config(Path(sys.argv[1])), Path(sys.argv[2])
    with open_session(recipe) as session:
        peaks = _measure_sft(session) if recipe.method == "sft" else _measure(session)
        ranks = session.world.gather(peaks)
        if session.world.is_main:
            out.write_text(json.dumps(ranks))


if __name__ == "__main__":
    main()
