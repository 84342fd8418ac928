"""Fixtures in the layout of refs(unc).p and instances.json."""

import json
import pickle

import pytest

from vlm_r1.config import DataSource
from vlm_r1.data.convert import convert
from vlm_r1.data.convert.plain_pickle import load_plain_pickle
from vlm_r1.data.source import load_source
from vlm_r1.errors import ConfigError, DataError

INSTANCES = {
    "info": {"description": "refcoco"},
    "licenses": [],
    "images": [
        {"id": 581857, "file_name": "COCO_train2014_000000581857.jpg", "width": 640, "height": 427, "license": 1},
        {"id": 9, "file_name": "COCO_train2014_000000000009.jpg", "width": 640, "height": 480, "license": 1},
    ],
    "annotations": [
        {"id": 1719310, "image_id": 581857, "category_id": 1, "bbox": [103.93, 299.99, 134.22, 100.0], "iscrowd": 0},
        {"id": 7, "image_id": 9, "category_id": 2, "bbox": [600.0, 400.0, 40.4, 80.3], "iscrowd": 1},
    ],
    "categories": [
        {"id": 1, "name": "person", "supercategory": "person"},
        {"id": 2, "name": "cup", "supercategory": "kitchen"},
    ],
}


def sentence(sent_id, text):
    return {"sent_id": sent_id, "sent": text, "raw": text.upper(), "tokens": text.split()}


REFS = [
    {
        "sent_ids": [0, 1],
        "file_name": "COCO_train2014_000000581857_16.jpg",
        "ann_id": 1719310,
        "ref_id": 0,
        "image_id": 581857,
        "split": "train",
        "sentences": [sentence(0, "the lady with the blue shirt"), sentence(1, "lady w back to us")],
        "category_id": 1,
    },
    {
        "sent_ids": [2],
        "file_name": "COCO_train2014_000000000009_1.jpg",
        "ann_id": 7,
        "ref_id": 1,
        "image_id": 9,
        "split": "testA",
        "sentences": [sentence(2, "café cup")],
        "category_id": 2,
    },
]


@pytest.fixture
def files(tmp_path):
    (tmp_path / "instances.json").write_text(json.dumps(INSTANCES), encoding="utf-8")
    (tmp_path / "refs(unc).p").write_bytes(pickle.dumps(REFS, protocol=2))
    return [tmp_path / "refs(unc).p", tmp_path / "instances.json"]


def rows_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_rows(files, tmp_path, capsys):
    out = tmp_path / "rows" / "refcoco.jsonl"
    assert convert("refcoco", files, out) == 3
    rows = rows_of(out)
    assert rows[0] == {
        "id": "0-0",
        "image": "COCO_train2014_000000581857.jpg",
        "problem": "Please provide the bounding box coordinates of the region this sentence describes: "
        "the lady with the blue shirt.",
        "solution": [103.93, 299.99, 238.15, 399.99],
        "task": "rec",
        "source": "refcoco",
        "split": "train",
    }
    assert rows[2]["problem"].endswith("café cup.")
    assert rows[2]["solution"] == [600.0, 400.0, 640.0, 480.0]  # clipped to the image of 640x480
    assert "3 rows" in capsys.readouterr().out


def test_splits_and_bare_questions(files, tmp_path):
    out = tmp_path / "out.jsonl"
    assert convert("refcoco", files[::-1], out, split="testA", bare=True, image_prefix="train2014/") == 1
    (row,) = rows_of(out)
    assert row["problem"] == "café cup"
    assert row["image"] == "train2014/COCO_train2014_000000000009.jpg"
    with pytest.raises(DataError, match='no rows of the split "val"; it has testA, train'):
        convert("refcoco", files, tmp_path / "other.jsonl", split="val")
    assert not (tmp_path / "other.jsonl").exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_pickle_protocol_is_read(tmp_path, protocol):
    path = tmp_path / "refs.p"
    path.write_bytes(pickle.dumps(REFS, protocol=protocol))
    assert load_plain_pickle(path) == REFS


def test_a_pickle_of_python_2_is_read(tmp_path):
    # pickle.dumps([{'sent': 'caf\xc3\xa9', 'ref_id': 3L}]) of Python 2, protocols 0 and 2.
    zero = b"(lp0\n(dp1\nS'sent'\np2\nS'caf\\xc3\\xa9'\np3\nsS'ref_id'\np4\nL3L\nsa."
    two = b"\x80\x02]q\x00}q\x01(U\x04sentq\x02U\x05caf\xc3\xa9q\x03U\x06ref_idq\x04\x8a\x01\x03ua."
    for data in (zero, two):
        (tmp_path / "old.p").write_bytes(data)
        assert load_plain_pickle(tmp_path / "old.p") == [{"sent": "café", "ref_id": 3}]


class Evil:
    def __reduce__(self):
        return (open, ("/tmp/should-never-exist-vlm-r1", "w"))


@pytest.mark.parametrize("value", [Evil(), [{"sent": Evil()}], print, range(3), pytest.approx])
def test_a_pickle_that_names_anything_callable_is_refused(tmp_path, value):
    path = tmp_path / "refs.p"
    path.write_bytes(pickle.dumps(value))
    with pytest.raises(DataError, match="only plain containers are read"):
        load_plain_pickle(path)


def test_old_opcodes_that_call_are_refused(tmp_path):
    for data in (b"cos\nsystem\n(S'true'\ntR.", b"(S'true'\nios\nsystem\n.", b"(cos\nsystem\nS'true'\no."):
        (tmp_path / "refs.p").write_bytes(data)
        with pytest.raises(DataError, match=r"names \w+\.system"):
            load_plain_pickle(tmp_path / "refs.p")


def test_wrong_files_are_said(files, tmp_path):
    out = tmp_path / "out.jsonl"
    with pytest.raises(ConfigError, match="two inputs"):
        convert("refcoco", files[:1], out)
    broken = {**INSTANCES, "annotations": INSTANCES["annotations"][:1]}
    files[1].write_text(json.dumps(broken), encoding="utf-8")
    with pytest.raises(DataError, match=r"entry 1 is not a reference of .*instances\.json"):
        convert("refcoco", files, out)
    files[1].write_text('{"images": []}', encoding="utf-8")
    with pytest.raises(DataError, match="instances layout"):
        convert("refcoco", files, out)
    files[1].write_text(json.dumps(INSTANCES), encoding="utf-8")
    files[0].write_bytes(pickle.dumps(REFS)[:-40])
    with pytest.raises(DataError, match=r"refs\(unc\)\.p"):
        convert("refcoco", files, out)
    assert not list(tmp_path.glob(".*.tmp"))


def test_the_rows_can_be_read_back(files, tmp_path):
    from PIL import Image

    Image.new("RGB", (640, 427)).save(tmp_path / "COCO_train2014_000000581857.jpg")
    convert("refcoco", files, tmp_path / "out.jsonl", split="train")
    samples = load_source(DataSource(path=str(tmp_path / "out.jsonl")))
    assert [sample.task for sample in samples] == ["rec", "rec"]
    assert samples[1].truth.boxes[0].box == (103.93, 299.99, 238.15, 399.99)


def test_unknown_formats_and_options_name_the_nearest(files, tmp_path):
    with pytest.raises(ConfigError, match='did you mean "refcoco"'):
        convert("refcocoo", files, tmp_path / "out.jsonl")
    with pytest.raises(ConfigError, match='did you mean "split"'):
        convert("refcoco", files, tmp_path / "out.jsonl", splt="val")
    with pytest.raises(ConfigError, match="option bare='yes'"):
        convert("refcoco", files, tmp_path / "out.jsonl", bare="yes")
    with pytest.raises(ConfigError, match="negatives=-1"):
        convert("coco", files[1:], tmp_path / "out.jsonl", negatives=-1)
    with pytest.raises(DataError, match="does not exist"):
        convert("coco", [tmp_path / "nope.json"], tmp_path / "out.jsonl")
