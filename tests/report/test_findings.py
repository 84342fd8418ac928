import pytest

from vlm_r1.records import LabelledBox
from vlm_r1.report.findings import (
    Change,
    changes,
    explanation,
    headline,
    interval,
    number,
    percent,
    signed,
    tally,
    unreadable,
)
from vlm_r1.report.pairs import join, read_pairs
from vlm_r1.runtime.runlog import RunLog, boxes_to_json


def evaluate(folder, phase, ious, split="in_domain", extra=None, rows=True):
    log = RunLog(folder)
    values = {"n": len(ious), "mean_iou": sum(ious) / len(ious), "acc@0.5": sum(x >= 0.5 for x in ious) / len(ious)}
    samples = [
        {"split": split, "sample_id": str(i), "question": "q", "iou": x, "correct": x >= 0.5}
        for i, x in enumerate(ious)
    ]
    log.evaluation(phase, {split: values | (extra or {})}, samples if rows else None)


def test_equal_gains_have_a_point_as_interval(tmp_path):
    evaluate(tmp_path, "before", [0.0, 0.25, 0.5, 0.25])
    evaluate(tmp_path, "after", [0.5, 0.75, 1.0, 0.75])
    iou, acc = changes([tmp_path])
    assert (iou.metric, iou.n, iou.before, iou.after) == ("mean_iou", 4, 0.25, 0.75)
    assert (iou.low, iou.high, iou.verdict) == (0.5, 0.5, "rose")
    assert (acc.metric, acc.before, acc.after) == ("acc@0.5", 0.25, 1.0)
    assert explanation(iou) == "Rose by 0.500 (95 % interval +0.500 to +0.500, 4 questions)."


def test_worse_noise_and_unchanged_are_said_so(tmp_path):
    evaluate(tmp_path / "a", "before", [0.75] * 4)
    evaluate(tmp_path / "a", "after", [0.25] * 4)
    worse = changes([tmp_path / "a"])[0]
    assert worse.verdict == "fell" and explanation(worse).startswith(
        "Fell by 0.500 (95 % interval \N{MINUS SIGN}0.500 to \N{MINUS SIGN}0.500"
    )
    evaluate(tmp_path / "b", "before", [0.25, 0.75] * 10)
    evaluate(tmp_path / "b", "after", [0.75, 0.25] * 10)
    noise = changes([tmp_path / "b"])[0]
    assert noise.verdict == "noise" and noise.low < 0 < noise.high
    assert explanation(noise).startswith("No change beyond noise: +0.000 (95 % interval \N{MINUS SIGN}0.")
    evaluate(tmp_path / "c", "before", [0.25, 0.5])
    evaluate(tmp_path / "c", "after", [0.25, 0.5])
    assert explanation(changes([tmp_path / "c"])[0]) == "Unchanged (2 questions)."


def test_no_interval_without_rows_or_with_rows_that_disagree(tmp_path):
    for phase, ious in (("before", [0.0, 0.5]), ("after", [0.5, 1.0])):
        evaluate(tmp_path / "a", phase, ious, rows=False)
        evaluate(tmp_path / "b", phase, ious)
    change = changes([tmp_path / "a"])[0]
    assert change.low is None and change.verdict == "unknown"
    assert explanation(change) == (
        "Changed by +0.500 (no interval: no rows per question give this number, 2 questions)."
    )
    RunLog(tmp_path / "b").evaluation("after", {"in_domain": {"n": 2, "mean_iou": 0.9}})
    assert changes([tmp_path / "b"])[0].low is None


def test_interval_agrees_with_the_normal_one(tmp_path):
    """Half of 400 questions gain 1: the mean gain is 0.5 with a standard error of 0.5 / 20."""
    evaluate(tmp_path, "before", [0.0] * 400)
    evaluate(tmp_path, "after", [0.0, 1.0] * 200)
    change = changes([tmp_path])[0]
    assert change.low == pytest.approx(0.5 - 1.96 * 0.5 / 20, abs=0.005)
    assert change.high == pytest.approx(0.5 + 1.96 * 0.5 / 20, abs=0.005)


def test_detection_has_an_interval_too(tmp_path):
    """mAP is no mean over questions; every cat is found after training, none before."""
    true, far = (boxes_to_json([LabelledBox(box=box, label="cat")]) for box in ((0, 0, 10, 10), (50, 50, 60, 60)))
    for phase, value, answered in (("before", 0.0, far), ("after", 1.0, true)):
        rows = [
            {"split": "ovd", "sample_id": str(i), "task": "ovd", "true_boxes": true, "pred_boxes": answered}
            for i in range(6)
        ]
        RunLog(tmp_path).evaluation(phase, {"ovd": {"n": 6, "mAP": value}}, rows)
    (change,) = changes([tmp_path])
    assert (change.metric, change.low, change.high) == ("mAP", pytest.approx(1.0), pytest.approx(1.0))


def test_runs_with_other_questions_have_no_interval(tmp_path):
    for name, n in (("a", 2), ("b", 3)):
        for phase, iou in (("before", 0.25), ("after", 0.75)):
            evaluate(tmp_path / name, phase, [iou] * n)
    change = changes([tmp_path / "a", tmp_path / "b"])[0]
    assert (change.difference, change.low) == (0.5, None)


def test_several_runs_are_averaged_and_their_range_is_told(tmp_path):
    for name, after in (("a", [0.5, 0.5]), ("b", [1.0, 1.0])):
        evaluate(tmp_path / name, "before", [0.25, 0.25])
        evaluate(tmp_path / name, "after", after)
    change = changes([tmp_path / "a", tmp_path / "b"])[0]
    assert (change.before, change.after, change.by_run) == (0.25, 0.75, (0.25, 0.75))
    assert (change.low, change.high) == (0.5, 0.5)
    assert "2 runs, from +0.250 to +0.750" in explanation(change)


def test_a_run_without_both_evaluations_has_no_change(tmp_path):
    evaluate(tmp_path, "after", [0.5, 0.5])
    assert changes([tmp_path]) == []


def test_other_metrics_get_a_sentence_only_where_no_headline_exists():
    def change(split, metric):
        return Change(split=split, metric=metric, n=1, before=0.0, after=1.0)

    found = [change("a", "mean_iou"), change("a", "recall"), change("b", "mAP")]
    assert [(c.split, c.metric) for c in headline(found)] == [("a", "mean_iou"), ("b", "mAP")]


def told(*bounds, n=40):
    heads = [
        Change(split="val", metric="mean_iou", n=n, before=0.0, after=0.5, low=low, high=high) for low, high in bounds
    ]
    return tally(heads)


def test_headline_numbers_are_counted_by_verdict():
    rose, fell, noise, same, unknown = (0.1, 0.2), (-0.2, -0.1), (-0.1, 0.1), (0.0, 0.0), (None, None)
    assert told(rose) == []
    assert told(rose, rose) == ["All 2 held-out numbers rose beyond noise."]
    assert told(noise, (0.0, 0.2)) == ["None of the 2 held-out numbers changed beyond noise."]
    assert told(rose, noise, fell, rose) == ["Of 4 held-out numbers 2 rose, 1 fell and 1 did not change beyond noise."]
    assert told(same, unknown) == [
        "Of 2 held-out numbers 1 did not change at all and 1 changed by an amount without an interval."
    ]
    assert told(rose, n=29) == ["Fewer than 30 questions, so that intervals are too narrow to trust: val (29)."]


def test_unreadable_answers_are_counted():
    before = [
        {"split": "s", "sample_id": str(i), "question": "", "failure": "no_box" if i < 3 else None} for i in range(4)
    ]
    after = [{**row, "failure": None} for row in before]
    assert unreadable(join(before, after)) == ["s: answers that could not be read went from 75 % to 0 %."]
    assert unreadable(join(before, before)) == ["s: answers that could not be read were 75 % before and after."]
    assert unreadable(join(after, after)) == []


def test_small_shares_and_bounds_beside_zero_are_not_rounded_away():
    assert [percent(x) for x in (0.0, 0.0001, 0.015, 0.025, 0.0996, 0.25, 1.0)] == [
        "0 %", "under 0.1 %", "1.5 %", "2.5 %", "10 %", "25 %", "100 %",
    ]  # fmt: skip
    assert interval(0.0003, 0.02) == "+0.0003 to +0.0200"
    assert interval(-0.2, 0.1) == "\N{MINUS SIGN}0.200 to +0.100"


def test_questions_are_joined_by_id_and_gain_falls_back_to_correctness(tmp_path):
    before = [
        {"split": "s", "sample_id": "1", "question": "a", "iou": 0.25},
        {"split": "s", "sample_id": "2", "question": "b"},
    ]
    after = [
        {"split": "s", "sample_id": "1", "question": "a", "iou": 0.75},
        {"split": "s", "sample_id": "3", "question": "c"},
    ]
    pairs = join(before, after)["s"]
    assert [pair.gain for pair in pairs] == [0.5, None, None]
    wrong, right = {"split": "s", "sample_id": "1", "correct": False}, {"split": "s", "sample_id": "1", "correct": True}
    assert join([wrong], [right])["s"][0].gain == 1.0
    assert read_pairs(tmp_path) == {}


def test_numbers_have_a_true_minus_and_no_negative_zero():
    assert [number(-0.0001), number(-0.25), signed(-0.0), signed(0.1234), signed(-1)] == [
        "0.000",
        "\N{MINUS SIGN}0.250",
        "+0.000",
        "+0.123",
        "\N{MINUS SIGN}1.000",
    ]
