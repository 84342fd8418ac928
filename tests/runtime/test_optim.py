"""Optimisers: parameter groups by hand, float32 master weights against plain float32, clear refusals."""

import pytest
import torch
from torch import nn

from vlm_r1.config import OptimConfig
from vlm_r1.errors import ConfigError
from vlm_r1.runtime.optim import build_optimizer, learning_rate, set_learning_rate


def net(dtype=torch.float32) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 2)).to(dtype)


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


def steps(model, optimizer, n: int, start: int = 0) -> None:
    for i in range(start, start + n):
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(i)).to(model[0].weight.dtype)
        optimizer.zero_grad()
        model(x).float().square().sum().backward()
        optimizer.step()


def test_master_weights_keep_steps_that_bfloat16_would_lose():
    config = OptimConfig(lr=1e-6)
    plain, kept = net(torch.bfloat16), net(torch.bfloat16)
    before = [p.detach().clone() for p in kept.parameters()]
    with_masters = build_optimizer(kept, config.model_copy(update={"master_weights": True}))
    steps(plain, build_optimizer(plain, config), 60)
    steps(kept, with_masters, 60)
    lost = sum(int((a == b).sum()) for a, b in zip(plain.parameters(), before, strict=True))
    assert lost > 0.9 * sum(b.numel() for b in before if b.abs().max() > 1e-3)
    for (weight, master), start in zip(with_masters.pairs, before, strict=True):
        assert torch.equal(weight, master.to(torch.bfloat16))
        assert (master - start.float()).abs().max() > 1e-5  # 60 steps of 1e-6, all kept


def test_master_weights_of_a_float32_model_are_plain_adamw():
    one, two = net(), net()
    steps(one, build_optimizer(one, OptimConfig(lr=1e-2, weight_decay=0.1)), 5)
    steps(two, build_optimizer(two, OptimConfig(lr=1e-2, weight_decay=0.1, master_weights=True)), 5)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_master_weights_go_on_from_their_state():
    config = OptimConfig(lr=1e-3, master_weights=True)
    whole, first, second = (net(torch.bfloat16) for _ in range(3))
    steps(whole, build_optimizer(whole, config), 6)
    optimizer = build_optimizer(first, config)
    steps(first, optimizer, 3)
    second.load_state_dict(first.state_dict())
    resumed = build_optimizer(second, config)
    resumed.load_state_dict(optimizer.state_dict())
    steps(second, resumed, 3, start=3)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters(), strict=True))


def test_refusals():
    with pytest.raises(ConfigError, match="goes with adamw, not with muon"):
        build_optimizer(net(), OptimConfig(name="muon", master_weights=True))
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="adamw_8bit needs a CUDA GPU"):
            build_optimizer(net(), OptimConfig(name="adamw_8bit"))
