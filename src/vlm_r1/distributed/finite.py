"""Are a policy's weights finite, over all processes that hold them?"""

from __future__ import annotations

import torch
from torch import nn

from vlm_r1.distributed.processes import World
from vlm_r1.distributed.sharding import local_part
from vlm_r1.errors import ModelError


def not_finite(policy: nn.Module, world: World, *, trained: bool = False) -> str | None:
    """The first of a policy's parameters (`trained`: of those that are trained) that holds NaN or infinity, else None.

    Every process calls it. It reads every weight once.
    """
    chosen = [(name, p) for name, p in policy.named_parameters() if p.requires_grad or not trained]
    parts = {name: local_part(p) for name, p in chosen if p.is_floating_point()}
    parts = {name: part for name, part in parts.items() if part.numel()}
    ends = [torch.stack(part.aminmax()).isfinite().all() for part in parts.values()]  # NaN is both, where there is one
    fine = torch.stack(ends).tolist() if ends else []
    mine = {name for name, is_fine in zip(parts, fine, strict=True) if not is_fine}
    found = set().union(*world.gather(mine))
    return next((name.removeprefix("model.") for name, _ in chosen if name in found), None)


def demand_finite(policy: nn.Module, world: World, source: object) -> None:
    """Raise `ModelError` on every process where weights that were read from `source` are not finite."""
    if name := not_finite(policy, world):
        raise ModelError(
            f"{source}: its weights are not finite (first in {name}): the file is damaged, or the run that wrote it "
            "diverged; take an earlier checkpoint or another model"
        )
