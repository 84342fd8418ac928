"""Fixtures in the layouts of Ref-L4: its parquet files, and its review of RefCOCO (fields as published)."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlm_r1.config import DataSource
from vlm_r1.data.convert import convert
from vlm_r1.data.source import load_source
from vlm_r1.errors import ConfigError, DataError

IMAGE = {"original_id": 581857, "file_name": "COCO_train2014_000000581857.jpg", "width": 640, "height": 427}
REVIEWED = {
    "images": [
        {**IMAGE, "id": 0, "caption": "the lady with the blue shirt", "tokens_negative": [[0, 28]]},
        {**IMAGE, "id": 1, "caption": "lady", "tokens_negative": [[0, 4]]},
        {**IMAGE, "id": 2, "caption": "nobody", "tokens_negative": [[0, 6]]},
    ],
    "annotations": [
        {"id": 10, "image_id": 0, "original_id": 7, "bbox": [103.93, 299.99, 134.22, 100.0], "caption_quality": 1},
        {"id": 11, "image_id": 1, "original_id": 7, "bbox": [600, 400, 80, 80], "caption_quality": 0},
        {"id": 12, "image_id": 2, "original_id": 7, "bbox": [700, 1, 10, 10], "caption_quality": 1},
    ],
}
# The card's own example, and one of the test split.
REF_L4 = [
    {
        "id": 1,
        "caption": "Within the central image frame of the three, an antique camera is present.",
        "bbox": [580.6163330048, 179.4965209869, 93.59924316159993, 112.1013793848],
        "bbox_area": 10492.60426778866,
        "bbox_id": "o365_527361",
        "ori_category_id": "o365_64",
        "image_id": "o365_922765",
        "height": 741,
        "width": 1024,
        "file_name": "objects365_v2_00922765.jpg",
        "is_rewrite": True,
        "split": "val",
    },
    {
        "id": 2,
        "caption": "The man on the motorcycle",
        "bbox": [163.48, 123.16, 139.51, 271.38],
        "bbox_area": 37860.2238,
        "bbox_id": "coco_536932",
        "ori_category_id": "refcoco_1",
        "image_id": "coco_128974",
        "height": 485,
        "width": 640,
        "file_name": "COCO_train2014_000000128974.jpg",
        "is_rewrite": False,
        "split": "test",
    },
]


@pytest.fixture
def reviewed(tmp_path):
    file = tmp_path / "refcoco+_testA_reviewed.json"
    file.write_text(json.dumps(REVIEWED))
    return file


@pytest.fixture
def ref_l4(tmp_path):
    file = tmp_path / "ref-l4-val.parquet"
    pq.write_table(pa.Table.from_pylist(REF_L4), file)
    return file


def rows_of(name, file, **options):
    out = file.parent / "rows.jsonl"
    convert(name, [file], out, **options)
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


def test_the_review_keeps_what_it_found_right(reviewed):
    [row] = rows_of("refcoco_reviewed", reviewed, bare=True)
    # xywh to corners: 103.93 + 134.22, 299.99 + 100. The third box lies outside the image.
    assert row == {
        "id": "refcoco+-testA-10",
        "image": "COCO_train2014_000000581857.jpg",
        "problem": "the lady with the blue shirt",
        "solution": [103.93, 299.99, 238.15, 399.99],
        "task": "rec",
        "source": "refcoco+",
        "split": "testA",
        "caption_quality": 1,
    }


def test_what_the_review_found_wrong_can_be_asked_for(reviewed):
    [row] = rows_of("refcoco_reviewed", reviewed, rows="errors", image_prefix="train2014/")
    assert (row["id"], row["caption_quality"], row["image"][:10]) == ("refcoco+-testA-11", 0, "train2014/")
    assert row["solution"] == [600, 400, 640, 427]  # clipped to the image
    assert row["problem"].endswith("this sentence describes: lady.")
    assert len(rows_of("refcoco_reviewed", reviewed, rows="all")) == 2


def test_ref_l4_as_published(ref_l4):
    first, second = rows_of("ref_l4", ref_l4, bare=True)
    assert first["solution"] == [580.62, 179.5, 674.22, 291.6]
    assert first["problem"] == REF_L4[0]["caption"] and first["image"] == "objects365_v2_00922765.jpg"
    assert (first["id"], first["category"], first["rewritten"], first["split"]) == ("ref-l4-1", "o365_64", True, "val")
    assert second["solution"] == [163.48, 123.16, 302.99, 394.54] and second["source"] == "ref_l4"
    assert [row["id"] for row in rows_of("ref_l4", ref_l4, split="test")] == ["ref-l4-2"]


@pytest.mark.parametrize("name", ["refcoco_reviewed", "ref_l4"])
def test_the_rows_are_read_as_samples(name, reviewed, ref_l4, tmp_path):
    from PIL import Image

    for image in ("COCO_train2014_000000581857.jpg", "objects365_v2_00922765.jpg", "COCO_train2014_000000128974.jpg"):
        Image.new("RGB", (1024, 741)).save(tmp_path / image)
    rows_of(name, reviewed if name == "refcoco_reviewed" else ref_l4)
    samples = load_source(DataSource(path=str(tmp_path / "rows.jsonl")))
    assert samples[0].task == "rec" and len(samples[0].truth.boxes) == 1


def test_files_in_another_layout_are_refused(reviewed, ref_l4, tmp_path):
    other = tmp_path / "instances.json"
    other.write_text("{}")
    with pytest.raises(ConfigError, match=r'"instances\.json" is not named as published: refcoco\+_val_reviewed\.json'):
        rows_of("refcoco_reviewed", other)
    reviewed.write_text(json.dumps({"images": [], "annotations": [{}]}))
    with pytest.raises(DataError, match="not in the layout of Ref-L4's review"):
        rows_of("refcoco_reviewed", reviewed)
    with pytest.raises(ConfigError, match="option rows='most'"):
        rows_of("refcoco_reviewed", reviewed, rows="most")
    with pytest.raises(DataError, match="not in Ref-L4's layout"):
        rows_of("ref_l4", other)
    with pytest.raises(DataError, match='no rows of the split "train"; the files have test, val'):
        rows_of("ref_l4", ref_l4, split="train")
