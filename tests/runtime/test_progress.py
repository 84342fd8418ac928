"""What a run says while it runs."""

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest

from vlm_r1.runtime.progress import Countdown, Progress


def lines(capsys, steps, start=0, **options) -> list[str]:
    with Progress(steps, start, **options) as progress:
        for step in range(start, steps):
            progress.show(step + 1, {"reward": 0.12345, "loss": step}, ("reward", "missing"))
    return capsys.readouterr().err.splitlines()


def test_a_short_run_prints_every_step(capsys):
    found = lines(capsys, 3)
    assert len(found) == 3
    assert re.fullmatch(r"step 3/3  reward 0\.1235  [\d.]+ s/step  0:00 left", found[-1])


def test_a_long_run_prints_some_steps_with_the_first_and_the_last(capsys):
    found = lines(capsys, 1000)
    assert 38 <= len(found) <= 44 and found[0].startswith("step 1/1000") and found[-1].startswith("step 1000/1000")


def test_a_resumed_run_counts_from_where_it_was(capsys):
    assert [line.split("  ")[0] for line in lines(capsys, 6, start=4)] == ["step 5/6", "step 6/6"]


def test_other_processes_are_silent(capsys):
    assert lines(capsys, 3, enabled=False) == []


def test_an_evaluation_says_now_and_then_how_much_is_left(capsys):
    now = [0.0]
    countdown = Countdown("before", 200, clock=lambda: now[0])
    for done in range(1, 201):  # a second each
        now[0] = float(done)
        countdown.show(done)
    found = capsys.readouterr().err.splitlines()
    assert found[0] == "before: 10 of 200 questions, 3:10 left"
    assert found[1] == "before: 20 of 200 questions, 3:00 left"
    assert len(found) == 19 and found[-1] == "before: 190 of 200 questions, 0:10 left"


@pytest.mark.parametrize(("seconds", "lines"), [(0.01, 0), (100.0, 19)])
def test_a_short_evaluation_is_silent_and_a_long_one_writes_about_twenty_lines(capsys, seconds, lines):
    now = [0.0]
    countdown, silent = (Countdown("x", 200, enabled, clock=lambda: now[0]) for enabled in (True, False))
    for done in range(1, 201):
        now[0] += seconds
        countdown.show(done)
        silent.show(done)
    assert abs(len(capsys.readouterr().err.splitlines()) - lines) <= 1


PROGRAM = """
import logging, sys, time, warnings, typer
from vlm_r1.runtime.progress import Countdown, Progress
early = logging.getLogger("early")
early.addHandler(logging.StreamHandler())
with Progress(30, title="runs/x") as progress:
    for step in range(1, 31):
        progress.show(step, {"reward": step, "time/rollout_s": 0.5}, ("reward",), ["odd [/x]"] if step == 3 else [])
        time.sleep(0.02)
        if step == 5:
            print("printed", "word " * 30)
            typer.echo("told")
            typer.echo("[bold]told as an error[/]", err=True)
            early.warning("logged by an early handler")
            logging.getLogger("other").warning("logged by none")
            warnings.warn("warned")
            sys.stderr.write("half a ")
            sys.stderr.flush()
        if step == 6:
            sys.stderr.write("line\\n")
            progress.live or print("lines")
        if step == 20:
            raise KeyboardInterrupt if sys.argv[1] == "stop" else ZeroDivisionError("a bug")
"""


def on_terminal(*arguments: str, columns: int = 60, stdout=None) -> tuple[list[str], bool]:
    """The lines that a terminal holds after the program, and whether its cursor is shown."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")} | {"TERM": "xterm"}
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments], stdout=stdout or theirs, stderr=theirs, env=environment
    ):
        os.close(theirs)
        received = b""
        with contextlib.suppress(OSError):  # how Linux says that the other end is closed
            while piece := os.read(ours, 65536):
                received += piece
    os.close(ours)
    return screen(received.decode(), columns)


def screen(text: str, columns: int) -> tuple[list[str], bool]:
    """A terminal for what rich sends: text that wraps, line feeds, cursor up, erase line, show and hide the cursor."""
    rows, row, column, shown = [[" "] * columns], 0, 0, True
    for part in re.findall(r"\x1b\[[?\d;]*[A-Za-z]|.", text, flags=re.DOTALL):
        if part in "\r\n" or (column == columns and len(part) == 1):
            row, column = row + (part != "\r"), 0
            rows += [[" "] * columns for _ in range(row - len(rows) + 1)]
        if len(part) == 1 and part not in "\r\n":
            rows[row][column] = part
            column += 1
        elif part.endswith("A"):
            row -= int(part[2:-1])
            assert row >= 0
        elif part == "\x1b[2K":
            rows[row] = [" "] * columns
        elif part in ("\x1b[?25h", "\x1b[?25l"):
            shown = part.endswith("h")
        else:
            assert len(part) == 1 or part.endswith("m"), f"the test's terminal does not know {part!r}"
    return ["".join(line).rstrip() for line in rows], shown


@pytest.mark.parametrize(("how", "last"), [("stop", "KeyboardInterrupt"), ("bug", "ZeroDivisionError: a bug")])
def test_what_is_printed_meanwhile_stands_above_one_whole_panel(how, last):
    lines, cursor_shown = on_terminal(how)
    assert cursor_shown
    top = next(i for i, line in enumerate(lines) if "runs/x" in line)
    above = "\n".join(lines[:top])
    for part in ("told\n[bold]told as an error[/]\n", "logged by an early handler\n", "logged by none\n"):
        assert part in above
    assert above.startswith("warning: step 3: odd [/x]\nprinted word") and "UserWarning: warned" in above
    assert above.endswith("\nhalf a line") and "lines" not in above
    assert lines[top + 1].startswith("│ step     20 of 30  ━") and "in all" in lines[top + 1]
    assert [line[:1] for line in lines[top : top + 6]] == ["╭", "│", "│", "│", "│", "╰"]
    assert lines[top + 6].startswith("Traceback") and lines[-2] == last
    assert "".join(lines).count("╭") == "".join(lines).count("╰") == 1


def test_an_output_that_is_a_file_gets_what_is_printed_to_it(tmp_path):
    with open(tmp_path / "out.txt", "w") as file:
        lines, _ = on_terminal("stop", stdout=file)
    assert (tmp_path / "out.txt").read_text() == "printed " + "word " * 30 + "\ntold\n"
    assert "printed" not in "\n".join(lines) and any("told as an error" in line for line in lines)
    assert sum("runs/x" in line for line in lines) == 1


def test_a_warning_is_told_at_once_where_there_is_no_terminal(capsys):
    with Progress(1000) as progress:
        for step in (1, 2, 3):
            progress.show(step, {"reward": 1.0}, ("reward",), ["odd"] if step == 3 else [])
    said = capsys.readouterr().err.splitlines()
    assert [line.partition("  ")[0] for line in said] == ["step 1/1000", "warning: step 3: odd"]
