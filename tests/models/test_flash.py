"""Attention by flash kernels against plain attention written out, in float64, with gradients."""

import pytest
import torch

from vlm_r1.models import shared_prefix
from vlm_r1.models.flash import Runs, attention, gradients, merge
from vlm_r1.models.layout import Rule, make_layout

QUERIES, KEYS = (5, 0, 9), (7, 4, 3)


def tensors(*shapes, dtype=torch.float64):
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def by_hand(q, k, v, queries, keys, causal=False):
    """Each run by itself, `(N, H, d)`, and the log-sum-exp `(H, N)`."""
    out, lse = [], []
    for one_q, one_k, one_v in zip(q.split(queries), k.split(keys), v.split(keys), strict=True):
        shared = q.shape[1] // k.shape[1]
        one_k, one_v = (x.repeat_interleave(shared, 1).transpose(0, 1) for x in (one_k, one_v))
        scores = one_q.transpose(0, 1) @ one_k.transpose(1, 2) / q.shape[-1] ** 0.5
        if causal:
            scores = scores.masked_fill(torch.ones(scores.shape[1:]).triu(1).bool(), -torch.inf)
        out.append((scores.softmax(-1) @ one_v).transpose(0, 1))
        lse.append(scores.logsumexp(-1))
    return torch.cat(out), torch.cat(lse, 1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("heads", [4, 2, 1])
def test_runs_of_queries_meet_the_runs_of_keys_of_their_number(dtype, heads):
    q, k, v = tensors((14, 4, 16), (14, heads, 16), (14, heads, 16), dtype=dtype)
    out, lse = attention(q, k, v, Runs.of(QUERIES), Runs.of(KEYS))
    expected, expected_lse = by_hand(q.double(), k.double(), v.double(), QUERIES, KEYS)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.02}[dtype]
    torch.testing.assert_close(out.double(), expected, atol=tolerance, rtol=0)
    torch.testing.assert_close(lse.double(), expected_lse, atol=min(tolerance, 1e-5), rtol=0)


def test_only_the_used_keys_of_a_run_count():
    q, k, v = tensors((14, 4, 16), (14, 2, 16), (14, 2, 16))
    used = torch.tensor([3, 1, 2], dtype=torch.int32)
    out, lse = attention(q, k, v, Runs.of(QUERIES), Runs.of(KEYS), used=used)
    kept = torch.tensor([0, 1, 2, 7, 11, 12])
    expected, expected_lse = by_hand(q, k[kept], v[kept], QUERIES, (3, 1, 2))
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(lse, expected_lse)


def test_attention_over_two_sets_of_keys_is_that_over_both():
    q, k, v, more_k, more_v = tensors((9, 4, 8), (12, 2, 8), (12, 2, 8), (9, 2, 8), (9, 2, 8))
    one, two, own = Runs.of((9,)), Runs.of((12,)), Runs.of((9,))
    out, lse = merge(attention(q, k, v, one, two), attention(q, more_k, more_v, one, own))
    expected = by_hand(q, torch.cat([k, more_k]), torch.cat([v, more_v]), (9,), (21,))
    torch.testing.assert_close(out, expected[0])
    torch.testing.assert_close(lse, expected[1])


@pytest.mark.parametrize("causal", [False, True], ids=["all", "causal"])
def test_gradients_are_those_of_attention_written_out(causal):
    lengths = (5, 9) if causal else QUERIES
    q, k, v, grad = tensors((14, 4, 16), (14, 2, 16), (14, 2, 16), (14, 4, 16))
    of_q, of_k = Runs.of(lengths), Runs.of(lengths if causal else KEYS)
    found = gradients(grad, q, k, v, *attention(q, k, v, of_q, of_k, causal=causal), of_q, of_k, causal=causal)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    out, _ = by_hand(*leaves, of_q.lengths, of_k.lengths, causal)
    for ours, expected in zip(found, torch.autograd.grad(out, leaves, grad), strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize(
    "completions", [[4, 1, 6], [0, 3, 2], [0, 0, 0], []], ids=["ragged", "one-empty", "empty", "no"]
)
def test_a_row_passes_the_gradient_check_in_float64(completions):
    layout = make_layout([5, 3], completions, [0, 0, 1][: len(completions)])
    N = 8 + sum(completions)
    q, k, v = (x.requires_grad_() for x in tensors((1, 2, N, 4), (1, 1, N, 4), (1, 1, N, 4)))

    def row(*given):
        return shared_prefix.attend_packed(layout, *given, Rule(backend="flash"))

    torch.testing.assert_close(row(q, k, v), shared_prefix.attend_packed(layout, q, k, v, Rule(backend="sdpa")))
    assert torch.autograd.gradcheck(row, (q, k, v))
