"""Files of rows: half characters, broken JSON and Parquet, nesting, numbers and encodings that nobody expects."""

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from hostile import Case, damaged
from vlm_r1.config import DataSource
from vlm_r1.data.check import inspect_file
from vlm_r1.data.show import show_file
from vlm_r1.data.source import load_source
from vlm_r1.errors import DataError
from vlm_r1.records import Answer
from vlm_r1.rewards.score_file import score_file
from vlm_r1.runtime.rows import answer_row

GOOD = {"image": "a.png", "problem": "the cat", "solution": [1, 2, 5, 6]}
HALF = r"\ud83d"
"""A lone surrogate as JSON writes it."""
HALVES = {
    "the question": f'{{"problem": "cat {HALF}", "solution": 3, "completion": "3"}}',
    "the id": f'{{"id": "{HALF}", "problem": "q", "solution": 3, "completion": "3"}}',
    "the thought": f'{{"think": "{HALF}", "problem": "q", "solution": 3, "completion": "3"}}',
    "a label": f'{{"problem": "q", "solution": [{{"bbox": [1, 2, 3, 4], "label": "{HALF}"}}], "completion": "3"}}',
    "a further column": f'{{"problem": "q", "solution": 3, "completion": "3", "notes": {{"a": ["{HALF}"]}}}}',
    "a key": f'{{"problem": "q", "solution": 3, "completion": "3", "{HALF}": 1}}',
    "the completion": f'{{"problem": "q", "solution": 3, "completion": "{HALF}"}}',
    "the image": f'{{"image": "{HALF}.png", "problem": "q", "solution": 3, "completion": "3"}}',
    "capitals": r'{"problem": "\uDFFF", "solution": 3, "completion": "3"}',
    "the wrong order": r'{"problem": "\udd2a\ud83e", "solution": 3, "completion": "3"}',
}
NESTED = json.dumps({"problem": "q", "solution": f'[{{"bbox": [1, 2, 3, 4], "label": "{HALF}"}}]', "completion": ""})
HUGE = json.dumps({**GOOD, "image": None, "solution": 3, "completion": "3"})

CASES = [
    *(Case(f"half a character in {name}", row.encode(), r":1: half a character") for name, row in HALVES.items()),
    Case("half a character in JSON in JSON", NESTED.encode(), None),
    Case("a whole character in two escapes", HUGE.replace("the cat", r"\ud83e\udd2a").encode(), None),
    Case(
        "a tag that asks for an image", b'{"problem": "<image>", "solution": 3, "completion": []}', r"image|completion"
    ),
    Case("bytes that are not UTF-8", b'{"problem": "\xff", "solution": 3, "completion": "3"}', "not UTF-8"),
    Case("half a character in bytes", b'{"problem": "\xed\xa0\xbd", "solution": 3, "completion": "3"}', "not UTF-8"),
    Case("UTF-16", HUGE.encode("utf-16"), "not UTF-8"),
    Case("deep nesting", b"[" * 100_000, "not JSON"),
    Case("a deep value", HUGE.replace("3", "[" * 3_000 + "]" * 3_000, 1).encode(), "not JSON"),
    Case("a number of 5000 digits", HUGE.replace("3", "9" * 5_000, 1).encode(), "not JSON"),
    Case("a number beyond floats", HUGE.replace("3", "1e999", 1).encode(), "is not a (finite )?number"),
    Case("a zero byte", b"\0", "not JSON"),
    Case("a list", b"[1]", "object"),
    Case("nothing", b"\n\n", "empty|no rows"),
]


def _write(content: bytes, folder: Path, name: str = "rows.jsonl") -> Path:
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    (folder / name).write_bytes(content)
    return folder / name


def _load(content: bytes, folder: Path) -> None:
    """What a run does with a row: read, put into a table of answers."""
    samples = list(load_source(DataSource(path=str(_write(content, folder)))))
    sink = io.BytesIO()
    table = pa.Table.from_pylist([answer_row(sample, Answer(raw="")) for sample in samples])
    pq.write_table(table, sink)
    for sample in samples:
        repr(sample.truth).encode("utf-8")
        json.dumps([sample.question, sample.think, sample.truth.text], ensure_ascii=False).encode("utf-8")


def _check(content: bytes, folder: Path) -> None:
    report = inspect_file(_write(content, folder))
    if report.faults:
        raise DataError("; ".join(report.messages()))


DOORS = {
    "training": _load,
    "data check": _check,
    "data show": lambda content, folder: show_file(_write(content, folder), folder / "page.html"),
    "score": lambda content, folder: score_file(_write(content, folder), ["exact_text"], folder / "out.jsonl"),
}
OTHERWISE = {"data show": "no row can be drawn|empty"}

SEEDS = [
    GOOD | {"completion": "<answer>[1, 2, 3, 4]</answer>", "image_size": [8, 8]},
    {"image": ["a.png"], "problem": "<image>q\U0001f92a", "solution": '[{"bbox": [1, 2, 5, 6], "label": "cat"}]'},
    {"conversations": [{"from": "human", "value": "<image>q"}, {"from": "gpt", "value": "yes"}], "image": "a.png"},
    {"messages": [{"role": "user", "content": "q"}], "objects": {"bbox": [[1, 2, 3, 4]], "ref": ["cat"]}},
    {"prompt": [{"role": "user", "content": [{"type": "text", "text": "q"}]}], "reward_model": {"ground_truth": "3"}},
    {"problem": "A. x B. y", "solution": "B", "think": HALF, "task": "choice", "completion": "B", "tokens": 3},
]
CONTENTS = damaged([json.dumps(row).encode() + b"\n" for row in SEEDS])
EXAMPLES = 25
