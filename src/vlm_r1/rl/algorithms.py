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
    ratio: Callable[[objective.LossInputs], Tensor] = objective.token_ratio
    surrogate: Callable[[Tensor, objective.LossInputs, float, float], Tensor] = objective.clipped
    token_weight: Callable[[Tensor, int, int, int], Tensor] = objective.answer_mean
    clip_low: float = 0.2
    clip_high: float = 0.2
    dynamic_sampling: bool = False
    overlong_shaping: bool = False


ALGORITHMS: dict[str, Algorithm] = {
    "grpo": Algorithm(),
    "dr_grpo": Algorithm(advantage=advantage.mean_only, token_weight=objective.constant_length),
    "dapo": Algorithm(token_weight=objective.token_mean, clip_high=0.28, dynamic_sampling=True, overlong_shaping=True),
    # GSPO's ratio is a mean over tokens and moves far less than one token's: its paper clips at 3e-4 and 4e-4.
    "gspo": Algorithm(ratio=objective.sequence_ratio, clip_low=3e-4, clip_high=4e-4),
    # CISPO has no lower bound: 1 - 1 = 0.
    "cispo": Algorithm(surrogate=objective.clipped_weight, token_weight=objective.token_mean, clip_low=1.0),
    "rloo": Algorithm(advantage=advantage.leave_one_out, token_weight=objective.answer_sum),
}
"""`rl.algorithm` in a recipe -> its choices; `rl.clip_low` and `rl.clip_high` take the place of its clip widths."""
