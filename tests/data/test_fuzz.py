"""Whatever a file holds, reading it gives samples or a `DataError`, and never another exception."""

import contextlib
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vlm_r1.config import DataSource
from vlm_r1.data.check import inspect_file
from vlm_r1.data.convert.plain_pickle import load_plain_pickle
from vlm_r1.data.images import ImageFinder
from vlm_r1.data.rows import RowContext, read_row
from vlm_r1.data.source import load_source
from vlm_r1.errors import DataError
from vlm_r1.prompts.solution import infer_task, read_solution
from vlm_r1.prompts.templates import TASKS
from vlm_r1.records import Sample

SETTINGS = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(
        ["a.png", "../x", "None", "[1, 2, 3, 4]", "<answer>B</answer>", "<image>", "user", "text", "real"]
    )
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(
            st.sampled_from(
                [
                    "bbox",
                    "bbox_2d",
                    "label",
                    "role",
                    "from",
                    "value",
                    "content",
                    "type",
                    "text",
                    "image",
                    "bytes",
                    "ref",
                ]
            )
            | st.text(max_size=5),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
rows = st.dictionaries(
    st.sampled_from(
        [
            *("image", "images", "problem", "question", "solution", "answer", "conversations", "messages", "prompt"),
            *("objects", "reward_model", "extra_info", "task", "reward", "accu_reward_method", "think", "id", "source"),
        ]
    ),
    values,
    max_size=6,
)


@SETTINGS
@given(row=rows | values)
def test_a_row_is_a_sample_or_faults(folder, row):
    sample, faults = read_row(row, RowContext(name="x", finder=ImageFinder(folder)), 1)
    assert isinstance(sample, Sample) != bool(faults)
    assert all(str(fault) for fault in faults)


@SETTINGS
@given(solution=values, task=st.sampled_from([None, *TASKS]))
def test_a_solution_is_a_truth_or_a_data_error(solution, task):
    assert infer_task(solution) in TASKS
    with contextlib.suppress(DataError):
        truth = read_solution(solution, task)
        assert any(part is not None for part in (truth.boxes, truth.text, truth.choice, truth.number))


@SETTINGS
@given(lines=st.lists(rows.map(json.dumps) | st.text(max_size=30), max_size=4))
def test_a_text_file_is_samples_or_a_data_error(folder, lines):
    for name in ("x.jsonl", "x.json"):
        path = folder / name
        path.write_text("\n".join(lines), encoding="utf-8", errors="surrogatepass")
        with contextlib.suppress(DataError):
            assert len(load_source(DataSource(path=str(path)))) > 0
        with contextlib.suppress(DataError):
            assert inspect_file(path).rows > 0


@SETTINGS
@given(data=st.binary(max_size=60))
def test_any_bytes(folder, data):
    for name in ("x.jsonl", "x.json", "x.parquet"):
        (folder / name).write_bytes(data)
        with contextlib.suppress(DataError):
            assert len(load_source(DataSource(path=str(folder / name)))) > 0
    (folder / "x.p").write_bytes(data)
    with contextlib.suppress(DataError):
        load_plain_pickle(folder / "x.p")


@pytest.mark.parametrize("deep", ["[" * 100_000, '{"a":' * 100_000, "[" * 900 + "]" * 900])
def test_deep_nesting(folder, deep):
    path = folder / "deep.jsonl"
    path.write_text(f'{deep}\n{{"problem": "x", "solution": {deep}}}\n', encoding="utf-8")
    report = inspect_file(path)
    assert report.bad_rows >= 1
    with pytest.raises(DataError):
        load_source(DataSource(path=str(path)))


@SETTINGS
@given(changes=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_damaged_parquet_file_is_samples_or_a_data_error(folder, changes):
    table = pa.table({"problem": ["q"] * 9, "solution": ["[0, 0, 5, 5]"] * 9, "image": ["a.png"] * 9})
    pq.write_table(table, folder / "x.parquet")
    data = bytearray((folder / "x.parquet").read_bytes())
    for place, value in changes:
        data[place % len(data)] = value
    (folder / "x.parquet").write_bytes(data)
    with contextlib.suppress(DataError):
        samples = load_source(DataSource(path=str(folder / "x.parquet")))
        assert all(isinstance(sample, Sample) for sample in samples)
    with contextlib.suppress(DataError):
        assert inspect_file(folder / "x.parquet").rows > 0
