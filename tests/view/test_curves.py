"""From metrics to drawn curves: thinning, places in the drawing, charts of one run and of several."""

import json
import math

import pytest

from vlm_r1.report.curves import Line, per_row
from vlm_r1.report.plots import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, plots
from vlm_r1.runtime.alive import sign
from vlm_r1.view.folder import RunFolder
from vlm_r1.view.thin import Thinned
from vlm_r1.view.training import sections, status, tiles, warnings


@pytest.mark.parametrize("n", [1, 7, 8, 9, 16, 17, 100, 1000])
def test_thinned_rows_are_means_over_equal_stretches(n):
    thinned = Thinned(most_rows=8)
    for step in range(1, n + 1):
        thinned.add({"step": step, "a": float(step), "warnings": ["x"]} | ({"b": 1.0} if step == 2 else {}))
    rows = thinned.rows()
    means = [row for row in rows if "a" in row]
    length = next(k for k in (1, 2, 4, 8, 16, 32, 64, 128, 256) if -(-n // k) <= 8)
    stretches = [range(first, min(n, first + length - 1) + 1) for first in range(1, n + 1, length)]
    assert [row["a"] for row in means] == [sum(s) / len(s) for s in stretches]
    assert max(row["step"] for row in rows) == n
    if n > 1:
        assert sum(row.get("b", 0.0) for row in rows) == 1.0


def test_a_share_that_is_logged_only_above_zero_is_zero_elsewhere():
    thinned = Thinned(most_rows=2)
    for step in range(1, 5):
        thinned.add({"step": step, "kl": 1.0} | ({"parse/no_answer": 0.5} if step == 2 else {}))
    rows = [row for row in thinned.rows() if "kl" in row]
    assert [row["parse/no_answer"] for row in rows] == [0.25, 0.0] and rows[0]["kl"] == 1.0


def read_back(path, axes):
    """The points of a drawn curve in steps and values, worked out from the drawing alone."""
    low_x, high_x, low, high = axes
    points = [tuple(map(float, point.split(","))) for point in path.points.split()]
    return [
        (
            low_x + (x - LEFT) / (WIDTH - LEFT - RIGHT) * (high_x - low_x),
            low + (HEIGHT - BOTTOM - y) / (HEIGHT - TOP - BOTTOM) * (high - low),
        )
        for x, y in points
    ]


def test_a_curve_is_drawn_where_its_values_are():
    values = [(1, 0.5), (2, float("nan")), (3, -0.25), (7, 0.75)]
    [plot] = plots("Reward", "", [Line(label="", runs=[values])], ["run"])
    [path] = plot.paths
    for (step, value), wanted in zip(read_back(path, plot.axes), [values[0], *values[2:]], strict=True):
        assert step == pytest.approx(wanted[0], abs=0.01) and value == pytest.approx(wanted[1], abs=0.01)
    assert plot.axes[:2] == (1, 7) and len(path.dots) == 3 and not plot.legend


def test_a_curve_that_hardly_changes_is_said_and_not_drawn():
    def level(title, *values):
        [plot] = plots(title, "", [Line(label="", runs=[list(enumerate(values))])], ["run"])
        return plot.constant

    assert level("Learning rate", 1e-4, 1e-4, 1e-4) == "0.0001"
    assert level("Answer length", 100.0, 100.5, 99.75) == "99.75 to 100.5"
    assert level("Answer length", 100.0, 102.0) == level("Answer length", 100.0) == ""
    assert level("Cut answers", 0.0, 0.0) == "0" and level("Cut answers", 0.0, 1e-9) == ""
    assert level("Reward", 0.5, 0.501) == "", "its axis does not begin at zero"
    lines = [Line(label=name, runs=[[(1, low), (2, high)]]) for name, low, high in (("a", 1, 1), ("b", 1, 2))]
    assert [plot.constant for plot in plots("Odd boxes", "", lines, ["run"])] == [""]
    assert [plot.constant for plot in plots("Odd boxes", "", lines[:1], ["run"])] == ["1"]
    both = [Line(label=name, runs=[[(1, value), (2, value)]]) for name, value in (("a", 1), ("b", 2))]
    assert [plot.constant for plot in plots("Odd boxes", "", both, ["run"])] == ["a 1, b 2"]


@pytest.mark.parametrize("most", [2, 3, 4])
@pytest.mark.parametrize("n", range(1, 30))
def test_rows_of_cards_are_as_even_as_they_can_be(n, most):
    sizes, rows = per_row(n, most), []
    while sizes:
        rows.append(sizes[0])
        assert sizes[: rows[-1]] == [rows[-1]] * rows[-1]
        sizes = sizes[rows[-1] :]
    assert sum(rows) == n and len(rows) == math.ceil(n / most) and max(rows) - min(rows) <= 1


def test_a_long_curve_is_drawn_faint_with_its_average():
    line = Line(label="", runs=[[(step, float(step % 2)) for step in range(50)]])
    [plot] = plots("Loss", "", [line], ["run"])
    faint, bold = plot.paths
    assert (faint.faint, bold.faint) == (True, False)
    assert {round(value) for _, value in read_back(faint, plot.axes)} == {0, 1}
    assert all(0.2 < value < 0.8 for _, value in read_back(bold, plot.axes))


def test_several_runs_share_a_chart_for_each_line():
    lines = [Line(label=name, runs=[[(1, 0.1)], [(1, 0.2), (2, 0.4)]]) for name in ("iou", "format")]
    drawn = plots("Reward parts", "", lines, ["a", "b"])
    assert [plot.title for plot in drawn] == ["Reward parts: iou", "Reward parts: format"]
    assert [plot.legend for plot in drawn] == [(("a", 0), ("b", 1))] * 2
    [plot] = plots("Reward", "", [Line(label="", runs=[[], [(1, 0.2)]])], ["a", "b"])
    assert [(path.label, path.colour) for path in plot.paths] == [("b", 1)], "a run keeps its colour"
    assert plots("Reward", "", [Line(label="", runs=[[], []])], ["a", "b"]) == []


def test_the_charts_of_a_run_are_those_it_has_numbers_for(run_dir):
    found = dict(sections([RunFolder(run_dir)]))
    assert [plot.title for plot in found["Reward"]] == [
        "Reward",
        "Reward parts",
        "Spread of rewards",
        "Groups without a signal",
    ]
    assert [plot.title for plot in found["Held-out questions"]] == ["Held-out Acc@0.5", "Held-out mean IoU"]
    [iou] = found["Held-out questions"][1].paths
    points = read_back(iou, found["Held-out questions"][1].axes)
    assert points == [pytest.approx(p, abs=0.02) for p in [(0, 0.375), (2, 0.5), (6, 0.75)]]
    assert "Diagnostics" not in found
    assert sections([RunFolder(run_dir)] * 0) == []


def test_a_runs_state_is_told_from_its_files(make_run, tmp_path):
    run = RunFolder(make_run(tmp_path / "run", finished=False))
    written = (run.path / "metrics.jsonl").stat().st_mtime
    told = status(run, now=written + 3)
    assert (told.state, told.facts) == (
        "running",
        ("GRPO of tiny", "step 6 of 10", "2 s a step", "about 8 s left"),
    )
    told = status(run, now=written + 3600)
    assert (told.state, told.facts[-1]) == ("stopped", "no new line for 60 min")
    with sign(run.path):
        told = status(run, now=written + 3600)
        assert (told.state, told.facts[-1]) == ("running", "about 8 s left")
        (run.path / "final").mkdir()
        assert status(run).state == "running", "with more steps, or in its last evaluation"
    assert status(run).state == "finished"
    (run.path / "final").rmdir()
    told = status(run, now=written + 3)
    assert (told.state, told.facts[-1]) == ("stopped", "its process has ended")
    (run.path / "final").mkdir()
    (run.path / "config.yaml").write_text("run: [odd")
    assert status(run).facts == ("step 6",)


def test_the_few_numbers_and_the_warnings(run_dir, tmp_path):
    run = RunFolder(run_dir)
    assert tiles(run)[:2] == [
        ("Reward", "0.125 → 0.750", "first and last step"),
        ("In-domain Acc@0.5", "0.500 → 1.000", "steps 0 and 6"),
    ]
    assert warnings(run) == [(5, "the answers grow longer")]
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "warnings": ["one"]}) + "\n")
    assert tiles(RunFolder(tmp_path)) == [] and warnings(RunFolder(tmp_path)) == [(1, "one")]
