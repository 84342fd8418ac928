"""The packed update equals the plain padded one: log-probs to 1e-5, every parameter's gradient to 1e-4."""

from functools import cache

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import (
    FAMILIES,
    assert_same_gradients,
    attending,
    gradients,
    made_up,
    mixed_groups,
    mixed_prompts,
    plain_logprobs,
    plain_model,
    row_of,
    tiny,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vlm_r1.models import logprobs as scoring
from vlm_r1.models.packing import cut_by_budget, pack
from vlm_r1.rl.batch import as_prefix_group

TEMPERATURE = 0.8
BUDGETS = [(100_000, {1}), (60, range(4, 12)), (1, {12})]
"""Token budgets, and into how many rows they cut twelve answers to four prompts."""


def weights(count: int) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(5))


@cache
def reference(family: str):
    """Log-probs and gradients of a weighted sum of them, by the padded forward."""
    loaded = tiny(family)
    model = plain_model(loaded)
    logprobs = plain_logprobs(model, mixed_groups(loaded), loaded.policy.suppressed, TEMPERATURE)
    (logprobs * weights(len(logprobs))).sum().backward()
    return logprobs.detach(), gradients(model)


def packed(loaded, groups, budget: int):
    """The same by packed rows of at most `budget` tokens, one backward pass a row."""
    parts, start, device = [], 0, loaded.policy.suppressed.device
    rows = cut_by_budget([as_prefix_group(g) for g in groups], budget)
    total = sum(len(r.token_ids) for g in groups for r in g.rollouts)
    for row in rows:
        logprobs = loaded.policy(pack(row).to(device), TEMPERATURE)[0].cpu()
        (logprobs * weights(total)[start : start + len(logprobs)]).sum().backward()
        start += len(logprobs)
        parts.append(logprobs.detach())
    return torch.cat(parts), gradients(loaded.policy), len(rows)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize(("budget", "cuts"), BUDGETS, ids=["one-row", "groups", "split"])
@pytest.mark.parametrize("backend", ["sdpa", "flash"])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_rows_equal_the_padded_forward(device, family, backend, budget, cuts, checkpointing):
    loaded = attending(tiny(family, checkpointing=checkpointing, device=device), backend)
    logprobs, found, cut = packed(loaded, mixed_groups(loaded), budget)
    expected_logprobs, expected = reference(family)
    assert cut in cuts
    torch.testing.assert_close(logprobs, expected_logprobs, atol=1e-5, rtol=0)
    assert_same_gradients(found, expected)


def test_gradient_checkpointing_runs_the_layers_again():
    runs = []
    for checkpointing in (False, True):
        loaded = tiny(checkpointing=checkpointing)
        attention = loaded.policy.model.model.language_model.layers[0].self_attn
        attention.register_forward_hook(lambda *_: runs.append(1))
        packed(loaded, mixed_groups(loaded), 100_000)
    assert len(runs) == 1 + 2


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(1, 220))
def test_the_gradient_does_not_depend_on_the_token_budget(budget):
    loaded = tiny()
    logprobs, found, _ = packed(loaded, mixed_groups(loaded), budget)
    expected_logprobs, expected = reference("qwen3_vl")
    torch.testing.assert_close(logprobs, expected_logprobs, atol=1e-5, rtol=0)
    assert_same_gradients(found, expected)


@pytest.mark.parametrize("rows_at_once", [1, 3, 17])
def test_chunked_logprobs_equal_the_padded_forward(monkeypatch, device, rows_at_once):
    monkeypatch.setattr(scoring, "logits_at_once", lambda device: rows_at_once * 400)
    loaded = tiny(device=device)
    logprobs, found, _ = packed(loaded, mixed_groups(loaded), 100_000)
    expected_logprobs, expected = reference("qwen3_vl")
    torch.testing.assert_close(logprobs, expected_logprobs, atol=1e-5, rtol=0)
    assert_same_gradients(found, expected)


def test_no_more_logits_than_the_chunk_exist_at_once(monkeypatch):
    monkeypatch.setattr(scoring, "LOGIT_CHUNK", 5 * 400)
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **kwargs or {})
            tensors = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor) and t.shape[-1:] == (400,)]
            seen.extend(t.numel() for t in tensors if t.shape != (32, 400))  # the head's weight, turned
            return out

    loaded = tiny()
    with Watch():
        packed(loaded, mixed_groups(loaded), 100_000)
    assert len(seen) > 50 and max(seen) <= 5 * 400


@pytest.mark.parametrize("lengths", [[1], [1, 1, 1], [1, 2, 1]], ids=str)
@pytest.mark.parametrize("backend", ["sdpa", "flash"])
@pytest.mark.parametrize("family", FAMILIES)
def test_answers_of_one_token_have_none_in_the_row(device, family, backend, lengths):
    loaded, model = attending(tiny(family, device=device), backend), plain_model(tiny(family))
    groups = [made_up(loaded, prompt, lengths) for prompt in mixed_prompts(loaded)]
    for answered in [*([group] for group in groups), groups]:
        logprobs, _ = loaded.policy(row_of(loaded, answered), 1.0)
        logprobs = logprobs.cpu()
        expected = plain_logprobs(model, answered, loaded.policy.suppressed, 1.0)
        torch.testing.assert_close(logprobs, expected, atol=1e-5, rtol=0)
        (logprobs * weights(len(expected))).sum().backward()
        (expected * weights(len(expected))).sum().backward()
        assert_same_gradients(gradients(loaded.policy), gradients(model))


def test_a_banned_token_has_no_probability_and_entropy_is_that_of_the_rest():
    loaded = tiny()
    groups = mixed_groups(loaded)[:1]
    row = pack([as_prefix_group(groups[0])])
    _, entropy = loaded.policy(row, TEMPERATURE)
    hidden = loaded.policy.hidden(row.token_ids, row.positions, loaded.policy.features(row.images), row.layout)
    logits = loaded.policy.model.lm_head(hidden[row.predictors]).double() / TEMPERATURE
    allowed = [i for i in range(logits.shape[1]) if i not in loaded.policy.suppressed.tolist()]
    probs = logits[:, allowed].softmax(-1)
    torch.testing.assert_close(entropy.double(), -(probs * probs.log()).sum(-1), atol=1e-4, rtol=0)
    logprobs = scoring.masked_logprobs(logits, loaded.policy.suppressed, 1.0)
    assert (logprobs[:, loaded.policy.suppressed].exp() == 0).all()


def test_an_ordinary_call_of_the_model_is_unchanged(device):
    loaded = tiny(device=device)
    groups = mixed_groups(loaded)
    ours = plain_logprobs(loaded.policy.model.eval(), groups, loaded.policy.suppressed, 1.0)
    theirs = plain_logprobs(plain_model(loaded), groups, loaded.policy.suppressed, 1.0)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
