import json
import math

import pytest

from vlm_r1.records import Score
from vlm_r1.rewards.diagnostics import ShadowWatch, Trend, step_diagnostics

CAT, DOG = ((0, 0, 10, 10), "cat"), ((100, 0, 120, 20), "dog")


def written(*items):
    return json.dumps([{"bbox_2d": list(box), "label": label} for box, label in items])


def test_counts_of_a_step_by_hand(case):
    pairs = [
        # One true box; four predicted: a hit, its duplicate (IoU 0.95), one absent class, and a dropped one.
        case("ovd", written(CAT, ((0, 0, 10, 9.5), "Cat"), DOG, ((5, 5, 5, 5), "cat")), boxes=[CAT]),
        case("ovd", "None", boxes=[CAT, DOG], truncated=True),
        case("ovd", "hm", boxes=[CAT]),
        case("number", "<answer>1 or 2</answer>", wrap=False, number=1.0),
    ]
    totals = [0.5, 0.0, None, 0.0]
    rows = [(*pair, Score(total=total)) for pair, total in zip(pairs, totals, strict=True)]
    assert step_diagnostics(rows) == {
        "parse/failed": 2 / 4,
        "parse/unreadable": 1 / 4,
        "parse/ambiguous": 1 / 4,
        "format/no_think": 1 / 4,
        "score/not_scorable": 1 / 4,
        "answers/truncated": 1 / 4,
        # 3 predicted over 1 + 2 true: the unreadable answer holds no boxes and is left out.
        "boxes/pred_per_true": 3 / 3,
        "boxes/duplicate_share": 1 / 3,
        "boxes/absent_class_share": 1 / 3,
        "boxes/dropped_per_answer": 1 / 3,
    }


def test_without_answers_or_boxes_there_is_nothing_to_divide_by(case):
    assert step_diagnostics([]) == {}
    rows = [(*case("ovd", "None", boxes=[]), Score(total=1.0))]
    assert step_diagnostics(rows)["boxes/dropped_per_answer"] == 0
    assert "boxes/pred_per_true" not in step_diagnostics(rows)


def test_a_truth_without_labels_has_no_absent_classes(case):
    rows = [(*case("rec", '{"bbox_2d": [0, 0, 5, 5], "label": "x"}', boxes=[(0, 0, 9, 9)]), Score(total=1.0))]
    assert step_diagnostics(rows)["boxes/absent_class_share"] == 0


def run(watch, rewards, shadows, first=0):
    return [
        w
        for i, (r, s) in enumerate(zip(rewards, shadows, strict=True), first)
        for w in watch.update(i, r, {"od_length": s})
    ]


def test_a_rise_against_a_falling_shadow_is_warned_of_once_a_window():
    steps = range(25)
    warnings = run(ShadowWatch(window=10), [0.02 * i for i in steps], [1 - 0.02 * i for i in steps])
    assert len(warnings) == 2
    # Means of the halves of ten steps are five steps apart: 5 x 0.02.
    assert warnings[0].startswith("step 9: over the last 10 steps the trained reward rose by 0.100 while the shadow")
    assert "od_length fell by 0.100" in warnings[0]
    assert warnings[1].startswith("step 19:")


@pytest.mark.parametrize(("rise", "fall"), [(0.02, -0.02), (0.02, 0.0), (0.0, 0.02), (-0.02, 0.02), (0.001, 0.001)])
def test_other_changes_are_not(rise, fall):
    steps = range(40)
    assert run(ShadowWatch(window=10), [rise * i for i in steps], [1 - fall * i for i in steps]) == []


def test_steps_without_a_value_are_passed_over():
    watch = ShadowWatch(window=4)
    assert watch.update(0, None, {"a": 1.0}) == []
    assert watch.update(1, math.nan, {"a": 1.0}) == []
    assert watch.update(2, 1.0, {"a": None}) == []
    assert watch.state()["history"].get("a") in (None, [])


def test_a_resumed_watch_says_what_it_would_have_said():
    rewards, shadows = [0.05 * i for i in range(30)], [1 - 0.03 * i for i in range(30)]
    whole = run(ShadowWatch(window=8), rewards, shadows)
    first, second = ShadowWatch(window=8), ShadowWatch(window=8)
    warnings = run(first, rewards[:13], shadows[:13])
    second.restore(json.loads(json.dumps(first.state())))
    assert warnings + run(second, rewards[13:], shadows[13:], first=13) == whole
    assert len(whole) > 1


def test_the_trend_is_the_slope_over_the_window():
    trend = Trend(window=3)
    # Least squares by hand: 1; 1, 4; 1, 4, 4 -> (4 - 1) / 2; then the window moves: 4, 4, 10 -> (10 - 4) / 2.
    assert [trend.update(value) for value in (1, 4, 4, 10)] == pytest.approx([0, 3, 1.5, 3])
    resumed = Trend(window=3)
    resumed.restore(json.loads(json.dumps(trend.state())))
    assert resumed.update(7) == pytest.approx(1.5)
