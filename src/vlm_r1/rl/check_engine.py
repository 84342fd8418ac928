"""`vlm-r1 check-engine`: does the engine of a recipe answer as the trainer does? Numbers before a run, without one."""

from __future__ import annotations

import torch

from vlm_r1.config import Recipe
from vlm_r1.distributed import processes
from vlm_r1.rl.engines import open_engine, parity
from vlm_r1.rl.parity import Parity
from vlm_r1.runtime.session import open_trained


def check_engine(recipe: Recipe, prompts: int, answers: int) -> Parity:
    """Ask `prompts` prompts of the recipe's data, greedily and `answers` times by sampling. Every process calls it."""
    if recipe.run.threads:
        torch.set_num_threads(recipe.run.threads)
    world = processes.start()
    loaded = open_trained(recipe, world)
    with open_engine(recipe, loaded, world) as engine:
        return parity(recipe, loaded, engine, world, prompts, answers)
