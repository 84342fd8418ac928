"""The algorithms: each is one row of choices, and the trainer never asks for a name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from vlm_r1.rl import advantage, objective


@dataclass(frozen=True, slots=True, kw_only=True)
class Algorithm:
    """Choices that make an algorithm; see `rl.advantage` and `rl.objective` for each."""

    advantage: Callable[[Tensor], Tensor] = advantage.mean_std
    ratio: Callable[[Tensor, Tensor, Tensor], Tensor] = objective.token_ratio
    surrogate: Callable[[Tensor, Tensor, Tensor, float, float], Tensor] = objective.clipped
    token_weight: Callable[[Tensor, int], Tensor] = objective.answer_mean
    clip_high: float = 0.2
    dynamic_sampling: bool = False
    overlong_shaping: bool = False


ALGORITHMS: dict[str, Algorithm] = {
    "grpo": Algorithm(),
    "dr_grpo": Algorithm(advantage=advantage.mean_only, token_weight=objective.constant_length),
    "dapo": Algorithm(token_weight=objective.token_mean, clip_high=0.28, dynamic_sampling=True, overlong_shaping=True),
    "gspo": Algorithm(ratio=objective.sequence_ratio),
    "cispo": Algorithm(surrogate=objective.clipped_weight, token_weight=objective.token_mean),
    "rloo": Algorithm(advantage=advantage.leave_one_out),
}
"""`rl.algorithm` in a recipe -> its choices. Clip widths are the recipe's, except `clip_high` where it is not given."""
