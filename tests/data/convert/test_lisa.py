"""Fixtures in ReasonSeg's layout: X.json beside X.jpg, polygons by hand."""

import json

import pytest

from vlm_r1.data.convert import convert
from vlm_r1.errors import ConfigError, DataError


def shape(label, *points):
    return {"label": label, "labels": [label], "shape_type": "polygon", "image_name": "x.jpg", "points": points}


VALUE = {
    "text": ["the food with the most Vitamin C", "what would you eat against a cold?"],
    "is_sentence": True,
    "shapes": [
        shape("target", [10.5, 20], [30, 18.25], [25, 60]),
        shape("target", [50, 30], [55, 35], [52, 70.5]),
        shape("ignore", [0, 0], [99, 0], [99, 99]),
        shape("flag", [1, 1], [2, 2], [1, 2]),
    ],
}


def rows_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_one_row_a_question_with_the_box_around_all_targets(tmp_path):
    folder = tmp_path / "val"
    folder.mkdir()
    (folder / "17_o.json").write_text(json.dumps(VALUE), encoding="utf-8")
    nothing = {**VALUE, "shapes": [shape("ignore", [0, 0], [9, 9])]}
    (folder / "18_o.json").write_text(json.dumps(nothing), encoding="utf-8")
    convert("lisa", [folder], tmp_path / "out.jsonl")
    rows = rows_of(tmp_path / "out.jsonl")
    assert [row["id"] for row in rows] == ["17_o-0", "17_o-1"]
    assert rows[0] == {
        "id": "17_o-0",
        "image": "17_o.jpg",
        "problem": "Please find the region that answers this question and give its bounding box: "
        "the food with the most Vitamin C",
        "solution": [10.5, 18.25, 55, 70.5],
        "task": "reasoning",
        "source": "lisa",
        "is_sentence": True,
    }


def test_other_wordings(tmp_path):
    (tmp_path / "1.json").write_text(json.dumps(VALUE), encoding="utf-8")
    convert("lisa", [tmp_path / "1.json"], tmp_path / "out.jsonl", task="rec", image_prefix="val/")
    row = rows_of(tmp_path / "out.jsonl")[0]
    assert row["problem"].endswith("this sentence describes: the food with the most Vitamin C.")
    assert (row["task"], row["image"]) == ("rec", "val/1.jpg")
    convert("lisa", [tmp_path / "1.json"], tmp_path / "out.jsonl", bare=True)
    assert rows_of(tmp_path / "out.jsonl")[1]["problem"] == "what would you eat against a cold?"
    with pytest.raises(ConfigError, match="task='ovd'"):
        convert("lisa", [tmp_path / "1.json"], tmp_path / "out.jsonl", task="ovd")


def test_files_in_windows_encoding_are_read(tmp_path):
    value = {**VALUE, "text": ["the café\N{RIGHT SINGLE QUOTATION MARK}s sign"]}
    (tmp_path / "1.json").write_bytes(json.dumps(value, ensure_ascii=False).encode("cp1252"))
    convert("lisa", [tmp_path / "1.json"], tmp_path / "out.jsonl", bare=True)
    assert rows_of(tmp_path / "out.jsonl")[0]["problem"] == "the café\N{RIGHT SINGLE QUOTATION MARK}s sign"


def test_wrong_files_are_said(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no \.json files"):
        convert("lisa", [tmp_path / "empty"], tmp_path / "out.jsonl")
    (tmp_path / "1.json").write_text('{"text": ["a"]}', encoding="utf-8")
    with pytest.raises(DataError, match="ReasonSeg's layout"):
        convert("lisa", [tmp_path / "1.json"], tmp_path / "out.jsonl")
