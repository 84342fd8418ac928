"""Before a run: does it fit the GPUs it is started on, and must activations be computed again for that?"""

from __future__ import annotations

from itertools import islice

from vlm_r1.config import Recipe
from vlm_r1.errors import ConfigError
from vlm_r1.plan.advice import advise, changed_recipe, more_gpus
from vlm_r1.plan.machine import GIB, Machine
from vlm_r1.plan.make import Plan, make_plan
from vlm_r1.plan.prompts import Questions, find_questions
from vlm_r1.plan.text import change_text, fit_text

CHECKPOINTING = "model.gradient_checkpointing"
ADVICE = 3
"""Changes that a refused run names."""


def resolve(recipe: Recipe, processes: int, gpu_bytes: int | None) -> Recipe:
    """The recipe with `model.gradient_checkpointing: auto` settled for so many processes, each with a GPU of this
    memory; without GPUs (None) it is off and nothing is planned.

    Raises `ConfigError` where the peak memory is above what a GPU has, with the first advice, and what a plan raises.
    """
    if gpu_bytes is None:
        return _settled(recipe, False) if recipe.model.gradient_checkpointing == "auto" else recipe
    machine, questions = Machine(processes=processes, memory=gpu_bytes), find_questions(recipe)
    recipe, plan = settle(recipe, questions, machine)
    if plan.peak > machine.room:
        raise ConfigError(_refusal(recipe, plan, questions, machine))
    return recipe


def settle(recipe: Recipe, questions: Questions, machine: Machine) -> tuple[Recipe, Plan]:
    """The recipe with `model.gradient_checkpointing: auto` settled, off where the plan fits without, and its plan.

    Without the memory of a GPU it is off.
    """
    auto = recipe.model.gradient_checkpointing == "auto"
    recipe = _settled(recipe, False) if auto else recipe
    plan = make_plan(recipe, questions, machine)
    if auto and machine.memory is not None and plan.peak > machine.room:
        recipe = _settled(recipe, True)
        plan = make_plan(recipe, questions, machine)
    return recipe, plan


def _settled(recipe: Recipe, value: bool) -> Recipe:
    return changed_recipe(recipe, {CHECKPOINTING: value})


def _refusal(recipe: Recipe, plan: Plan, questions: Questions, machine: Machine) -> str:
    changes = list(islice(advise(recipe, plan, questions, machine), ADVICE))
    lines = [fit_text(plan, machine), *map(change_text, changes)]
    if wider := more_gpus(recipe, plan, questions, machine):
        lines += ["or as it is on more GPUs:", change_text(wider)]
    memory = f"{(machine.memory or 0) / GIB:g}"
    lines.append(f"All advice: vlm-r1 plan RECIPE --gpus {machine.processes} --gpu-memory {memory}")
    return "\n".join(lines)
