"""The engine that answers for a model folder: outside of training, nothing sends it weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from vlm_r1.config import Recipe
from vlm_r1.distributed.finite import demand_finite
from vlm_r1.distributed.processes import World
from vlm_r1.envs.host import open_host
from vlm_r1.models.adapters import base_of_adapter
from vlm_r1.models.load import LoadedPolicy, load_policy, load_without_weights, resolve_path
from vlm_r1.rollout.engine import RolloutEngine
from vlm_r1.rollout.native import NativeEngine
from vlm_r1.rollout.vllm_open import open_vllm


@contextmanager
def open_answering(recipe: Recipe, world: World) -> Iterator[tuple[LoadedPolicy, RolloutEngine]]:
    """`model.path` behind `rollout.engine`, and what encodes prompts for it. Every process enters it.

    A vLLM server reads the folder itself, and no process here holds its weights; an adapter is sent to it.
    """
    if recipe.rollout.engine != "vllm":
        loaded = load_policy(recipe.model, recipe.prompt, seed=recipe.run.seed)
        loaded.policy.to(world.device)
        demand_finite(loaded.policy, world, recipe.model.path)
        yield loaded, NativeEngine(loaded, recipe.rollout, world, open_host(recipe.env, loaded.family))
        return
    adapted = base_of_adapter(resolve_path(recipe.model.path)) is not None
    loaded = (load_policy if adapted else load_without_weights)(recipe.model, recipe.prompt)
    with open_vllm(loaded, recipe, world, trains=adapted) as engine:
        if adapted:
            engine.sync(loaded.policy.named_parameters(), version=0)
        yield loaded, engine
