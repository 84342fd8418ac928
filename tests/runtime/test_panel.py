"""What the panel shows, at several widths."""

import io
import math

import pytest
from rich.cells import cell_len
from rich.console import Console

from vlm_r1.runtime.panel import ASCII, RunPanel, sparkline

NAMES = ("reward", "completions/mean_length", "time/rollout_s", "perf/completion_tokens_per_s", "perf/mfu")
WARNING = "shadow metric iou fell from 0.31 to 0.28 while the reward rose"


@pytest.fixture
def run():
    """A run of 20 steps after 8 of them, each of 2 seconds, half a second into the ninth; reward rises from 0 to 7."""
    now = [100.0]
    panel = RunPanel(20, title="runs/demo", clock=lambda: now[0])
    for step in range(1, 9):
        now[0] += 2.0
        times = {"time/rollout_s": 1.25, "time/reward_s": 0.25, "time/update_s": 0.5, "time/step_s": 2.0}
        times |= {"time/rollout_share": 0.625, "perf/completion_tokens_per_s": 1234.5}
        metrics = {"reward": step - 1.0, "completions/mean_length": 23.5, **times}
        panel.update(step, metrics, NAMES, [WARNING] if step == 5 else [])
    now[0] += 0.5
    panel.now = now
    return panel


def drawn(panel, width, **options) -> list[str]:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None, **options)
    console.print(panel)
    return console.file.getvalue().splitlines()


def test_the_panel_says_where_the_run_is(run):
    text = "\n".join(drawn(run, 80))
    # 12 steps of 2 s are left, half a second of them is over.
    for part in ("runs/demo", " 8 of 20", "0:24 left", "reward   7 ", "▁▂▃▄▅▆▇█", "0 to 7", "step 9: 0 s"):
        assert part in text, part
    assert "rollout 1.25  reward 0.25  update 0.50  step 2.00" in text
    assert "completions/mean_length 23.5" in text
    assert "perf/completion_tokens_per_s 1234" in text and "mfu" not in text and "share" not in text
    assert f"step 5: {WARNING[:40]}" in text


@pytest.mark.parametrize("width", [200, 100, 80, 60, 50, 46, 45, 40, 30, 20])
def test_no_line_is_as_wide_as_the_terminal(run, width):
    """The terminal writes ^C behind the last line: one that wraps would move the panel."""
    lines = drawn(run, width)
    assert lines and max(cell_len(line) for line in lines) <= min(width - 2, 100)
    text = " ".join("\n".join(lines).replace("│", " ").split())
    assert "0:24 left" in text and "7" in text and "iou fell" in text


def test_a_narrow_terminal_gets_no_frame(run):
    assert drawn(run, 40)[0] == "step 8/20  reward 7  0:24 left"


def test_what_has_not_happened_is_not_shown():
    _top, line, bottom = drawn(RunPanel(20, title="x"), 80)
    assert " 0 of 20" in line and "left" not in line and "step 1: 0 s" in bottom
    assert drawn(RunPanel(20), 30) == ["step 0/20"]


def test_an_ended_run_says_how_long_it_took(run):
    run.end()
    text = "\n".join(drawn(run, 80))
    assert "0:16 in all" in text and "left" not in text and "step 9" not in text


def test_a_terminal_without_unicode_gets_ascii(run):
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    Console(file=file, width=80, force_terminal=True, color_system=None).print(run)
    file.flush()
    assert f"{ASCII}" in file.buffer.getvalue().decode("ascii")


def test_values_that_are_no_numbers_leave_a_gap():
    panel = RunPanel(3)
    for step, reward in enumerate((math.nan, math.nan), start=1):
        panel.update(step, {"reward": reward}, ("reward",))
    assert "nan" in "\n".join(drawn(panel, 80))
    assert sparkline([math.nan, 0.0, math.inf, 1.0], 4) == " ▁ █"


def test_a_sparkline_averages_neighbours_where_it_has_no_room():
    assert sparkline([0, 0, 3.5, 3.5, 7, 7], 3) == "▁▅█"
    assert sparkline([0, 2, 5, 9], 2, "ab") == "ab"
    assert sparkline([], 5) == "" and sparkline([4.0, 4.0], 5) == "▁▁"
    assert len(sparkline(range(1000), 37)) == 37
