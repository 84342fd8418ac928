"""Measures of held-out answers, of thoughts and of the log, by hand."""

import json
import math

import numpy as np
import pytest

from vlm_r1.errors import StudyError
from vlm_r1.eval.outcomes import Outcome
from vlm_r1.lab.measures import HELD_OUT, Rows, log_number, number
from vlm_r1.lab.thoughts import lists_first, lists_right, partial_correlation, thought_correlation
from vlm_r1.records import LabelledBox
from vlm_r1.runtime.runlog import RunLog

RED = LabelledBox(box=(0.0, 0.0, 10.0, 10.0), label="red circle")
BLUE = LabelledBox(box=(20.0, 20.0, 30.0, 30.0), label="blue cross")
AWAY = LabelledBox(box=(50.0, 50.0, 60.0, 60.0), label="red circle")
ABSENT = LabelledBox(box=(50.0, 50.0, 60.0, 60.0), label="black square")


def answer(true, predicted, think="", **fields):
    return Outcome(kind="boxes", true=tuple(true), predicted=tuple(predicted), **fields), think


def of(metric, *rows, counts=None):
    return number(metric, Rows(rows))(np.ones(len(rows), dtype=int) if counts is None else np.array(counts))


def test_absent_classes_are_free_in_the_lenient_protocol_and_cost_in_the_strict_one():
    hacked = answer([RED], [RED, ABSENT])
    assert of("answer_map_lenient", hacked) == 1.0 and of("answer_map", hacked) == 0.5
    unreadable = answer([RED], [], failure="no_answer")
    nothing = answer([], [])
    assert of("answer_map", hacked, unreadable, nothing) == pytest.approx((0.5 + 0 + 1) / 3)
    assert of("answer_map", unreadable, answer([], [], failure="no_answer")) == 0.0


def test_boxes_are_counted_over_the_split():
    rows = [answer([RED, BLUE], [RED, BLUE, ABSENT, AWAY]), answer([], [ABSENT]), answer([RED], [])]
    assert of("pred_per_true", *rows) == pytest.approx(5 / 3)
    assert of("absent_per_answer", *rows) == pytest.approx(2 / 3)
    # The first question three times, the third never.
    assert of("pred_per_true", *rows, counts=[3, 1, 0]) == pytest.approx(13 / 6)
    assert of("pred_per_true", rows[1]) is None


def test_suites_measure_as_evaluation_does():
    rows = [(Outcome(kind="box", iou=iou, n_tokens=n, well_formed=n > 5), "") for iou, n in ((0.2, 4), (0.8, 10))]
    assert of("mean_iou", *rows) == 0.5 and of("acc@0.5", *rows) == 0.5
    assert of("mean_length", *rows) == 7 and of("well_formed", *rows) == 0.5
    assert of("mAP", answer([RED], [RED])) == 1.0 and of("GP", answer([RED], [RED, AWAY])) == 0.5


def test_an_unknown_metric_is_named():
    with pytest.raises(StudyError, match=r'no metric "mean_iuo".*did you mean "mean_iou"'):
        number("mean_iuo", Rows())
    assert set(HELD_OUT) >= {"mean_iou", "mAP", "lists_first"}


@pytest.mark.parametrize(
    ("thought", "first", "right"),
    [
        ("present: red circle, top left; blue cross, bottom right", True, True),
        ("present: red circle, top left", True, False),
        ("present: none", True, False),
        ("2 objects", False, False),
        ("", False, False),
        ("red circle and blue cross and black square", True, False),
    ],
)
def test_a_thought_lists_what_is_there_or_does_not(thought, first, right):
    assert (lists_first(thought), lists_right(thought, [RED, BLUE])) == (first, right)
    assert lists_right("present: none", []) and not lists_right("", [])


def test_partial_correlation_takes_out_what_length_explains():
    rng = np.random.default_rng(0)
    length = rng.normal(0, 1, 4000)
    x, y = length + rng.normal(0, 1, 4000), length + rng.normal(0, 1, 4000)
    x, y, length = (v - v.mean() for v in (x, y, length))
    assert np.corrcoef(x, y)[0, 1] > 0.45 and abs(partial_correlation(x, y, length)) < 0.05
    # The textbook formula from the three correlations.
    y = y + 0.5 * x
    r = np.corrcoef([x, y, length])
    expected = (r[0, 1] - r[0, 2] * r[1, 2]) / math.sqrt((1 - r[0, 2] ** 2) * (1 - r[1, 2] ** 2))
    assert partial_correlation(x, y, length) == pytest.approx(expected, abs=1e-6)
    assert partial_correlation(x, x * 0, length) is None


def rollout(group, listed, accuracy, n_tokens):
    parts = json.dumps({"od_length": accuracy, "format": 1.0})
    think = "present: red circle" if listed else ""
    return {"group": group, "reward": accuracy + 0.2, "parts": parts, "think": think, "n_tokens": n_tokens}


def test_easy_questions_do_not_make_listing_look_good(tmp_path):
    log = RunLog(tmp_path)
    # All answers to the easy question list, none to the hard one: between groups it goes along, within it does not.
    easy = [rollout(0, True, 1.0, 10), rollout(0, True, 0.9, 11)]
    log.rollouts(1, [*easy, rollout(1, False, 0.0, 10), rollout(1, False, 0.1, 12)])
    assert thought_correlation(tmp_path) is None
    log.rollouts(2, [rollout(0, True, 1.0, 10), rollout(0, False, 0.0, 10), rollout(0, True, 1.0, 10)])
    assert thought_correlation(tmp_path) > 0.9
    assert log_number("log:lists_first_correlation", tmp_path, 2) == thought_correlation(tmp_path)
    assert thought_correlation(tmp_path / "nowhere") is None


def test_the_log_gives_means_and_the_first_warning(tmp_path):
    log = RunLog(tmp_path)
    for step in range(1, 31):
        log.metrics(step, {"reward": float(step)})
    warning = "step 31: ... the policy may be exploiting the reward. Look at the rollouts"
    log.metrics(31, {"reward": None, "warnings": ["the loss is odd"]})
    log.metrics(32, {"reward": 50.0, "warnings": ["x", warning]})
    assert log_number("log:reward", tmp_path, 30) == 25.5
    assert log_number("log:reward", tmp_path, 32) == pytest.approx((sum(range(23, 31)) + 50) / 9)
    assert log_number("log:kl", tmp_path, 30) is None
    assert (log_number("log:warned", tmp_path, 31), log_number("log:warning_step", tmp_path, 31)) == (0.0, None)
    assert (log_number("log:warned", tmp_path, 32), log_number("log:warning_step", tmp_path, 32)) == (1.0, 32.0)
