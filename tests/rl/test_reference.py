"""The reference model: kept in CPU memory where asked, and without a tower of its own where that is frozen."""

import pytest
import torch
from support import mixed_groups, reference_of

from vlm_r1.distributed.sharding import shards_of
from vlm_r1.models.packing import pack
from vlm_r1.rl.batch import as_prefix_group


def scored(policy, loaded):
    with torch.no_grad():
        return policy(pack([as_prefix_group(g) for g in mixed_groups(loaded)]), 1.0)[0]


FROZEN = {"vision": "frozen", "connector": "frozen"}


@pytest.mark.parametrize("train", [{}, {"vision": "frozen"}, FROZEN], ids=["trained", "frozen-tower", "frozen"])
@pytest.mark.parametrize("offload", [False, True], ids=["here", "offloaded"])
def test_the_reference_is_the_model_the_run_started_from(session, offload, train):
    run = session(rl={"group_size": 3, "prompts_per_step": 2, "beta": 0.1, "reference_offload": offload}, train=train)
    expected = scored(run.loaded.policy, run.loaded)
    reference, policy = reference_of(run)
    torch.testing.assert_close(scored(reference, run.loaded), expected, atol=1e-6, rtol=0)
    assert bool(shards_of(policy)) == offload  # shards stay in CPU memory and come layer by layer
    for _ in range(2):  # also after they were needed
        assert {p.device.type for p in policy.model.model.language_model.parameters()} == {
            "cpu" if offload else run.world.device.type
        }
        scored(reference, run.loaded)
    assert not any(p.requires_grad for p in policy.parameters())


def test_a_frozen_tower_is_run_by_the_policy_alone(session):
    run = session(rl={"group_size": 3, "prompts_per_step": 2, "beta": 0.1}, train=FROZEN)
    reference, policy = reference_of(run)
    policy.model.model.visual.register_forward_hook(lambda *_: pytest.fail("the reference ran a tower of its own"))
    scored(run.loaded.policy, run.loaded)
    run.loaded.policy.vision_cache.take_counts()
    scored(reference, run.loaded)
    assert run.loaded.policy.vision_cache.take_counts() == (6, 6)  # the six images of the mixed prompts


def test_a_frozen_tower_under_a_trained_connector_is_run_by_the_policy_alone(session):
    run = session(rl={"group_size": 3, "prompts_per_step": 2, "beta": 0.1}, train={"vision": "frozen"})
    reference, policy = reference_of(run)
    expected = scored(run.loaded.policy, run.loaded)
    with torch.no_grad():
        run.loaded.policy.model.model.visual.merger.linear_fc2.weight.mul_(1.5)
    assert (scored(run.loaded.policy, run.loaded) - expected).abs().max() > 1e-3
    ran = []
    policy.model.model.visual.blocks[0].attn.register_forward_hook(lambda *_: ran.append(1))
    torch.testing.assert_close(scored(reference, run.loaded), expected, atol=1e-6, rtol=0)
    assert not ran and run.loaded.policy.vision_cache.take_counts() == (12, 18)
