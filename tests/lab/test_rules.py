"""Verdicts follow from rules and intervals alone."""

import math

import pytest

from vlm_r1.lab.intervals import Estimate
from vlm_r1.lab.rules import holds, judge, level
from vlm_r1.lab.study import Claim, When


def known(value: float, error: float | None = 0.01) -> Estimate:
    """Its 95 % interval is the value plus and minus 1.96 errors."""
    return Estimate(value=value, error=error, freedom=math.inf, seeds=5)


def claim(shown: dict, refuted: dict) -> Claim:
    return Claim(claim="c", paper="p", shown=When(**shown), refuted=When(**refuted))


BETTER = claim({"all": ["gain > 0"]}, {"all": ["gain < 0.01"]})


@pytest.mark.parametrize(
    ("value", "error", "verdict"),
    [
        (0.05, 0.01, "shown"),
        (0.05, 0.03, "not shown"),
        (-0.05, 0.01, "refuted"),
        (0.0, 0.004, "refuted"),
        (0.0, 0.02, "not shown"),
        # Surely above 0 and surely below 0.01: shown goes first.
        (0.005, 0.001, "shown"),
    ],
)
def test_a_rule_is_met_by_the_whole_interval(value, error, verdict):
    assert judge(BETTER, {"gain": known(value, error)}).verdict == verdict


def test_all_needs_every_condition_and_any_needs_one():
    both = claim({"all": ["a > 0", "b > 0"]}, {"any": ["a < 0", "b < 0"]})
    assert judge(both, {"a": known(0.1), "b": known(0.1)}).verdict == "shown"
    assert judge(both, {"a": known(0.1), "b": known(0.0)}).verdict == "not shown"
    assert judge(both, {"a": known(0.1), "b": known(-0.1)}).verdict == "refuted"


def test_one_of_many_conditions_needs_a_wider_interval():
    five = When(any=[f"q{i} > 0" for i in range(5)])
    assert level(five) == pytest.approx(0.99) and level(When(all=["a > 0", "b > 0"])) == 0.95
    # 0.0225 is 2.25 errors above 0: enough for 95 % (1.96), not for 99 % (2.58).
    measured = {f"q{i}": known(0.0225 if i == 0 else 0.0) for i in range(5)}
    assert holds("q0 > 0", measured) and not holds("q0 > 0", measured, level(five))
    many = claim({"any": five.any}, {"all": ["q0 < -1"]})
    assert judge(many, measured).verdict == "not shown"
    measured["q0"] = known(0.03)
    assert judge(many, measured).verdict == "shown"


def test_what_was_not_measured_is_not_run():
    assert judge(BETTER, {}).verdict == "not run" and "gain" in judge(BETTER, {}).why[0]
    assert judge(BETTER, {"gain": known(0.5, None)}).verdict == "not run"


def test_the_reason_names_the_numbers():
    shown, refuted = judge(BETTER, {"gain": known(0.05)}).why
    assert shown == "shown if gain > 0 [0.050 (0.030 to 0.070), holds]"
    assert refuted == "refuted if gain < 0.01 [0.050 (0.030 to 0.070), does not hold]"


@pytest.mark.parametrize("fields", [{}, {"all": ["a > 0"], "any": ["b > 0"]}, {"all": ["a >= 0"]}, {"any": ["a > b"]}])
def test_a_rule_that_cannot_be_read_is_refused(fields):
    with pytest.raises(ValueError, match=r"give either all or any|is not a condition"):
        When(**fields)
