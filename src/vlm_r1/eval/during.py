"""Evaluation of a run, before, during and after: the same for reinforcement learning and supervised fine-tuning."""

from __future__ import annotations

import sys

from vlm_r1.config import Recipe
from vlm_r1.eval.run import data_of, evaluate, load_splits
from vlm_r1.rollout.engine import RolloutEngine
from vlm_r1.runtime.session import Session


def evaluation_due(recipe: Recipe, step: int) -> bool:
    """Whether `step` (from 1) is one of those that `eval.every` names; the last one is evaluated in any case."""
    return bool(recipe.eval.every) and step % recipe.eval.every == 0 and step < recipe.run.steps


def evaluate_splits(
    session: Session, phase: str, engine: RolloutEngine | None = None, version: int | None = None
) -> None:
    """Answer the held-out splits, on all processes, and keep the result in the run folder under `phase`.

    `engine` answers (None: the policy itself), with weights of `version`; `EngineError` where it cannot.
    """
    splits = load_splits(session.recipe)
    if not splits:
        return
    if session.world.is_main:
        count = sum(map(len, splits.values()))
        print(f"{phase}: answering {count} held-out questions", file=sys.stderr, flush=True)
    answers = session.engine if engine is None else engine
    metrics, rows = evaluate(answers, session.loaded.family, splits, session.recipe, session.world, version=version)
    if session.world.is_main:
        session.log.evaluation(phase, metrics, rows, data_of(session.recipe))
