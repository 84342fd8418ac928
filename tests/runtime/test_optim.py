"""Optimisers: parameter groups by hand, clear refusals."""

import pytest
import torch
from support import tiny
from torch import nn

from vlm_r1.config import OptimConfig
from vlm_r1.errors import ConfigError
from vlm_r1.runtime.optim import build_optimizer, learning_rate, set_learning_rate


def net() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 2))


def test_groups_have_their_learning_rate_and_only_matrices_decay():
    model = net()
    model[2].bias.requires_grad_(False)
    config = OptimConfig(lr=1e-3, weight_decay=0.1)
    optimizer = build_optimizer(model, config, {id(p): 0.5 for p in model[0].parameters()})
    found = {(g["lr"], g["weight_decay"]): {id(p) for p in g["params"]} for g in optimizer.param_groups}
    assert found == {
        (1e-3, 0.1): {id(model[2].weight)},
        (5e-4, 0.1): {id(model[0].weight)},
        (1e-3, 0.0): {id(model[1].weight), id(model[1].bias)},
        (5e-4, 0.0): {id(model[0].bias)},
    }
    set_learning_rate(optimizer, learning_rate(OptimConfig(lr=1e-3, warmup_steps=2), 0, 10))
    assert sorted({g["lr"] for g in optimizer.param_groups}) == [2.5e-4, 5e-4]


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_every_parameter_has_one_optimizer_and_norms_are_not_decayed(name):
    policy = tiny().policy
    groups = build_optimizer(policy, OptimConfig(name=name, weight_decay=0.5)).param_groups
    ids = [id(p) for group in groups for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in policy.parameters())
    for group in groups:
        assert all((p.ndim >= 2) == (group["weight_decay"] == 0.5) for p in group["params"])


def test_refusals():
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="adamw_8bit needs a CUDA GPU"):
            build_optimizer(net(), OptimConfig(name="adamw_8bit"))


def test_other_optimisers_than_adamw_do_not_step_on_shards(monkeypatch):
    monkeypatch.setattr("vlm_r1.runtime.optim.is_sharded", lambda model: True)
    monkeypatch.setattr("vlm_r1.runtime.optim.processes_of", lambda model: 2)
    with pytest.raises(ConfigError, match=r"optim\.name: muon cannot step on sharded weights; use adamw"):
        build_optimizer(net(), OptimConfig(name="muon"))
    assert build_optimizer(net(), OptimConfig()).param_groups
