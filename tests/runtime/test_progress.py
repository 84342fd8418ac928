"""What a run says while it runs."""

import re

from vlm_r1.runtime.progress import Progress


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
