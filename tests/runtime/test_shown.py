"""Whatever a file of a run folder holds, what is shown of it has the types that pages and lists rely on."""

import json
import math
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_r1.errors import CheckpointError
from vlm_r1.runtime.runlog import EVAL_COLUMNS, ROLLOUT_COLUMNS, RunLog
from vlm_r1.runtime.shown import (
    LARGEST,
    metrics_row,
    refuse,
    shown_evaluation,
    shown_json,
    shown_metrics,
    shown_rows,
)

NAMES = st.one_of(st.sampled_from(["step", "reward", "warnings", "before", "after", "val", "n"]), st.text(max_size=5))
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(10**300, 10**301), st.floats(), st.text(string.printable)
)
JSON = st.recursive(LEAVES, lambda of: st.lists(of, max_size=4) | st.dictionaries(NAMES, of, max_size=4), max_leaves=12)
LINES = st.one_of(
    st.binary(max_size=60),
    JSON.map(lambda value: json.dumps(value).encode()),
    st.tuples(st.integers(0, 9), st.dictionaries(NAMES, JSON, max_size=4)).map(
        lambda pair: json.dumps({**pair[1], "step": pair[0]}).encode()
    ),
)


def is_number(value):
    return value is None or (math.isfinite(value) and abs(value) <= LARGEST)


def is_metric(value):
    return all(isinstance(text, str) for text in value) if isinstance(value, list) else is_number(value)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("run") / "eval.json"


@settings(max_examples=150, deadline=None)
@given(LINES)
def test_a_line_of_metrics_has_a_step_numbers_and_sentences_or_is_none(line):
    row, odd = metrics_row(line)
    if row is None:
        assert len(odd) == 1
    else:
        assert isinstance(row["step"], int) and all(map(is_metric, row.values()))
        assert len(row) + len(odd) == len(json.loads(line))


@settings(max_examples=150, deadline=None)
@given(JSON)
def test_an_evaluation_holds_numbers_alone(file, content):
    file.write_text(json.dumps(content))
    told = []
    for splits in shown_evaluation(file, told.append).values():
        for metrics in splits.values():
            assert all(map(is_number, metrics.values()))
    assert len(told) <= 1 and all(text.startswith(f"{file}: ") for text in told)
    assert isinstance(shown_json(file, told.append), dict)


@settings(max_examples=60, deadline=None)
@given(st.lists(LINES, max_size=6).map(b"\n".join))
def test_any_metrics_file_is_read(file, data):
    (file.parent / "metrics.jsonl").write_bytes(data)
    told = []
    assert all(is_metric(value) for row in shown_metrics(file.parent, told.append) for value in row.values())
    assert len(told) <= 1


def test_many_faults_are_told_in_one_sentence(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": "high"}\n' * 5 + '{"step": 2, "lo')
    told = []
    assert shown_metrics(tmp_path, told.append) == [{"step": 1}] * 5
    [text] = told
    assert text.endswith('line 3: "loss" is "high"; and 2 more. That is left out')
    with pytest.raises(CheckpointError, match="and 2 more"):
        shown_metrics(tmp_path, refuse)
    assert shown_metrics(tmp_path / "nothing", refuse) == []


def test_a_table_has_all_its_columns(tmp_path):
    RunLog(tmp_path).rollouts(1, [{"sample_id": "a", "reward": 0.5}, {"sample_id": "b", "reward": float("nan")}])
    path = tmp_path / "rollouts" / "step-000001.parquet"
    rows = shown_rows(path, ROLLOUT_COLUMNS, refuse)
    assert [(set(row), row["reward"], row["step"]) for row in rows] == [
        (set(ROLLOUT_COLUMNS.names), 0.5, 1),
        (set(ROLLOUT_COLUMNS.names), None, 1),
    ]
    assert shown_rows(path, ROLLOUT_COLUMNS, refuse, columns=("reward",), sample_id="a") == [{"reward": 0.5}]
    assert set(shown_rows(path, EVAL_COLUMNS, refuse)[0]) == set(EVAL_COLUMNS.names)
    with pytest.raises(CheckpointError, match="not a whole Parquet file"):
        shown_rows(tmp_path / "nothing", EVAL_COLUMNS, refuse)
