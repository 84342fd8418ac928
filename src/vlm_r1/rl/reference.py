"""The reference model that a KL term holds on to: a frozen copy of the policy the run started from.

Beside an adapter there is no copy: the model is the policy's own, without the adapter, or with the one it started from.
"""

from __future__ import annotations

from collections.abc import Callable

from accelerate import cpu_offload
from torch import Tensor

from vlm_r1.models.adapters import NAME, REFERENCE, base_of_adapter, load_adapter, switched
from vlm_r1.models.load import load_policy, resolve_path
from vlm_r1.models.packing import PackedRow
from vlm_r1.runtime.session import Session

Reference = Callable[[PackedRow, float], tuple[Tensor, Tensor]]
"""Log-prob and entropy `(S,)` of every scored token of a row at a temperature; a `Policy` is one."""


def load_reference(session: Session) -> Reference:
    """The model of the recipe, not of a checkpoint, with gradients off."""
    recipe = session.recipe
    if "lora" in recipe.train.how().values():
        return _switched_policy(session)
    policy = load_policy(recipe.model, recipe.prompt, seed=recipe.run.seed).policy
    policy.requires_grad_(False)
    policy.eval()
    if session.loaded.policy.vision_cache is not None:  # a frozen tower is the reference's own
        policy.features = session.loaded.policy.features  # type: ignore[method-assign]
    if recipe.rl.reference_offload:
        policy.banned = policy.banned.to(session.accelerator.device)
        policy.model = cpu_offload(policy.model, session.accelerator.device)
        return policy
    return policy.to(session.accelerator.device)


def _switched_policy(session: Session) -> Reference:
    """The policy without its adapter; where the run started from an adapter, with that one."""
    policy, path = session.loaded.policy, resolve_path(session.recipe.model.path)
    started_from = REFERENCE if base_of_adapter(path) else None
    if started_from:
        load_adapter(policy.model, path, REFERENCE)
        policy.model.set_adapter(NAME)

    def reference(row: PackedRow, temperature: float) -> tuple[Tensor, Tensor]:
        with switched(policy.model, started_from):
            return policy(row, temperature)

    return reference
