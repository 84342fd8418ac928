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


def ratios(function=objective.token_ratio):
    return function(torch.tensor(LOG) - 2.0, torch.full((4,), -2.0), OWNER)


def test_token_ratio_is_each_tokens_own():
    assert_close(ratios(), torch.tensor([0.5, 1.0, 1.5, 1.1]))


def test_sequence_ratio_is_the_geometric_mean_of_its_answer():
    first, second = math.sqrt(0.5 * 1.0), math.sqrt(1.5 * 1.1)
    assert_close(ratios(objective.sequence_ratio), torch.tensor([first, first, second, second]))
    nothing = torch.zeros(0)
    assert objective.sequence_ratio(nothing, nothing, torch.zeros(0, dtype=torch.long)).shape == (0,)


def test_sequence_ratio_spreads_its_gradient_over_the_answer():
    logprobs = torch.tensor(LOG, requires_grad=True)
    objective.sequence_ratio(logprobs, torch.zeros(4), OWNER)[0].backward()
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
    found = objective.clipped(logprob.exp(), logprob, torch.tensor([float(sign)]), 0.2, 0.28)
    assert_close(found, torch.tensor([value]))
    found.sum().backward()
    assert_close(logprob.grad, torch.tensor([slope]))


@pytest.mark.parametrize(("ratio", "weight"), [(1.0, 1.0), (1.5, 1.28), (0.5, 0.8), (1.1, 1.1)])
@pytest.mark.parametrize("advantage_", [2.0, -3.0])
def test_cispo_keeps_a_gradient_for_every_token(ratio, weight, advantage_):
    logprob = torch.tensor([math.log(ratio)], requires_grad=True)
    found = objective.clipped_weight(logprob.exp(), logprob, torch.tensor([advantage_]), 0.2, 0.28)
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
    lengths = torch.tensor([1, 4, 5])
    assert_close(objective.answer_mean(lengths, 8), torch.tensor([1 / 3, 1 / 12, 1 / 15]))
    assert_close(objective.answer_sum(lengths, 8), torch.full((3,), 1 / 3))
    assert_close(objective.token_mean(lengths, 8), torch.full((3,), 0.1))
    assert_close(objective.constant_length(lengths, 8), torch.full((3,), 1 / 24))


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
