"""The rollout engine of a recipe, and how tokens are weighted that another one than the trainer sampled."""

from __future__ import annotations

from pathlib import Path

from vlm_r1.config import Recipe
from vlm_r1.errors import ConfigError
from vlm_r1.rl.algorithms import ALGORITHMS
from vlm_r1.rollout.engine import EngineState, RolloutEngine
from vlm_r1.rollout.replay import ReplayEngine
from vlm_r1.runtime.runlog import read_rollouts
from vlm_r1.runtime.session import Session


def open_engine(session: Session) -> RolloutEngine:
    """`rollout.engine`, under the weights that the session starts from. Raises `ConfigError` where it cannot serve."""
    rollout = session.recipe.rollout
    engine: RolloutEngine = session.engine
    if rollout.engine == "replay":
        if ALGORITHMS[session.recipe.rl.algorithm].dynamic_sampling:
            raise ConfigError(
                f"rollout.engine: replay cannot follow {session.recipe.rl.algorithm}, which samples dynamically: "
                "tables keep the groups that were trained on alone; use rl.algorithm: grpo"
            )
        folder = Path(str(rollout.replay))
        engine = ReplayEngine(str(folder), lambda step: read_rollouts(folder, step))
    engine.sync(iter(()), version=session.start)
    return engine


def correction(recipe: Recipe, state: EngineState) -> str:
    """`rollout.importance_sampling` with `auto` settled: `off` where the trainer itself samples."""
    wanted = recipe.rollout.importance_sampling
    if wanted != "auto":
        return wanted
    return "off" if state.is_trainer else "token_truncate"
