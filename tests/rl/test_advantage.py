"""Advantages worked out by hand, rewards that cannot be scored, and groups that teach nothing."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vlm_r1.rl.advantage import leave_one_out, mean_only, mean_std, overlong_penalty, zero_variance_share

NAN = math.nan
ALL = [mean_std, mean_only, leave_one_out]


def rows(*values: list[float]) -> torch.Tensor:
    return torch.tensor(values)


def test_mean_std_by_hand():
    # mean 2, deviations -2 -1 0 3, squares 14, variance 14 / 3
    std = math.sqrt(14 / 3) + 1e-4
    expected = rows([-2 / std, -1 / std, 0, 3 / std])
    torch.testing.assert_close(mean_std(rows([0.0, 1.0, 2.0, 5.0])), expected)


def test_mean_only_by_hand():
    torch.testing.assert_close(mean_only(rows([0.0, 1.0, 2.0, 5.0])), rows([-2.0, -1, 0, 3]))


def test_leave_one_out_by_hand():
    # the others' means: 8/3, 7/3, 2, 1
    torch.testing.assert_close(leave_one_out(rows([0.0, 1.0, 2.0, 5.0])), rows([-8 / 3, -4 / 3, 0.0, 4.0]))


def test_rows_do_not_mix():
    both = mean_only(rows([1.0, 3.0], [10.0, 20.0]))
    torch.testing.assert_close(both, rows([-1.0, 1.0], [-5.0, 5.0]))


def test_rewards_that_cannot_be_scored_are_left_out_and_get_zero():
    rewards = rows([1.0, NAN, 4.0, NAN])
    torch.testing.assert_close(mean_only(rewards), rows([-1.5, 0, 1.5, 0]))
    torch.testing.assert_close(leave_one_out(rewards), rows([-3.0, 0, 3.0, 0]))
    std = math.sqrt(2 * 1.5**2 / 1) + 1e-4
    torch.testing.assert_close(mean_std(rewards), rows([-1.5 / std, 0, 1.5 / std, 0]))


@pytest.mark.parametrize("advantage", ALL)
@pytest.mark.parametrize("group", [[NAN, 7.0, NAN], [NAN, NAN, NAN], [0.1] * 3, [0.1 + 0.2, 0.3, 0.3]])
def test_nothing_to_compare_gives_exactly_zero(advantage, group):
    assert torch.equal(advantage(torch.tensor([group], dtype=torch.float32)), torch.zeros(1, 3))


@given(st.floats(-1e6, 1e6, width=32), st.integers(2, 64))
def test_equal_rewards_give_exactly_zero_whatever_their_value(value, size):
    for advantage in ALL:
        assert torch.equal(advantage(torch.full((2, size), value)), torch.zeros(2, size))


@given(st.lists(st.floats(-5, 5, width=32), min_size=2, max_size=12))
def test_advantages_of_a_group_sum_to_zero(group):
    for advantage in ALL:
        assert abs(float(advantage(torch.tensor([group])).sum())) < 1e-3 * (1 + len(group))


def test_share_of_groups_that_teach_nothing():
    rewards = rows([1.0, 1.0], [1.0, 2.0], [NAN, 3.0], [0.0, 0.0])
    assert zero_variance_share(rewards) == 0.75


def test_overlong_penalty_falls_over_the_last_fifth():
    lengths = torch.tensor([1, 80, 85, 90, 100])
    torch.testing.assert_close(overlong_penalty(lengths, 100), torch.tensor([0, 0, -0.25, -0.5, -1.0]))
    torch.testing.assert_close(overlong_penalty(lengths, 100, share=0.1), torch.tensor([0, 0, 0, 0, -1.0]))
    assert torch.isfinite(overlong_penalty(torch.tensor([1, 2, 3]), 3)).all()
