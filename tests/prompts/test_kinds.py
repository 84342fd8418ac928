"""A new kind of answer is one file: what it writes here, a plugin module may write."""

import re

import numpy as np
import pytest

from vlm_r1.boxes import BoxMap
from vlm_r1.errors import DataError
from vlm_r1.eval.outcomes import outcome
from vlm_r1.eval.suites import build_statistic
from vlm_r1.prompts.kinds import KINDS, AnswerKind
from vlm_r1.prompts.parse import read_answer
from vlm_r1.prompts.solution import read_solution
from vlm_r1.prompts.templates import TASKS, Task
from vlm_r1.records import Sample, Truth
from vlm_r1.rewards.accuracy import ACCURACY
from vlm_r1.rewards.common import failed, scored
from vlm_r1.sft.targets import target_text


def read_clock(text, box_map, question):
    found = re.fullmatch(r"\s*(\d\d?):(\d\d)\s*", text)
    return (float(int(found[1]) % 12 * 60 + int(found[2])), None, 0) if found else (None, "unreadable", 0)


def clock_truth(text, value, task):
    minutes = read_clock(text or "", None, "")[0]
    return None if minutes is None else Truth(number=minutes)


def clock_target(truth, box_map):
    return f"{int(truth.number) // 60}:{int(truth.number) % 60:02}"


def clock(sample, answer):
    if answer.failure:
        return failed("clock", answer)
    apart = abs(answer.value - sample.truth.number) % 720
    return scored("clock", 1 - min(apart, 720 - apart) / 360)


@pytest.fixture
def known(monkeypatch):
    kind = AnswerKind(
        name="clock",
        read=read_clock,
        truth=clock_truth,
        wanted="a time such as 7:30",
        target=clock_target,
        accuracy="clock",
        correct_from=0.99,
    )
    monkeypatch.setitem(KINDS, "clock", kind)
    monkeypatch.setitem(TASKS, "clock", Task(name="clock", title="Read a clock", kind=kind, hint="A time."))
    monkeypatch.setitem(ACCURACY, "clock", clock)


def test_a_new_kind_is_read_taught_scored_and_measured(known):
    truth = read_solution("11:58", "clock")
    sample = Sample(id="0", question="what time is it?", truth=truth, task="clock")
    assert target_text(sample, BoxMap()) == "<think></think><answer>11:58</answer>"
    texts = ["12:00", "5:58", "noon"]
    found = [outcome(sample, read_answer(f"<think></think><answer>{t}</answer>", sample, BoxMap())) for t in texts]
    assert [o.score for o in found] == [pytest.approx(1 - 2 / 360), 0.0, 0.0]
    assert [o.correct for o in found] == [True, False, False] and found[2].failure == "unreadable"
    assert build_statistic(found)(np.ones(3, dtype=int))["accuracy"] == pytest.approx(1 / 3)
    with pytest.raises(DataError, match="a time such as 7:30"):
        read_solution("noon", "clock")


def test_names_are_those_of_the_table():
    assert all(name == kind.name for name, kind in KINDS.items())
    assert {task.kind.name for task in TASKS.values()} == set(KINDS)
