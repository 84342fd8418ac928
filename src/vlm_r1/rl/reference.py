"""The reference model that a KL term holds on to: a frozen copy of the policy the run started from.

It is sharded like the policy, in compute precision. Beside an adapter there is no copy: the model is the policy's own,
without the adapter, or with the one it started from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from vlm_r1.distributed.loading import open_policy
from vlm_r1.distributed.sharding import is_sharded, reshard
from vlm_r1.models.adapters import REFERENCE, base_of_adapter, switched
from vlm_r1.models.freeze import tower_output
from vlm_r1.models.load import resolve_path
from vlm_r1.models.packing import PackedRow
from vlm_r1.records import VisionInput
from vlm_r1.runtime.session import Session

Reference = Callable[[PackedRow, float], tuple[Tensor, Tensor]]
"""Log-prob and entropy `(S,)` of every scored token of a row at a temperature."""


def load_reference(session: Session) -> Reference | None:
    """The model of the recipe, not of a checkpoint, with gradients off; None without a KL term."""
    recipe = session.recipe
    if not recipe.rl.beta:
        return None
    if "lora" in recipe.train.how().values():
        return _switched_policy(session)
    loaded = open_policy(
        recipe.model,
        recipe.prompt,
        session.world,
        prepare=lambda family: family.model.requires_grad_(False),
        everything=True,
        offload=recipe.rl.reference_offload,
        **session.sharing,
    )
    policy = loaded.policy
    policy.eval()
    how = recipe.train.how()
    if how["vision"] == how["connector"] == "frozen":  # then the reference's is the same
        policy.features = session.policy.features  # type: ignore[method-assign]
    elif session.policy.vision_cache is not None and not is_sharded(session.policy):
        # The same tower, under the connector that the run began with. Recording its output runs the policy's connector,
        # whose shards are not together here.
        replay = tower_output(loaded.family).replay

        def features(images: Sequence[VisionInput]) -> dict[str, Any]:
            if not images:
                return {}
            return {"image": replay(policy.encode_images, images, session.policy.kept(images))}

        policy.features = features  # type: ignore[method-assign]

    def reference(row: PackedRow, temperature: float) -> tuple[Tensor, Tensor]:
        out: tuple[Tensor, Tensor] = policy(row, temperature)
        reshard(policy)
        return out

    return reference


def _switched_policy(session: Session) -> Reference:
    """The policy without its adapter; where the run started from an adapter, with that one."""
    policy, path = session.policy, resolve_path(session.recipe.model.path)
    started_from = REFERENCE if base_of_adapter(path) else None

    def reference(row: PackedRow, temperature: float) -> tuple[Tensor, Tensor]:
        with switched(policy.model, started_from):
            return policy(row, temperature)  # type: ignore[no-any-return]

    return reference
