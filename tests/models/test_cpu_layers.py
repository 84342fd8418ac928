"""Linear layers and RMS norms of CPUs against the formulas in float64, and which layers of a model become them."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

from vlm_r1.models import cpu_layers
from vlm_r1.models.cpu_layers import FEW, Linear, is_plain, linear, speed_up

needs_onednn = pytest.mark.skipif(not cpu_layers.HAS_ONEDNN, reason="needs oneDNN and a processor with AVX")
ROWS = [(FEW,), (FEW + 3,), (2, FEW), (FEW - 1,), (1,), (2, 3, 5)]


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def onednn(monkeypatch):
    """The shapes of the products that ran in oneDNN."""
    shapes, product = [], cpu_layers.product

    def counted(x, weight, bias=None):
        shapes.append((*x.shape, len(weight)))
        return product(x, weight, bias)

    monkeypatch.setattr(cpu_layers, "product", counted)
    return shapes


def differentiated(run, tensors, slope):
    """The output, and the gradients of the tensors (None where none is wanted)."""
    out = run(*tensors)
    out.backward(slope.to(out.dtype))
    return [out.detach(), *(None if x is None else x.grad for x in tensors)]


def close(ours, exact):
    assert ours.dtype == torch.float32 and ours.shape == exact.shape
    torch.testing.assert_close(ours.double(), exact, atol=2e-6 * max(1.0, float(exact.abs().max())), rtol=0)


@pytest.mark.parametrize("rows", ROWS, ids=str)
@pytest.mark.parametrize(("wide", "narrow"), [(24, 40), (40, 24), (1, 8), (8, 1)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_is_the_sum_it_stands_for(rows, wide, narrow, bias):
    exact = [normal(*rows, wide), normal(narrow, wide, seed=1), normal(narrow, seed=2) if bias else None]
    ours = [None if x is None else x.float().requires_grad_() for x in exact]
    exact = [None if x is None else x.clone().requires_grad_() for x in exact]
    slope = normal(*rows, narrow, seed=3)
    for found, expected in zip(
        differentiated(linear, ours, slope), differentiated(F.linear, exact, slope), strict=True
    ):
        assert (found is None) == (expected is None)
        if found is not None:
            close(found, expected)


def test_inputs_and_slopes_with_gaps_give_the_same():
    x, weight = normal(48, FEW).t(), normal(24, 96, seed=1)[:, ::2]
    ours, theirs = ([y.clone().requires_grad_() for y in z] for z in ((x.float(), weight.float()), (x, weight)))
    linear(*ours, None).sum().backward()  # its slope is one number, expanded
    F.linear(*theirs).sum().backward()
    for found, expected in zip(ours, theirs, strict=True):
        close(found.grad, expected.grad)


@needs_onednn
def test_many_rows_in_float32_run_in_onednn_and_nothing_else(onednn):
    weight = normal(5, 7).float()
    assert linear(normal(FEW, 7).float(), weight, None).shape == (FEW, 5)
    assert linear(normal(2, FEW // 2, 7).float(), weight, None).shape == (2, FEW // 2, 5)
    assert onednn == [(FEW, 7, 5)] * 2
    linear(normal(FEW - 1, 7).float(), weight, None)
    assert linear(normal(FEW, 7), weight.double(), None).dtype == torch.float64
    assert linear(normal(FEW, 7).bfloat16(), weight.bfloat16(), None).dtype == torch.bfloat16
    with pytest.raises(RuntimeError, match="dtype"):
        linear(normal(FEW, 7), weight, None)
    assert len(onednn) == 2


@needs_onednn
def test_no_gradient_is_computed_that_nobody_asked_for(onednn):
    layer = Linear(7, 5)
    layer.weight.requires_grad_(False)
    x = normal(FEW, 7).float()
    layer(x).sum().backward()
    assert layer.weight.grad is None and onednn == [(FEW, 7, 5)]
    assert torch.equal(layer.bias.grad, torch.full((5,), float(FEW)))
    layer.bias.requires_grad_(False)
    layer(x.requires_grad_()).sum().backward()
    assert len(onednn) == 3 and x.grad.shape == x.shape
    with torch.no_grad():
        assert layer(x).grad_fn is None


@pytest.mark.parametrize("rows", ROWS[:4], ids=str)
@pytest.mark.parametrize("width", [1, 32, 33])
def test_an_rms_norm_is_its_formula(rows, width):
    eps = 1e-2
    model = nn.Sequential(Qwen2RMSNorm(width, eps=eps))
    speed_up(model)
    weight, x, slope = normal(width, seed=1), normal(*rows, width), normal(*rows, width, seed=3)
    model[0].weight.data.copy_(weight)
    ours = x.float().requires_grad_()
    out = model(ours)
    out.backward(slope.float())

    x, weight = x.requires_grad_(), weight.requires_grad_()
    expected = weight * x / (x.square().mean(-1, keepdim=True) + eps).sqrt()
    expected.backward(slope)
    for found, exact in ((out.detach(), expected.detach()), (ours.grad, x.grad), (model[0].weight.grad, weight.grad)):
        close(found, exact)


def test_a_row_of_zeros_has_a_norm_and_a_gradient():
    norm = Qwen2RMSNorm(8)
    speed_up(norm)
    x = torch.zeros(FEW, 8, requires_grad=True)
    norm(x).sum().backward()
    assert torch.isfinite(x.grad).all() and not norm.weight.grad.any()


def test_a_norm_in_half_precision_is_the_models_own():
    plain = Qwen2RMSNorm(8).bfloat16()
    ours = copy.deepcopy(plain)
    speed_up(ours)
    x = normal(FEW, 8).bfloat16()
    assert torch.equal(ours(x), plain(x)) and ours(x).dtype == torch.bfloat16


class TwiceRMSNorm(Qwen2RMSNorm):
    """A norm of another kind under a usual name."""

    def forward(self, hidden_states):
        return 2 * super().forward(hidden_states)


class NeedyRMSNorm(nn.Module):
    """One that is built otherwise."""

    def __init__(self, config, *, eps):
        super().__init__()


class Sub(nn.Linear):
    """A layer of somebody else's, as quantised ones are."""


def test_a_model_keeps_its_names_its_classes_and_what_is_not_meant():
    model = nn.ModuleDict(
        {
            "linear": nn.Linear(4, 4),
            "sub": Sub(4, 4),
            "norm": Qwen2RMSNorm(4),
            "gemma": GemmaRMSNorm(4),
            "twice": TwiceRMSNorm(4),
            "needy": NeedyRMSNorm(None, eps=0.1),
            "torchs": nn.RMSNorm(4),
        }
    )
    before, classes = dict(model.named_parameters()), {n: type(m) for n, m in model.items()}
    speed_up(model)
    after = dict(model.named_parameters())
    assert list(after) == list(before) and all(after[n] is before[n] for n in before)
    assert list(model.state_dict()) == list(before)
    assert {n for n, m in model.items() if type(m) is not classes[n]} <= {"linear", "norm"}
    assert all(isinstance(m, classes[n]) for n, m in model.items())
    assert type(model["norm"]) is not Qwen2RMSNorm and type(model["norm"]).__name__ == "Qwen2RMSNorm"
    assert is_plain(model["linear"]) and not is_plain(model["sub"])
    assert (type(model["linear"]) is Linear) == cpu_layers.HAS_ONEDNN
    kinds = [type(m) for m in model.modules()]
    speed_up(model)  # a second time changes nothing
    assert [type(m) for m in model.modules()] == kinds
    assert model["norm"].bfloat16()(normal(2, 4).bfloat16()).shape == (2, 4)


def test_a_copy_is_of_the_same_kind_and_its_own():
    model = nn.Sequential(nn.Linear(6, 6), Qwen2RMSNorm(6))
    speed_up(model)
    other = copy.deepcopy(model)
    x = normal(FEW, 6).float()
    assert [type(m) for m in other] == [type(m) for m in model] and torch.equal(other(x), model(x))
    other(x).square().sum().backward()
    assert all(p.grad is None for p in model.parameters()) and all(p.grad.any() for p in other.parameters())


def test_adapters_stay_adapters():
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(nn.Sequential(nn.Linear(8, 8)), peft.LoraConfig(target_modules=["0"], r=2))
    wrapper = model.base_model.model[0]
    kind = type(wrapper)
    speed_up(model)
    assert type(wrapper) is kind and not is_plain(wrapper) and is_plain(wrapper.base_layer)
    x = normal(FEW, 8)
    wrapper.lora_B["default"].weight.data.normal_(generator=torch.Generator().manual_seed(1))
    down, up = (getattr(wrapper, f"lora_{side}")["default"].weight.double() for side in "AB")
    base = F.linear(x, wrapper.base_layer.weight.double(), wrapper.base_layer.bias.double())
    expected = base + wrapper.scaling["default"] * (x @ down.t() @ up.t())
    close(model(x.float()).detach(), expected.detach())
