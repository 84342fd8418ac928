"""The reference model that a KL term holds on to: a frozen copy of the policy the run started from."""

from __future__ import annotations

from accelerate import cpu_offload

from vlm_r1.models.load import load_policy
from vlm_r1.models.policy import Policy
from vlm_r1.runtime.session import Session


def load_reference(session: Session) -> Policy:
    """The model of the recipe, not of a checkpoint, with gradients off."""
    recipe = session.recipe
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
