"""The rollout engine of a recipe, and how tokens are weighted that another one than the trainer sampled."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path

from vlm_r1.config import Recipe
from vlm_r1.data.source import load_source
from vlm_r1.distributed.processes import World
from vlm_r1.distributed.sharding import full_tensors
from vlm_r1.envs.host import open_host
from vlm_r1.errors import ConfigError, EngineError
from vlm_r1.models.load import LoadedPolicy
from vlm_r1.records import Prompt, SamplingParams
from vlm_r1.rl.algorithms import ALGORITHMS
from vlm_r1.rl.parity import Parity, compare
from vlm_r1.rollout.engine import EngineState, RolloutEngine
from vlm_r1.rollout.native import NativeEngine
from vlm_r1.rollout.replay import ReplayEngine
from vlm_r1.rollout.vllm import VLLMEngine
from vlm_r1.rollout.vllm_open import open_vllm
from vlm_r1.runtime.runlog import read_rollouts
from vlm_r1.runtime.session import Session

START_PROMPTS, START_ANSWERS = 4, 4
"""Prompts, and sampled answers to each, that a run compares engine and trainer by before it starts."""


@contextmanager
def open_engine(recipe: Recipe, loaded: LoadedPolicy, world: World, start: int = 0) -> Iterator[RolloutEngine]:
    """`rollout.engine`, under the weights that the policy has, which are version `start`. Every process enters it.

    Raises `ConfigError` where it cannot serve the recipe, and `EngineError` where it does not answer.
    """
    rollout = recipe.rollout
    if rollout.engine == "vllm":
        with open_vllm(loaded, recipe, world) as served:
            first_sync(served, loaded, world, start)
            yield served
        return
    engine: RolloutEngine = NativeEngine(loaded, rollout, world, open_host(recipe.env, loaded.family))
    if rollout.engine == "replay":
        if ALGORITHMS[recipe.rl.algorithm].dynamic_sampling:
            raise ConfigError(
                f"rollout.engine: replay cannot follow {recipe.rl.algorithm}, which samples dynamically: "
                "tables keep the groups that were trained on alone; use rl.algorithm: grpo"
            )
        folder = Path(str(rollout.replay))
        engine = ReplayEngine(str(folder), lambda step: read_rollouts(folder, step))
    engine.sync(iter(()), version=start)
    yield engine


def first_sync(engine: VLLMEngine, loaded: LoadedPolicy, world: World, start: int) -> None:
    """Send the weights that a run starts from, and have vLLM's checksums confirm what arrived.

    A fresh run sends what the servers read from the model folder themselves, so nothing may change. Raises
    `EngineError`, on every process, where something does, or where two servers then differ.
    """
    adapted = engine.files is not None and engine.files.adapted
    before = engine.checksums(fresh=True) if not adapted and start == 0 else []
    engine.sync(full_tensors(loaded.policy), version=start)
    after = [] if adapted else engine.checksums()
    found = [sums for own in world.gather([*before, *after]) for sums in own]
    expected = found[0] if found else {}
    for sums in found:
        if wrong := sorted(name for name in expected.keys() | sums.keys() if expected.get(name) != sums.get(name)):
            raise EngineError(
                f"rollout.engine: {len(wrong)} of {len(expected)} parameters of a server are not the trainer's after "
                f"they were sent ({wrong[0].rpartition(':')[2]}, ...): does it run the folder of model.path, in the "
                "trainer's precision?"
            )


def parity(
    recipe: Recipe,
    loaded: LoadedPolicy,
    engine: RolloutEngine,
    world: World,
    prompts: int = START_PROMPTS,
    answers: int = START_ANSWERS,
) -> Parity:
    """Engine and trainer on the first prompts of `data.train` (else of `data.eval`), as the recipe samples."""
    r = recipe.rollout
    sampling = SamplingParams(
        seed=(recipe.run.seed, -1),
        max_new_tokens=r.max_new_tokens,
        temperature=r.temperature,
        stop_at_answer=r.stop_at_answer,
    )
    asked = first_prompts(recipe, loaded, prompts)
    return compare(loaded, engine, NativeEngine(loaded, r, world), asked, sampling, answers, world)


def demand_parity(session: Session, engine: RolloutEngine) -> None:
    """Refuse to train where a vLLM engine does not answer as the trainer does. Every process calls it.

    Raises `EngineError` where the mean difference of log-probs is above `rollout.max_mismatch`.
    """
    recipe, world = session.recipe, session.world
    if recipe.rollout.engine != "vllm":
        return
    found = parity(recipe, session.loaded, engine, world)
    if world.is_main:
        told = f"log-probs differ by {found.mean:.2g} nats on average, {found.maximum:.2g} at most"
        print(f"engine and trainer: {told} ({found.tokens} tokens)", file=sys.stderr, flush=True)
    found.demand(recipe.rollout.max_mismatch)


def first_prompts(recipe: Recipe, loaded: LoadedPolicy, count: int) -> list[Prompt]:
    """The first prompts of a recipe's data, numbered. Raises `ConfigError` where it names none."""
    sources = [*recipe.data.train, *recipe.data.eval.values()]
    if not sources:
        raise ConfigError("data.train and data.eval: are empty; name at least one source")
    samples = islice((s for source in sources for s in load_source(source, seed=recipe.run.seed)), count)
    return [replace(loaded.family.encode(sample), number=number) for number, sample in enumerate(samples)]


def correction(recipe: Recipe, state: EngineState) -> str:
    """`rollout.importance_sampling` with `auto` settled: `off` where the trainer itself samples."""
    wanted = recipe.rollout.importance_sampling
    if wanted != "auto":
        return wanted
    return "off" if state.is_trainer else "token_truncate"
