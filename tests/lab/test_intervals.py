"""Intervals over seeds and questions: known values, known distributions, and the coverage they promise."""

import math

import numpy as np
import pytest

from vlm_r1.lab.intervals import Estimate, draws, estimate, student_quantile


@pytest.mark.parametrize(
    ("freedom", "level", "quantile"),
    # Tables of Student's distribution.
    [
        (1, 0.95, 12.706),
        (2, 0.95, 4.303),
        (4, 0.95, 2.776),
        (9, 0.95, 2.262),
        (30, 0.95, 2.042),
        (math.inf, 0.95, 1.960),
        (4, 0.99, 4.604),
        (4, 0.90, 2.132),
    ],
)
def test_quantiles_are_those_of_the_tables(freedom, level, quantile):
    assert student_quantile(freedom, level) == pytest.approx(quantile, abs=2e-3)


def test_without_questions_it_is_the_interval_of_a_mean_of_seeds():
    values = np.array([[1.0], [2.0], [3.0], [4.0], [5.0]])
    found = estimate(values)
    # sd = sqrt(2.5), over sqrt(5): 0.7071; times 2.776
    assert found.value == 3 and found.interval() == pytest.approx((3 - 1.963, 3 + 1.963), abs=1e-3)
    assert found.seeds == 5


def test_equal_seeds_leave_the_questions_alone():
    rng = np.random.default_rng(0)
    ious = rng.uniform(0, 1, 200)
    counts = draws(200, 4000, seed=1)
    values = np.repeat((counts @ ious / 200)[None], 3, axis=0)
    low, high = estimate(values).interval()
    reach = 1.96 * ious.std() / math.sqrt(200)
    assert (low, high) == pytest.approx((ious.mean() - reach, ious.mean() + reach), abs=3e-3)


def test_what_all_runs_share_cancels_in_a_difference():
    rng = np.random.default_rng(0)
    questions, seeds = rng.normal(0, 1, 300), rng.normal(0, 1, (4, 1))
    counts = draws(300, 500, seed=1)
    first = (seeds + questions) @ counts.T / 300
    second = (seeds + questions + 0.25) @ counts.T / 300
    assert estimate(second - first).interval() == pytest.approx((0.25, 0.25), abs=1e-9)
    low, high = estimate(first).interval()
    assert high - low > 0.5


def test_one_seed_has_no_interval():
    found = estimate(np.array([[0.5, 0.4, 0.6]]))
    assert found.value == 0.5 and found.interval() is None
    assert Estimate(value=0.0, error=0.0, freedom=math.inf, seeds=5).interval() == (0.0, 0.0)


def test_a_draw_has_as_many_questions_and_the_first_has_each_once():
    counts = draws(7, 50, seed=3)
    assert counts.shape == (51, 7) and (counts[0] == 1).all() and (counts.sum(1) == 7).all()
    assert (counts == draws(7, 50, seed=3)).all() and (counts != draws(7, 50, seed=4)).any()


@pytest.mark.parametrize(
    ("n_seeds", "of_seed", "of_question", "of_both"),
    [(5, 0.05, 0.1, 0.1), (3, 0.03, 0.3, 0.2), (5, 0.0, 0.3, 0.2), (5, 0.05, 0.0, 0.02)],
)
def test_95_percent_intervals_cover_the_truth_95_times_in_100(n_seeds, of_seed, of_question, of_both):
    rng, trials, n = np.random.default_rng(0), 500, 100
    counts = draws(n, 200, seed=0)
    covered = 0
    for _ in range(trials):
        ious = 0.3 + rng.normal(0, of_seed, (n_seeds, 1)) + rng.normal(0, of_question, (1, n))
        values = (ious + rng.normal(0, of_both, (n_seeds, n))) @ counts.T / n
        low, high = estimate(values).interval()
        covered += low <= 0.3 <= high
    # Two standard errors of a share of 0.95 over 500 trials are 0.02; it may be a little wide, never narrow.
    assert 0.93 <= covered / trials <= 0.985


def test_a_percentile_bootstrap_over_five_seeds_would_be_too_narrow():
    """Why the interval is Student's: where seeds differ and questions do not, percentiles cover far less than 95 %."""
    rng, trials, covered, ours = np.random.default_rng(0), 500, 0, 0
    for _ in range(trials):
        runs = rng.normal(0.3, 0.05, 5)
        low, high = np.percentile(rng.choice(runs, (400, 5)).mean(1), [2.5, 97.5])
        covered += low <= 0.3 <= high
        low, high = estimate(runs[:, None]).interval()
        ours += low <= 0.3 <= high
    assert covered / trials < 0.88 and 0.93 <= ours / trials <= 0.97
