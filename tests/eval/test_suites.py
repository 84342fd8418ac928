from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from detection_oracle import box, random_split, slow_map, slow_nms

from vlm_r1.config import EvalConfig
from vlm_r1.eval.bootstrap import intervals, paired_intervals
from vlm_r1.eval.measures import summary
from vlm_r1.eval.outcomes import Outcome
from vlm_r1.eval.suites import SUITES, build_statistic


def rec(*ious):
    return [Outcome(kind="box", iou=iou, score=iou, correct=iou >= 0.5) for iou in ious]


def detection(seed, source, questions=10):
    true, predicted = random_split(seed, questions)
    return [
        Outcome(kind="boxes", true=tuple(t), predicted=tuple(p), source=source)
        for t, p in zip(true, predicted, strict=True)
    ]


def test_every_suite_can_be_named_in_a_recipe():
    (literal,) = {get_args(EvalConfig.model_fields["suites"].annotation)[1]}
    assert set(get_args(literal)) == set(SUITES)


def test_rec_by_hand():
    values = summary(rec(0.25, 0.5, 0.75, 1.0), resamples=0)
    assert values == {"n": 4, "mean_iou": 0.625, "acc@0.5": 0.75, "well_formed": 0, "mean_length": 0}


def test_ref_l4_by_hand():
    """Above 0.5, ... 0.95: 0.5 is above none, 0.76 above 6 of the ten thresholds, 0.95 above 9, 1.0 above all."""
    outcomes = [replace(outcome, source="ref_l4") for outcome in rec(0.5, 0.76, 0.95, 1.0)]
    values = summary(outcomes, resamples=0)
    assert values["macc"] == pytest.approx((0 + 6 + 9 + 10) / 40)
    assert (values["acc@0.5"], values["acc@0.75"], values["acc@0.9"]) == (1.0, 0.75, 0.5)
    assert "macc" not in summary(rec(0.5), resamples=0)


def test_accuracy_leaves_out_what_has_no_truth():
    outcomes = [Outcome(kind="choice", correct=value) for value in (True, True, False, None)]
    assert summary(outcomes, resamples=0)["accuracy"] == pytest.approx(2 / 3)


def test_form_and_failures_are_shares_of_all():
    outcomes = [
        Outcome(kind="text", correct=True, well_formed=True, n_tokens=4),
        Outcome(kind="text", correct=False, failure="no_answer", n_tokens=8),
    ]
    values = summary(outcomes, resamples=0)
    assert (values["well_formed"], values["mean_length"], values["failures/no_answer"]) == (0.5, 6, 0.5)


def test_a_mixed_split_is_measured_by_each_suite_on_its_own_questions():
    values = summary([*rec(0.5, 0.0), Outcome(kind="number", correct=True)], resamples=0)
    assert (values["n"], values["mean_iou"], values["accuracy"]) == (3, 0.25, 1.0)


def test_detection_metrics_are_those_of_the_definition():
    outcomes = detection(1, "scenes/detect")
    values = summary(outcomes, resamples=0)
    assert values["mAP"] == pytest.approx(slow_map([o.true for o in outcomes], [o.predicted for o in outcomes]))
    assert {"AP50", "GP", "GR"} < set(values) and "nms_ap" not in values


def test_ovdeval_is_measured_by_subset_and_averaged_over_aspects():
    subsets = {name: detection(i, f"ovdeval/{name}") for i, name in enumerate(("color", "material", "negation"))}
    expected = {
        name: slow_map([o.true for o in outcomes], [slow_nms(o.true, o.predicted) for o in outcomes])
        for name, outcomes in subsets.items()
    }
    values = summary([o for outcomes in subsets.values() for o in outcomes], resamples=0)
    for name, value in expected.items():
        assert values[f"nms_ap/{name}"] == pytest.approx(value, abs=1e-9)
    attribute = (expected["color"] + expected["material"]) / 2
    assert values["nms_ap"] == pytest.approx((attribute + expected["negation"]) / 2, abs=1e-9)
    assert "mAP" in values
    assert {key for key in summary(subsets["color"], resamples=0) if key.startswith("nms_ap")} == {"nms_ap"}


def test_the_mean_over_aspects_gives_the_papers_last_column():
    """VLM-R1's table of OVDEval: the eight subsets of a row, and its column "All"."""
    from vlm_r1.eval.suites import ASPECTS

    names = ("celebrity", "logo", "landmark", "color", "material", "position", "relationship", "negation")
    for row, told in (
        ((13.2, 26.5, 21.3, 2.9, 11.6, 47.9, 13.1, 38.7), 25.46),
        ((55.0, 34.6, 47.9, 4.5, 9.7, 42.9, 21.5, 37.7), 31.01),
        ((57.8, 35.8, 48.3, 7.8, 19.1, 44.5, 27.0, 51.7), 36.79),
    ):
        aspects = {}
        for name, value in zip(names, row, strict=True):
            aspects.setdefault(ASPECTS.get(name, name), []).append(value)
        assert np.mean([np.mean(group) for group in aspects.values()]) == pytest.approx(told, abs=0.02)


def test_several_labels_for_one_object_inflate_map_and_not_nms_ap():
    target = box(0, 0, 10, 10, "red cup")
    hedged = (box(0, 0, 10, 10, "blue cup"), box(0, 0, 10, 10, "red cup"))
    outcomes = [Outcome(kind="boxes", true=(target,), predicted=hedged, source="ovdeval/color")] * 3
    values = summary(outcomes, resamples=0)
    assert (values["mAP"], values["nms_ap"]) == (1.0, 0.0)


def test_a_named_suite_measures_everything_by_its_rule():
    values = summary(rec(0.25, 0.75), "accuracy", resamples=0)
    assert values["accuracy"] == 0.5 and "mean_iou" not in values
    assert summary(detection(3, "x"), "ovdeval", resamples=0)["nms_ap"] > 0
    assert set(summary(rec(0.5), "ovd", resamples=0)) == {"n", "well_formed", "mean_length"}


def test_an_empty_split_has_no_metrics():
    assert summary([]) == {"n": 0, "well_formed": 0, "mean_length": 0}


def test_intervals_are_those_of_the_normal_approximation():
    """400 questions, half right: the standard error of the share is 0.5 / 20."""
    values = summary(rec(*[0.0, 1.0] * 200), seed=3)
    for metric in ("mean_iou", "acc@0.5"):
        assert values[f"{metric}/low"] == pytest.approx(0.5 - 1.96 * 0.025, abs=0.006)
        assert values[f"{metric}/high"] == pytest.approx(0.5 + 1.96 * 0.025, abs=0.006)
    assert values == summary(rec(*[0.0, 1.0] * 200), seed=3)
    assert values != summary(rec(*[0.0, 1.0] * 200), seed=4)


def test_no_interval_for_one_question():
    assert "mean_iou/low" not in summary(rec(0.5))


def test_detection_intervals_resample_images():
    """Every image alike: no resample differs."""
    item = Outcome(kind="boxes", true=(box(0, 0, 10, 10),), predicted=(box(0, 0, 10, 10), box(50, 50, 60, 60)))
    values = summary([item] * 5, resamples=50)
    assert (values["GP/low"], values["GP"], values["GP/high"]) == (0.5, 0.5, 0.5)
    assert values["GR/low"] == values["GR/high"] == 1.0
    spread = summary(detection(5, "x", questions=20), resamples=50)
    assert spread["mAP/low"] < spread["mAP/high"]


def test_paired_interval_of_a_constant_gain_has_no_width():
    """Each question gains exactly 0.25, however different the questions are."""
    before = build_statistic(rec(0.0, 0.25, 0.5, 0.75))
    after = build_statistic(rec(0.25, 0.5, 0.75, 1.0))
    assert paired_intervals(before, after, 4)["mean_iou"] == (0.25, 0.25)
    low, high = intervals(after, 4)["mean_iou"]
    assert high - low > 0.3
