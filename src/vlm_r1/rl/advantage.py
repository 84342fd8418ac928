"""From rewards to advantages, within each group. Rewards that are NaN ("not scorable") are left out and get 0."""

from __future__ import annotations

import torch
from torch import Tensor

STD_FLOOR = 1e-4
"""Added to the standard deviation, as in the paper's code."""


def mean_std(rewards_PG: Tensor) -> Tensor:
    """(r - mean) / (std + 1e-4), std with Bessel's correction (GRPO, arXiv 2402.03300, eq. 3; VLM-R1)."""
    centred, scored, count_P1 = _centred(rewards_PG)
    variance = (centred**2).sum(-1, keepdim=True) / (count_P1 - 1).clamp(min=1)
    return torch.where(scored, centred / (variance.sqrt() + STD_FLOOR), 0.0)


def mean_only(rewards_PG: Tensor) -> Tensor:
    """r - mean (Dr. GRPO, arXiv 2503.20783, sec. 3.2)."""
    centred, scored, _ = _centred(rewards_PG)
    return torch.where(scored, centred, 0.0)


def leave_one_out(rewards_PG: Tensor) -> Tensor:
    """r minus the mean of the group's other rewards (RLOO, arXiv 2402.14740, eq. 8): mean_only times n / (n - 1)."""
    centred, scored, count_P1 = _centred(rewards_PG)
    return torch.where(scored, centred * count_P1 / (count_P1 - 1).clamp(min=1), 0.0)


def _centred(rewards_PG: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rewards less their group's mean (exactly 0 where all are equal), which are scored, and how many per group."""
    scored = ~rewards_PG.isnan()
    count_P1 = scored.sum(-1, keepdim=True)
    filled = torch.where(scored, rewards_PG, 0.0)
    mean_P1 = filled.sum(-1, keepdim=True) / count_P1.clamp(min=1)
    low = torch.where(scored, rewards_PG, torch.inf).amin(-1, keepdim=True)
    high = torch.where(scored, rewards_PG, -torch.inf).amax(-1, keepdim=True)
    centred = torch.where(scored & (high > low), filled - mean_P1, 0.0)  # no rounding error becomes an advantage
    return centred, scored, count_P1


def zero_variance_share(rewards_PG: Tensor) -> float:
    """Share of groups whose rewards are all equal: they teach nothing."""
    return float((mean_only(rewards_PG) == 0).all(-1).float().mean())


def overlong_penalty(lengths: Tensor, limit: int, share: float = 0.2) -> Tensor:
    """DAPO's soft overlong punishment (arXiv 2503.14476, eq. 13): 0, falling to -1 over the last share of the limit."""
    buffer = max(1, int(limit * share))
    return -((lengths - (limit - buffer)) / buffer).clamp(0, 1)
