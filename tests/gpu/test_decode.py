"""Decoding in bfloat16: what it takes is the plain forward's likeliest, and what it records the update agrees with."""

import pytest
import torch
from support import (
    BACKENDS,
    FAMILIES,
    MULTIPLE,
    answered,
    attending,
    mixed_prompts,
    plain_inputs,
    plain_logprobs,
    plain_model,
    row_of,
    tiny,
)

from vlm_r1.records import RolloutGroup

TEMPERATURE = 0.8
BF16_MEAN = 0.02
"""Highest mean difference of sampler and trainer in nats, that of `tests/distributed/test_precision.py`."""

LIMITS = [{}, {"cuda_graphs": False}]
"""Settings of `rollout` under which decoding takes other kernels."""


@pytest.mark.parametrize("limits", LIMITS, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_update_agrees_with_the_rollout_in_bfloat16(record_property, device, family, backend, limits):
    loaded = attending(tiny(family, device=device, dtype=torch.bfloat16), backend)
    settings = {"max_new_tokens": 14, "temperature": TEMPERATURE, "limits": limits}
    groups = answered(loaded, mixed_prompts(loaded), 5, seed=3, **settings)
    recorded = torch.tensor([x for g in groups for r in g.rollouts for x in r.logprobs])
    model = plain_model(loaded)
    with torch.no_grad():
        update = loaded.policy(row_of(loaded, groups), TEMPERATURE)[0].cpu()
        plain = plain_logprobs(model, groups, loaded.policy.suppressed, TEMPERATURE)
        model.set_attn_implementation("eager")
        other = plain_logprobs(model, groups, loaded.policy.suppressed, TEMPERATURE)
    difference, orders = (update - recorded).abs(), (plain - other).abs()
    record_property("mean", f"{difference.mean():.1e} of {orders.mean():.1e}")
    record_property("highest", f"{difference.max():.1e} of {orders.max():.1e}")
    assert 0 < difference.mean() < min(BF16_MEAN, MULTIPLE * float(orders.mean()))
    assert difference.max() <= MULTIPLE * orders.max()


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_takes_the_plain_forwards_likeliest_in_bfloat16(record_property, device, family):
    """Rounding may swap two logits that are nearly equal, so what a token lies below the likeliest one is bounded."""
    loaded = tiny(family, device=device, dtype=torch.bfloat16)
    groups = answered(loaded, mixed_prompts(loaded), 1, seed=None, max_new_tokens=12, stop_at_answer=False)
    found = {}
    for attention in ("sdpa", "eager"):
        model = plain_model(loaded)
        model.set_attn_implementation(attention)
        found[attention] = torch.cat([logits_of(model, group, loaded.policy.suppressed) for group in groups])
    taken = torch.tensor([i for group in groups for i in group.rollouts[0].token_ids])[:, None]
    below = found["sdpa"].amax(-1, keepdim=True) - found["sdpa"].gather(-1, taken)
    orders = (found["sdpa"] - found["eager"]).abs().max()
    record_property("below", f"{below.max():.1e} of {orders:.1e}")
    assert (below == 0).float().mean() > 0.9
    assert below.max() <= MULTIPLE * orders


@torch.no_grad()
def logits_of(model, group: RolloutGroup, suppressed: torch.Tensor) -> torch.Tensor:
    """Logits `(T, V)` of the plain forward that predict the first answer's tokens; suppressed tokens get the lowest."""
    answer = group.rollouts[0].token_ids
    logits = model(**plain_inputs(model, [group.prompt], [answer], pad=0)).logits[0, -len(answer) - 1 : -1].float()
    logits[:, suppressed] = logits.amin()
    return logits.cpu()
