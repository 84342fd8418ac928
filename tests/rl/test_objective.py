"""Every part of the objective against numbers worked out by hand."""

import math

import pytest
import torch
from torch.testing import assert_close

from vlm_r1.rl import advantage, objective
from vlm_r1.rl.algorithms import ALGORITHMS

LOG = [math.log(v) for v in (0.5, 1.0, 1.5, 1.1)]
"""Log-ratios of four tokens: two answers of two tokens."""
OWNER = torch.tensor([0, 0, 1, 1])


def inputs(log_ratio, *, advantages=0.0, sampler=None, old=-2.0, owner=OWNER) -> objective.LossInputs:
    """Answers of tokens whose log-probs moved by `log_ratio` since the update began."""
    log_ratio = torch.as_tensor(log_ratio)
    old_S = torch.full_like(log_ratio, old).detach()
    return objective.LossInputs(
        logprobs_S=log_ratio + old_S,
        sampler_S=old_S if sampler is None else torch.tensor(sampler),
        old_S=old_S,
        ref_S=None,
        advantages_S=torch.as_tensor(advantages).expand(len(log_ratio)),
        weights_S=torch.ones(len(log_ratio)),
        segments_S=owner[: len(log_ratio)],
        n_segments=int(owner.max()) + 1,
    )


def test_token_ratio_is_each_tokens_own():
    assert_close(objective.token_ratio(inputs(LOG)), torch.tensor([0.5, 1.0, 1.5, 1.1]))


def test_sequence_ratio_is_the_geometric_mean_of_its_answer():
    first, second = math.sqrt(0.5 * 1.0), math.sqrt(1.5 * 1.1)
    assert_close(objective.sequence_ratio(inputs(LOG)), torch.tensor([first, first, second, second]))
    assert objective.sequence_ratio(inputs([])).shape == (0,)


def test_sequence_ratio_does_not_mix_answers_that_are_not_neighbours():
    found = objective.sequence_ratio(inputs(LOG, owner=torch.tensor([1, 0, 1, 0])))
    first, second = math.sqrt(0.5 * 1.5), math.sqrt(1.0 * 1.1)
    assert_close(found, torch.tensor([first, second, first, second]))


def test_sequence_ratio_spreads_its_gradient_over_the_answer():
    logprobs = torch.tensor(LOG, requires_grad=True)
    objective.sequence_ratio(inputs(logprobs))[0].backward()
    assert_close(logprobs.grad, torch.tensor([math.sqrt(0.5) / 2, math.sqrt(0.5) / 2, 0, 0]))


@pytest.mark.parametrize(
    ("ratio", "sign", "value", "slope"),
    [
        (1.0, 1, -1.0, -1.0),
        (1.5, 1, -1.28, 0.0),  # a good token already likelier: held at 1 + high
        (1.5, -1, 1.5, 1.5),
        (0.5, 1, -0.5, -0.5),
        (0.5, -1, 0.8, 0.0),  # a bad token already rarer: held at 1 - low
        (1.25, 1, -1.25, -1.25),
    ],
)
def test_clipped_surrogate_by_hand(ratio, sign, value, slope):
    logprob = torch.tensor([math.log(ratio)], requires_grad=True)
    x = inputs(logprob, advantages=float(sign), old=0.0)
    found = objective.clipped(objective.token_ratio(x), x, 0.2, 0.28)
    assert_close(found, torch.tensor([value]))
    found.sum().backward()
    assert_close(logprob.grad, torch.tensor([slope]))


@pytest.mark.parametrize(("ratio", "weight"), [(1.0, 1.0), (1.5, 1.28), (0.5, 0.8), (1.1, 1.1)])
@pytest.mark.parametrize("advantage_", [2.0, -3.0])
def test_cispo_keeps_a_gradient_for_every_token(ratio, weight, advantage_):
    logprob = torch.tensor([math.log(ratio)], requires_grad=True)
    x = inputs(logprob, advantages=advantage_, old=0.0)
    found = objective.clipped_weight(objective.token_ratio(x), x, 0.2, 0.28)
    assert_close(found, torch.tensor([-weight * advantage_ * math.log(ratio)]))
    found.sum().backward()
    assert_close(logprob.grad, torch.tensor([-weight * advantage_]))


def test_k3_by_hand():
    logprobs, ref = torch.tensor([-1.0, -1.0, -2.0]), torch.tensor([-1.0, -2.0, -1.0])
    assert_close(objective.k3(logprobs, ref), torch.tensor([0.0, math.exp(-1) + 1 - 1, math.e - 1 - 1]))
    grad = torch.tensor([-1.0], requires_grad=True)
    objective.k3(grad, torch.tensor([-2.0])).sum().backward()
    assert_close(grad.grad, torch.tensor([1 - math.exp(-1)]))


def test_k3_is_unbiased_for_the_divergence():
    probs, ref = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.3, 0.3, 0.4])
    expected = (probs * (probs / ref).log()).sum()
    assert_close((probs * objective.k3(probs.log(), ref.log())).sum(), expected)


def test_token_weights_by_hand():
    """Three of the step's five answers are here, 10 of its 40 tokens; the limit is 8 tokens."""
    lengths, step = torch.tensor([1, 4, 5]), (5, 40, 8)
    assert_close(objective.answer_mean(lengths, *step), torch.tensor([1 / 5, 1 / 20, 1 / 25]))
    assert_close(objective.answer_sum(lengths, *step), torch.full((3,), 1 / 5))
    assert_close(objective.token_mean(lengths, *step), torch.full((3,), 1 / 40))
    assert_close(objective.constant_length(lengths, *step), torch.full((3,), 1 / 40))
    assert_close(objective.constant_length(lengths, 5, 11, 8), torch.full((3,), 1 / 40))


def test_an_answer_without_tokens_and_a_step_without_answers_divide_by_nothing():
    assert_close(objective.answer_mean(torch.tensor([0, 2]), 2, 2, 8), torch.tensor([1 / 2, 1 / 4]))
    assert objective.token_mean(torch.zeros(0, dtype=torch.long), 0, 0, 8).shape == (0,)


SAMPLER = [-2.0 - math.log(v) for v in (0.5, 2.0, 4.0, 1.5)]
"""The trainer's log-prob is -2 for each: so much likelier are the tokens to it than they were to the sampler."""


@pytest.mark.parametrize(
    ("mode", "cap", "expected"),
    [
        ("off", 3.0, [1.0, 1.0, 1.0, 1.0]),
        ("token_truncate", 3.0, [0.5, 2.0, 3.0, 1.5]),
        ("token_mask", 3.0, [0.5, 2.0, 0.0, 1.5]),
        ("sequence_truncate", 3.0, [1.0, 1.0, 3.0, 3.0]),  # 0.5 x 2 and 4 x 1.5 = 6
        ("sequence_mask", 3.0, [1.0, 1.0, 0.0, 0.0]),
        ("token_truncate", 1.8, [0.5, 1.8, 1.8, 1.5]),
        ("sequence_truncate", 7.0, [1.0, 1.0, 6.0, 6.0]),
        ("sequence_mask", 7.0, [1.0, 1.0, 6.0, 6.0]),
    ],
)
def test_importance_weights_by_hand(mode, cap, expected):
    found = objective.importance_weights(inputs([0.0] * 4, sampler=SAMPLER), mode, cap)
    assert_close(found, torch.tensor(expected))


def test_importance_weights_are_of_the_start_of_the_update_and_carry_no_gradient():
    moved = torch.tensor([0.3, -0.7, 1.0, 2.0], requires_grad=True)
    for mode in ("token_truncate", "sequence_mask"):
        found = objective.importance_weights(inputs(moved, sampler=SAMPLER), mode, 3.0)
        assert not found.requires_grad
        assert_close(found, objective.importance_weights(inputs([0.0] * 4, sampler=SAMPLER), mode, 3.0))


def test_where_nothing_is_corrected_the_weights_are_exactly_one():
    found = objective.importance_weights(inputs(LOG, sampler=[-9.0, 0.0, -1e-3, -50.0]), "off", 3.0)
    assert torch.equal(found, torch.ones(4))
    for mode in ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask"):
        assert torch.equal(objective.importance_weights(inputs(LOG), mode, 3.0), torch.ones(4))


def test_the_table_of_algorithms_is_the_literatures():
    rows = {name: (a.advantage, a.ratio, a.surrogate, a.token_weight, a.clip_high) for name, a in ALGORITHMS.items()}
    std, token, clip, mean = advantage.mean_std, objective.token_ratio, objective.clipped, objective.answer_mean
    assert rows == {
        "grpo": (std, token, clip, mean, 0.2),
        "dr_grpo": (advantage.mean_only, token, clip, objective.constant_length, 0.2),
        "dapo": (std, token, clip, objective.token_mean, 0.28),
        "gspo": (std, objective.sequence_ratio, clip, mean, 4e-4),
        "cispo": (std, token, objective.clipped_weight, objective.token_mean, 0.2),
        "rloo": (advantage.leave_one_out, token, clip, objective.answer_sum, 0.2),
    }
    assert {name: a.clip_low for name, a in ALGORITHMS.items() if a.clip_low != 0.2} == {"gspo": 3e-4, "cispo": 1.0}
    assert [name for name, a in ALGORITHMS.items() if a.dynamic_sampling or a.overlong_shaping] == ["dapo"]
