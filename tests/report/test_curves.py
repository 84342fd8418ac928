import io

import numpy as np
from PIL import Image

from vlm_r1.report.curves import (
    MAX_POINTS,
    Line,
    band,
    binned,
    curve,
    held_out,
    in_words,
    moving_average,
    to_png,
)
from vlm_r1.report.html import render
from vlm_r1.report.plots import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, charts
from vlm_r1.runtime.runlog import RunLog


def test_band_is_lowest_mean_and_highest_by_step():
    steps, low, mean, high = band([[(1, 0.0), (2, 1.0)], [(1, 4.0), (2, 3.0)], [(1, 2.0)]])
    assert steps.tolist() == [1, 2]
    assert (low.tolist(), mean.tolist(), high.tolist()) == ([0.0, 1.0], [2.0, 2.0], [4.0, 3.0])


def test_moving_average_shrinks_at_the_ends():
    assert moving_average(np.array([0.0, 3.0, 6.0, 0.0]), 3).tolist() == [1.5, 3.0, 3.0, 3.0]


def test_long_curves_are_averaged_in_bins():
    x, y = binned(np.arange(10 * MAX_POINTS), np.arange(10 * MAX_POINTS) * 2.0)
    assert len(x) == MAX_POINTS and (x[0], y[0], y[-1]) == (4.5, 9.0, 2 * (10 * MAX_POINTS - 5.5))


def test_missing_values_are_skipped():
    assert curve([{"step": 1, "kl": None}, {"step": 2, "kl": 0.5}, {"step": 3}], "kl") == [(2, 0.5)]


def test_held_out_curve_starts_before_and_ends_after_training():
    metrics = [{"step": 1}, {"step": 2, "eval/a/acc@0.5": 0.4}, {"step": 4}]
    evaluation = {"before": {"a": {"acc@0.5": 0.25}}, "after": {"a": {"acc@0.5": 0.5}}}
    assert held_out(metrics, evaluation, "a", "acc@0.5") == [(0, 0.25), (2, 0.4), (4, 0.5)]


def test_held_out_curve_has_the_evaluations_during_training():
    values = {"step-2": 0.4, "after": 0.5, "before": 0.25, "mine": 0.9}
    evaluation = {phase: {"a": {"mean_iou": value}} for phase, value in values.items()}
    assert held_out([{"step": 4}], evaluation, "a", "mean_iou") == [(0, 0.25), (2, 0.4), (4, 0.5)]


def test_only_what_was_logged_is_drawn():
    metrics = [{"step": step, "reward": step / 2, "kl": 0.0, "rewards/iou/mean": 0.5} for step in range(3)]
    assert [chart.title for chart in charts([metrics], [{}])] == ["Reward", "Reward parts"]
    metrics[0]["kl"] = 0.1
    assert "KL to the reference model" in [chart.title for chart in charts([metrics], [{}])]
    assert charts([[]], [{}]) == []


def test_what_never_changes_is_said_and_not_drawn():
    metrics = [{"step": step, "lr": 1e-4, "reward": step / 2, "entropy": 2 + step / 200} for step in range(3)]
    drawn = {chart.title: chart.constant for chart in charts([metrics], [{}])}
    assert drawn == {"Reward": "", "Entropy": "2 to 2.01", "Learning rate": "0.0001"}


def test_charts_take_the_colours_of_the_page_and_escape_names(tmp_path):
    for step in range(50):
        RunLog(tmp_path).metrics(step, {'rewards/"x_<b>/mean': 0.5, "rewards/y/mean": step / 50})
    page = render([tmp_path])
    svg = page[page.index('<svg class="vr-chart"') : page.index("</svg>", page.index('<svg class="vr-chart"'))]
    assert "&#34;x_&lt;b&gt;: 0.5 at step 0, 0.5 at step 49; y: 0 at step 0, 0.98 at step 49" in svg
    assert "<b>" not in svg and "var(--s0)" in svg and "var(--s1)" in svg and "http" not in svg
    assert svg.count('class="vr-faint"') == svg.count('class="vr-line"') == 2


def test_several_runs_are_a_mean_with_a_band_from_the_lowest_to_the_highest():
    runs = [[{"step": step, "reward": step * slope} for step in (1, 2, 3)] for slope in (1.0, 3.0)]
    [chart] = charts(runs, [{}, {}])
    area, line = chart.paths
    assert area.area and not line.area and line.dots and not area.dots

    def values(path):
        low_x, high_x, low, high = chart.axes
        points = [tuple(map(float, point.split(","))) for point in path.points.split()]
        return [
            (
                low_x + (x - LEFT) / (WIDTH - LEFT - RIGHT) * (high_x - low_x),
                low + (HEIGHT - BOTTOM - y) / (HEIGHT - TOP - BOTTOM) * (high - low),
            )
            for x, y in points
        ]

    wanted = [(1, 1), (2, 2), (3, 3), (3, 9), (2, 6), (1, 3)]
    assert [tuple(p) for p in np.round(values(area), 1)] == wanted
    assert [tuple(p) for p in np.round(values(line), 1)] == [(1, 2), (2, 4), (3, 6)]


def test_words_of_several_runs_are_means_of_those_that_have_the_step():
    line = Line(label="reward", runs=[[(1, 0.0), (4, 1.0)], [(1, 1.0), (2, 0.25)]])
    assert in_words(line, "Reward") == "Reward: 0.5 at step 1, 1 at step 4"
    assert in_words(Line(label="x", runs=[[(3, 0.25)]]), "X") == "X: 0.25 at step 3"


def test_more_lines_than_colours_are_told_of():
    metrics = [{"step": step} | {f"rewards/{i}/mean": i * step for i in range(10)} for step in (1, 2)]
    (chart,) = charts([metrics], [{}])
    assert len(chart.legend) == 8 and chart.note.endswith("the first 8 of 10")


def test_a_chart_for_a_plain_page_is_a_png_with_its_lines():
    lines = [
        Line(label=f"arm {i}", runs=[[(0, 0.1), (10, 0.2 + i / 10)], [(0, 0.1), (10, 0.3 + i / 10)]]) for i in (0, 1)
    ]
    with Image.open(io.BytesIO(to_png("mean IoU", lines, "step"))) as image:
        shown = {color for _, color in image.convert("RGB").getcolors(1 << 20)}
    assert {(0x4A, 0x6F, 0xA5), (0xE0, 0x7A, 0x3F)} <= shown
    assert to_png("mean IoU", lines, "step") == to_png("mean IoU", lines, "step")
