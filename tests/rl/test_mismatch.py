"""Warnings that engine and trainer drift apart: when they come, what they name, and that they survive a resume."""

import math

import pytest
from support import recipe

from vlm_r1.rl.metrics import Monitor
from vlm_r1.rl.mismatch import MismatchWatch


def warned(values, limit=0.05, **options):
    """Step -> sentence for a run with these means, from step 1."""
    watch = MismatchWatch(limit, **options)
    return {step: told for step, value in enumerate(values, 1) for told in watch.update(step, value)}


def test_a_difference_above_the_bound_is_named_with_its_step_and_both_numbers():
    found = warned([0.01, 0.0812, 0.01])
    assert list(found) == [2]
    for part in ("step 2:", "0.0812 nats", "rollout.max_mismatch (0.05)", "check-engine", "optim.lr"):
        assert part in found[2]


def test_growth_below_the_bound_is_named_too():
    found = warned([0.002] * 10 + [0.02] * 10)
    # the mean of the last ten exceeds 4 x 0.002 once four of them are 0.02
    assert list(found) == [14]
    assert "was 0.002 nats a token at the start and is 0.0092 over the last 10 steps" in found[14]


@pytest.mark.parametrize("values", [[1e-6] * 10 + [1e-3] * 30, [0.03] * 40, [None, math.nan] * 20, []])
def test_what_is_no_drift_is_not_told(values):
    assert warned(values) == {}


def test_at_most_one_warning_in_a_window():
    assert list(warned([0.1] * 25)) == [1, 11, 21]


def test_only_where_servers_answer_and_over_a_resume(tmp_path):
    name = "sampling/sampling_logp_difference/mean"
    served = recipe(tmp_path, tmp_path / "run", rollout={"engine": "vllm", "max_mismatch": 0.2})
    native = Monitor(recipe(tmp_path, tmp_path / "run"))
    line = {"completions/mean_length": 3.0, name: 0.3}
    assert native.observe(1, dict(line)) == [] and "mismatch" not in native.state_dict()
    monitor = Monitor(served)
    [told] = monitor.observe(1, dict(line))
    assert "0.3 nats a token, above rollout.max_mismatch (0.2)" in told
    again = Monitor(served)
    again.load_state_dict(monitor.state_dict())
    assert again.state_dict() == monitor.state_dict() and again.observe(2, dict(line)) == []
    assert monitor.observe(3, {"completions/mean_length": 3.0}) == []
