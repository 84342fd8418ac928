"""Attention by products of oneDNN against attention written out in float64, with gradients, and where it is taken."""

import pytest
import torch
import torch.nn.functional as F

from vlm_r1.models import cpu_attention, flash, vision_attention
from vlm_r1.models.cpu_layers import HAS_ONEDNN
from vlm_r1.models.flash import Runs

pytestmark = pytest.mark.skipif(not HAS_ONEDNN, reason="needs oneDNN and a processor with AVX")
QUERIES, KEYS = (5, 1, 19, 8), (7, 12, 3, 1)
HEADS = [(4, 4), (4, 2), (6, 1)]


def tensors(*shapes):
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def by_hand(q, k, v, queries, keys, scale):
    """Each head of each run by itself: `(N, H, d)`, and the log-sum-exp `(H, N)`."""
    shared, runs = q.shape[1] // k.shape[1], []
    for one_q, one_k, one_v in zip(q.split(queries), k.split(keys), v.split(keys), strict=True):
        heads = []
        for head in range(q.shape[1]):
            scores = scale * one_q[:, head] @ one_k[:, head // shared].t()
            heads.append((scores.softmax(-1) @ one_v[:, head // shared], scores.logsumexp(-1)))
        runs.append((torch.stack([out for out, _ in heads], 1), torch.stack([lse for _, lse in heads])))
    return torch.cat([out for out, _ in runs]), torch.cat([lse for _, lse in runs], 1)


def close(found, expected, atol=5e-6):
    assert found.dtype == torch.float32
    expected = expected.detach()
    torch.testing.assert_close(found.double(), expected, atol=atol * max(1.0, float(expected.abs().max())), rtol=0)


@pytest.fixture
def few(monkeypatch):
    """It is taken for queries and keys of this number on; the calls of it."""
    calls = []
    monkeypatch.setattr(cpu_attention, "MANY", 3)
    for name in ("attention", "gradients"):
        run = getattr(cpu_attention, name)
        monkeypatch.setattr(cpu_attention, name, lambda *args, run=run, name=name: calls.append(name) or run(*args))
    return calls


@pytest.mark.parametrize("scale", [None, 0.7])
@pytest.mark.parametrize(("n_heads", "n_keys"), HEADS)
def test_runs_of_queries_meet_the_keys_of_their_number(n_heads, n_keys, scale):
    q, k, v, slope = tensors((33, n_heads, 8), (23, n_keys, 8), (23, n_keys, 8), (33, n_heads, 8))
    q, k, v = (x.requires_grad_() for x in (q, k, v))
    expected, expected_lse = by_hand(q, k, v, QUERIES, KEYS, 8**-0.5 if scale is None else scale)
    expected.backward(slope)
    ours = [x.detach().float() for x in (q, k, v)]
    out, lse = cpu_attention.attention(*ours, QUERIES, KEYS, scale)
    close(out, expected)
    close(lse, expected_lse)
    found = cpu_attention.gradients(slope.float(), *ours, out, lse, QUERIES, KEYS, scale)
    for gradient, x in zip(found, (q, k, v), strict=True):
        close(gradient, x.grad)


@pytest.mark.parametrize("scale", [None, 0.7])
@pytest.mark.parametrize(("n_heads", "n_keys"), HEADS)
def test_attention_within_runs_has_a_gradient(n_heads, n_keys, scale):
    q, k, v = (x.requires_grad_() for x in tensors((33, n_heads, 8), (33, n_keys, 8), (33, n_keys, 8)))
    expected, _ = by_hand(q, k, v, QUERIES, QUERIES, 8**-0.5 if scale is None else scale)
    expected.sum().backward()
    turned = [x.detach().float().transpose(0, 1).contiguous() for x in (q, k, v)]  # as towers hand them over
    ours = [x.requires_grad_() for x in turned]
    out = cpu_attention.attend(*(x.transpose(0, 1) for x in ours), QUERIES, scale)
    out.sum().backward()  # its slope is one number, expanded
    close(out.detach(), expected.detach())
    for x, exact in zip(ours, (q, k, v), strict=True):
        close(x.grad.transpose(0, 1), exact.grad)


def test_large_scores_do_not_overflow():
    q, k, v = tensors((9, 2, 8), (9, 2, 8), (9, 2, 8))
    out, lse = cpu_attention.attention(*(x.float() for x in (300 * q, k, v)), (9,), (9,), None)
    expected, expected_lse = by_hand(300 * q, k, v, (9,), (9,), 8**-0.5)
    close(lse, expected_lse, 1e-6)
    close(out, expected, 1e-3)


def test_it_pays_for_many_queries_and_keys_in_float32_on_a_cpu(monkeypatch):
    monkeypatch.setattr(cpu_attention, "MANY", 8)
    q, k = torch.zeros(16, 4, 8), torch.zeros(16, 4, 8)
    pays = cpu_attention.pays
    assert pays(q, k, (8, 8), (8, 8))
    assert not pays(q, k, (9, 7), (8, 8)) and not pays(q, k, (8, 8), (9, 7))
    assert not pays(q, k, (), ())
    assert pays(q, k[:, :1], (2, 14), (8, 8)) and not pays(q, k[:, :1], (1, 15), (8, 8))  # four heads share a key
    assert not pays(q[:, :1], k[:, :1], (2, 14), (8, 8))
    assert not pays(q.double(), k.double(), (8, 8), (8, 8)) and not pays(q.bfloat16(), k.bfloat16(), (8, 8), (8, 8))
    assert not pays(q.to("meta"), k.to("meta"), (8, 8), (8, 8))
    monkeypatch.setattr(cpu_attention, "HAS_ONEDNN", False)
    assert not pays(q, k, (8, 8), (8, 8))


def test_flash_attention_takes_it_where_it_pays_and_for_causal_runs_never(few):
    q, k, v, slope = (x.float() for x in tensors((8, 4, 8), (8, 2, 8), (8, 2, 8), (8, 4, 8)))
    runs, used = Runs.of((3, 5)), torch.tensor([3, 5], dtype=torch.int32)
    out, lse = flash.attention(q, k, v, runs, runs)
    found = flash.gradients(slope, q, k, v, out, lse, runs, runs)
    assert few == ["attention", "gradients"]
    plain, plain_lse = flash.attention(q, k, v, runs, runs, used=used)
    close(out, plain.double())
    close(lse, plain_lse.double())
    flash.attention(q, k, v, runs, runs, causal=True)
    flash.gradients(slope, q, k, v, out, lse, runs, runs, causal=True)
    assert len(few) == 2
    q, k, v = (x.double().requires_grad_() for x in (q, k, v))
    by_hand(q, k, v, (3, 5), (3, 5), 8**-0.5)[0].backward(slope.double())
    for gradient, x in zip(found, (q, k, v), strict=True):
        close(gradient, x.grad)


@pytest.mark.parametrize(("lengths", "taken"), [((5, 5, 5), True), ((4, 7, 3), True), ((4, 8, 2), False)])
def test_towers_take_it_for_long_chunks(few, lengths, taken):
    query, key, value, slope = tensors(*[(1, 4, sum(lengths), 8)] * 3, (1, sum(lengths), 4, 8))
    starts = torch.tensor((0, *lengths)).cumsum(0).to(torch.int32)
    ours = [x.float().requires_grad_() for x in (query, key, value)]
    out, _ = vision_attention.attend_chunks(None, *ours, None, 0.3, starts, max(lengths))
    out.backward(slope.float())
    assert few == (["attention", "gradients"] if taken else [])
    exact = [x.requires_grad_() for x in (query, key, value)]
    chunks = zip(*(x.split(lengths, 2) for x in exact), strict=True)
    expected = torch.cat([F.scaled_dot_product_attention(*c, scale=0.3) for c in chunks], 2).transpose(1, 2)
    expected.backward(slope)
    close(out.detach(), expected.detach())
    for x, y in zip(ours, exact, strict=True):
        close(x.grad, y.grad)


def test_scores_that_no_longer_fit_the_cache_are_left_to_torch(monkeypatch):
    monkeypatch.setattr(cpu_attention, "HAS_ONEDNN", True)
    q = torch.zeros(4096, 1, 8)
    assert cpu_attention.pays(q[:1024], q[:1024], (1024,), (1024,))
    assert not cpu_attention.pays(q, q, (4096,), (4096,))
