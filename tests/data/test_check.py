"""Every kind of fault is planted once; one pass must report each at its line, with a remedy."""

import io
import json
import re

import pytest
from PIL import Image

from vlm_r1.data.check import check_file, inspect_file
from vlm_r1.data.faults import FAULT_KINDS
from vlm_r1.errors import DataError
from vlm_r1.image_file import MAX_PIXELS

GOOD = {"image": "a.png", "problem": "the cat", "solution": [1, 2, 30, 40]}


def llava(*turns):
    return {"image": "a.png", "conversations": [{"from": who, "value": text} for who, text in turns]}


PLANTED = [
    ("json", '{"problem": "x", "solution": 4,, }'),
    ("encoding", b'{"problem": "caf\xe9", "solution": 4}'),
    ("encoding", '{"image": "a.png", "problem": "half of \\ud83d", "solution": 4}'),
    ("not_object", "[1, 2]"),
    ("question", {"image": "a.png", "solution": 4}),
    ("question", {"image": "a.png", "problem": 7, "solution": 4}),
    ("turns", llava(("human", "a"), ("gpt", "b"), ("human", "c"))),
    ("turns", llava(("robot", "a"), ("gpt", "b"))),
    ("solution_missing", {"image": "a.png", "problem": "x"}),
    ("solution_type", {**GOOD, "task": "count", "solution": "many"}),
    ("box_shape", {**GOOD, "solution": [{"bbox": [1, 2, 3], "label": "cat"}]}),
    ("box_number", {**GOOD, "solution": [1, 2, 3, "4"]}),
    ("box_reversed", {**GOOD, "solution": [30, 2, 1, 40]}),
    ("box_empty", {**GOOD, "solution": [1, 2, 1, 40]}),
    ("box_outside", {**GOOD, "solution": [1, 2, 300, 40]}),
    ("label", {**GOOD, "solution": [{"bbox": [1, 2, 3, 4], "label": ["cat"]}]}),
    ("image_type", {**GOOD, "image": 12}),
    ("image_missing", {**GOOD, "image": "nope.png"}),
    ("image_outside_root", {**GOOD, "image": "../../etc/passwd"}),
    ("image_url", {**GOOD, "image": "https://example.org/a.png"}),
    ("image_data", {**GOOD, "image": "data:image/png;base64,@@@@"}),
    ("image_unreadable", {**GOOD, "image": "text.png"}),
    ("image_truncated", {**GOOD, "image": "cut.png"}),
    ("image_too_large", {**GOOD, "image": "huge.png"}),
    ("video", {"video": ["a.png"], "problem": "x", "solution": 4}),
    ("image_tags", {**GOOD, "problem": "<image><image>same?"}),
    ("task", {**GOOD, "task": "recc"}),
    ("reward", {**GOOD, "reward": ["iou"]}),
    ("field", {**GOOD, "think": 7}),
    ("duplicate_id", {**GOOD, "id": "first"}),
]


@pytest.fixture
def planted(folder):
    (folder / "text.png").write_text("no image", encoding="utf-8")
    buffer = io.BytesIO()
    Image.effect_noise((64, 48), 50).convert("RGB").save(buffer, "PNG")
    (folder / "cut.png").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    side = int(MAX_PIXELS**0.5) + 10
    Image.new("1", (side, side)).save(folder / "huge.png")
    lines = [json.dumps({**GOOD, "id": "first"}).encode()]
    for _, row in PLANTED:
        line = row if isinstance(row, bytes) else (row if isinstance(row, str) else json.dumps(row)).encode()
        lines += [line, json.dumps(GOOD).encode()]
    path = folder / "planted.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_every_planted_fault_is_reported_at_its_line_in_one_pass(planted):
    report = inspect_file(planted)
    assert [(line, fault.kind) for line, fault in report.faults] == [
        (2 + 2 * index, kind) for index, (kind, _) in enumerate(PLANTED)
    ]
    assert len(PLANTED) >= 20
    assert report.bad_rows == len(PLANTED)
    assert report.rows == 2 * len(PLANTED) + 1
    for message, (line, fault) in zip(report.messages(), report.faults, strict=True):
        assert message.startswith(f"{planted}:{line}: ")
        assert len(fault.remedy) > 10


def test_every_kind_that_a_row_can_have_is_planted():
    assert {kind for kind, _ in PLANTED} == set(FAULT_KINDS) - {"empty_file"}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_the_command_prints_all_and_then_raises_one_line(planted, capsys):
    with pytest.raises(DataError, match=rf"{len(PLANTED)} faults in {len(PLANTED)} of {2 * len(PLANTED) + 1} rows"):
        check_file(planted)
    printed = capsys.readouterr().out
    assert printed.count(f"{planted}:") == len(PLANTED) + 1  # the duplicate id names two lines
    assert re.search(rf"^rows +{2 * len(PLANTED) + 1} ", printed, re.MULTILINE)


def test_several_faults_of_one_row_are_all_reported(write):
    row = {**GOOD, "image": "nope.png", "solution": [[9, 0, 1, 5], [0, 0, 0, 5]], "reward": 3, "problem": ""}
    kinds = [fault.kind for _, fault in inspect_file(write(row)).faults]
    assert sorted(kinds) == ["box_empty", "box_reversed", "image_missing", "question", "reward"]


def test_the_table(write, capsys):
    rows = [
        GOOD,
        {"images": ["a.png", "b.jpg"], "problem": "same?", "solution": "no"},
        {"problem": "How many?", "solution": 3},
        {"image": "b.jpg", "problem": "detect cats", "solution": [[0, 0, 5, 5], [5, 5, 9, 9]], "reward": "od_map"},
    ]
    report = check_file(write(*rows))
    assert report.tasks == {"rec": 1, "yes_no": 1, "number": 1, "ovd": 1}
    assert sorted(report.sizes) == [(64, 48), (100, 80)]
    table = dict(re.split(r"  +", line, maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert table == {
        "rows": "4 (4 good, 0 with faults)",
        "tasks": "number: 1, ovd: 1, rec: 1, yes_no: 1",
        "rewards": "od_map: 1",
        "images a row": "0: 1, 1: 2, 2: 1",
        "different images": "2",
        "width": "64 to 100, median 82 px",
        "height": "48 to 80, median 64 px",
        "boxes a row": "1 to 2, median 1.5",
        "question length": "5 to 11, median 8 characters",
        "faults": "none",
    }


def test_files_without_rows(folder, write):
    for text in ("", "\n\n"):
        (folder / "empty.jsonl").write_text(text, encoding="utf-8")
        with pytest.raises(DataError, match="is empty"):
            check_file(folder / "empty.jsonl")
    with pytest.raises(DataError, match="image_root"):
        check_file(write(GOOD), image_root=folder / "nope")


def test_other_file_kinds_name_rows(folder):
    (folder / "data.json").write_text(json.dumps([GOOD, {**GOOD, "solution": [5, 5, 1, 9]}]), encoding="utf-8")
    report = inspect_file(folder / "data.json")
    assert report.messages()[0].startswith(f"{folder / 'data.json'} row 2: box [5, 5, 1, 9] is reversed")
