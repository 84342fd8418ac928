"""Going on from the rollout's prefill equals the plain padded forward, for all groups and for some of them."""

import pytest
import torch
from support import FAMILIES, assert_same_gradients, gradients, mixed_groups, plain_logprobs, plain_model, tiny

from vlm_r1.models.packing import pack
from vlm_r1.rl.batch import TrainBatch, group_tree
from vlm_r1.rollout.cache import Prefill
from vlm_r1.rollout.resume import continued_row

TEMPERATURE = 1.3


@pytest.mark.parametrize("numbers", [(0, 1, 2, 3), (2,), (1, 3), (3, 0)], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_continuing_equals_the_padded_forward(family, numbers):
    loaded = tiny(family)
    groups = mixed_groups(loaded)
    prefill = Prefill(loaded.policy, [g.prompt for g in groups])
    chosen = [groups[n] for n in numbers]
    nothing = torch.zeros(0)
    trees = tuple(group_tree(g) for g in chosen)
    batch = TrainBatch(trees=trees, advantages_B=nothing, weights_B=nothing, group_numbers=numbers)
    logprobs, entropy = continued_row(loaded.policy, prefill, batch, pack(trees), TEMPERATURE)
    assert entropy.shape == logprobs.shape

    model = plain_model(loaded)
    expected = plain_logprobs(model, chosen, loaded.policy.banned, TEMPERATURE)
    torch.testing.assert_close(logprobs, expected, atol=1e-5, rtol=0)
    weights = torch.randn(len(expected), generator=torch.Generator().manual_seed(2))
    (logprobs * weights).sum().backward()
    (expected * weights).sum().backward()
    assert_same_gradients(gradients(loaded.policy), gradients(model))
