"""Log-probs and entropies of a head against a float64 one, whatever the chunks; in bfloat16 as good as autograd."""

import sys

import pytest
import torch
from support import PLAIN, assert_same_gradients, scratch
from torch import nn

from vlm_r1.config import ModelConfig
from vlm_r1.errors import ModelError
from vlm_r1.models import logprobs as scoring
from vlm_r1.models.load import load_policy
from vlm_r1.models.logprobs import masked_logprobs, token_logprobs

S, D, V = 23, 16, 301
BANNED = torch.tensor([7, 300])


class Wrapped(nn.Linear):
    """A head that is not a plain linear layer, as adapters and quantised layers are not."""


def made(kind=nn.Linear, bias=False, dtype=torch.float32):
    """Hidden states that need a gradient, a head, targets and the weights of a sum of their log-probs."""
    generator = torch.Generator().manual_seed(3)
    head = kind(D, V, bias=bias)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
    hidden = torch.randn(S, D, generator=generator).to(dtype).requires_grad_()
    targets = torch.randint(V, (S,), generator=generator)
    targets[:2] = torch.tensor([3, 3])
    return hidden, head.to(dtype), targets, torch.randn(S, generator=generator)


def expected(hidden, head, targets, weights, temperature, softcap):
    """The same in float64 by autograd, suppressed logits at minus infinity."""
    h = hidden.detach().double().requires_grad_()
    w = {name: p.detach().double().requires_grad_() for name, p in head.named_parameters()}
    logits = h @ w["weight"].t() + w.get("bias", 0)
    if softcap:
        logits = torch.tanh(logits / softcap) * softcap
    allowed = torch.ones(V, dtype=torch.bool).index_fill(0, BANNED, False)
    logprobs = (logits.masked_fill(~allowed, -torch.inf) / temperature).log_softmax(-1)
    p = logprobs[:, allowed].exp()
    chosen = logprobs.gather(-1, targets[:, None])[:, 0]
    (chosen * weights).sum().backward()
    return chosen.detach(), -(p * p.log()).sum(-1).detach(), {"hidden": h.grad} | {n: p.grad for n, p in w.items()}


@pytest.mark.parametrize("kind", [nn.Linear, Wrapped], ids=["linear", "wrapped"])
@pytest.mark.parametrize("rows", [1, 7, S], ids=lambda rows: f"{rows}-rows")
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize(("temperature", "softcap"), [(1.0, None), (0.7, None), (1.3, 2.0)])
def test_values_and_gradients_are_those_of_a_float64_softmax(monkeypatch, kind, rows, bias, temperature, softcap):
    monkeypatch.setattr(scoring, "LOGIT_CHUNK", rows * V)
    hidden, head, targets, weights = made(kind, bias)
    found, entropy = token_logprobs(hidden, head, targets, BANNED, temperature, softcap)
    chosen, spread, wanted = expected(hidden, head, targets, weights, temperature, softcap)
    assert found.dtype == entropy.dtype == torch.float32 and not entropy.requires_grad
    torch.testing.assert_close(found.double(), chosen, atol=2e-6, rtol=1e-6)
    torch.testing.assert_close(entropy.double(), spread, atol=2e-6, rtol=1e-6)
    (found * weights).sum().backward()
    gradients = {"hidden": hidden.grad} | {n: p.grad for n, p in head.named_parameters()}
    assert_same_gradients(gradients, wanted, 1e-6)
    assert not head.weight.grad[BANNED].any()


@pytest.mark.parametrize("rows", [4, S], ids=["chunks", "one-chunk"])
def test_bfloat16_is_as_close_to_float64_as_plain_autograd(monkeypatch, rows):
    monkeypatch.setattr(scoring, "LOGIT_CHUNK", rows * V)
    hidden, head, targets, weights = made(dtype=torch.bfloat16)
    _, _, wanted = expected(hidden, head, targets, weights, 0.9, None)
    errors = {}
    for name, score in {
        "ours": lambda: token_logprobs(hidden, head, targets, BANNED, 0.9)[0],
        "plain": lambda: masked_logprobs(head(hidden), BANNED, 0.9).gather(-1, targets[:, None])[:, 0],
    }.items():
        values = score()
        found = torch.autograd.grad((values * weights).sum(), [hidden, head.weight])
        errors[name] = [float((f.double() - w).norm() / w.norm()) for f, w in zip(found, wanted.values(), strict=True)]
    assert all(ours < 1.5 * plain + 1e-3 for ours, plain in zip(errors["ours"], errors["plain"], strict=True)), errors


@pytest.fixture
def liger():
    """Its own kernels are for GPUs of the Hopper kind; elsewhere it runs a plain version of the same call."""
    pytest.importorskip("liger_kernel", reason="pip install vlm-r1[liger]")


@pytest.mark.usefixtures("liger")
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("suppressed", [[], BANNED.tolist()], ids=["all", "suppressed"])
def test_liger_gives_the_values_and_gradients_of_the_same_distribution(suppressed, temperature):
    hidden, head, targets, weights = made()
    found = {}
    for kernel in ("torch", "liger"):
        scores = token_logprobs(hidden, head, targets, torch.tensor(suppressed).long(), temperature, kernel=kernel)
        gradients = torch.autograd.grad((scores[0] * weights).sum(), [hidden, head.weight])
        found[kernel] = scores[0].detach(), scores[1], *gradients
        assert not scores[1].requires_grad
    for ours, theirs in zip(found["torch"], found["liger"], strict=True):
        torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "bias", "softcap"), [(Wrapped, False, None), (nn.Linear, True, None), (nn.Linear, False, 2.0)]
)
def test_liger_refuses_heads_that_it_does_not_take(kind, bias, softcap):
    hidden, head, targets, _ = made(kind, bias)
    with pytest.raises(ModelError, match="without bias, soft cap or adapter"):
        token_logprobs(hidden, head, targets, BANNED, 1.0, softcap, kernel="liger")


def test_liger_that_is_not_installed_is_named_before_a_run(monkeypatch):
    for name in ("liger_kernel", "liger_kernel.ops.fused_linear_scaled_cross_entropy"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModelError, match=r"pip install vlm-r1\[liger\]"):
        load_policy(ModelConfig(init="scratch", scratch=scratch(), logprob_kernel="liger"), PLAIN)


def test_only_what_is_trained_gets_a_gradient(monkeypatch):
    monkeypatch.setattr(scoring, "LOGIT_CHUNK", 4 * V)
    hidden, head, targets, _ = made(bias=True)
    head.requires_grad_(False)
    token_logprobs(hidden, head, targets, BANNED, 1.0)[0].sum().backward()
    assert hidden.grad.any() and head.weight.grad is None and head.bias.grad is None
    hidden, head, targets, _ = made()
    token_logprobs(hidden.detach(), head, targets, BANNED, 1.0)[0].sum().backward()
    assert head.weight.grad.any()


def test_no_token_has_no_log_prob():
    hidden, head, targets, _ = made()
    found, entropy = token_logprobs(hidden[:0], head, targets[:0], BANNED, 1.0)
    assert found.shape == entropy.shape == (0,)
    found.sum().backward()
    assert not hidden.grad.any() and not head.weight.grad.any()


@pytest.mark.parametrize(
    ("free", "unused", "logits"), [(0, 0, 1 << 25), (14 << 28, 14 << 28, 1 << 27), (80 << 30, 0, 1 << 28)]
)
def test_chunks_follow_the_free_memory_of_a_gpu_within_bounds(monkeypatch, free, unused, logits):
    """A quarter of it, at 14 bytes a logit; on a CPU always as many, so that runs are cut alike."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 80 << 30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: unused + 5)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 5)
    assert scoring.logits_at_once(torch.device("cuda")) == logits
    assert scoring.logits_at_once(torch.device("cpu")) == 1 << 25
