"""COCO, OVDEval and D3 fixtures in their published layouts become detection rows."""

import json
import pickle

import pytest

from vlm_r1.data.convert import convert
from vlm_r1.errors import ConfigError, DataError

NAMES = ["cat", "dog", "cup", "car", "bus"]


def instances(boxes, **image_extra):
    """`boxes`: image id -> list of (category index, bbox). Images are 100x100."""
    annotations = [
        {"id": i, "image_id": image_id, "category_id": category + 1, "bbox": box, "iscrowd": 0, "area": 1.0}
        for i, (image_id, category, box) in enumerate(
            (image_id, category, box) for image_id, items in boxes.items() for category, box in items
        )
    ]
    images = [
        {
            "id": image_id,
            "file_name": f"{image_id:012d}.jpg",
            "width": 100,
            "height": 100,
            **image_extra.get(str(image_id), {}),
        }
        for image_id in boxes
    ]
    categories = [{"id": i + 1, "name": name, "supercategory": "x"} for i, name in enumerate(NAMES)]
    return {"info": {}, "licenses": [], "images": images, "annotations": annotations, "categories": categories}


BOX = [10, 20, 30, 40]
MANY = [(0, [i, 0, 5, 5]) for i in range(11)]


@pytest.fixture
def run(tmp_path):
    def _run(name, value, file="instances.json", more=(), **options):
        path = tmp_path / file
        path.write_text(json.dumps(value), encoding="utf-8")
        convert(name, [path, *more], tmp_path / "out.jsonl", **options)
        return [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]

    return _run


def test_coco_rows(run):
    (row,) = run("coco", instances({5: [(1, BOX), (0, [90, 90, 20, 20])], 6: []}))
    assert row == {
        "id": "instances-5",
        "image": "000000000005.jpg",
        "problem": "Please carefully check the image and detect the following objects: cat, dog. "
        "Output each detected target's bbox coordinates in JSON format. "
        "If there are no such targets in the image, simply respond with None.",
        "solution": [
            {"bbox_2d": [10, 20, 40, 60], "label": "dog"},
            {"bbox_2d": [90, 90, 100, 100], "label": "cat"},
        ],
        "task": "ovd",
        "source": "coco",
        "categories": ["cat", "dog"],
    }


def test_coco_leaves_out_crowds_and_empty_boxes(run):
    value = instances({5: [(0, BOX), (1, BOX), (2, [5, 5, 0, 9])]})
    value["annotations"][1]["iscrowd"] = 1
    (row,) = run("coco", value)
    assert row["categories"] == ["cat"]


def test_coco_filters_of_the_paper(run):
    value = instances({1: [*MANY, (1, BOX)], 2: [(0, BOX), (0, BOX)], 3: [(0, BOX), (1, BOX)], 4: MANY})

    def kept(name):
        return {row["id"][-1]: row["categories"] for row in run("coco", value, filter=name)}

    assert kept("none") == {"1": ["cat", "dog"], "2": ["cat"], "3": ["cat", "dog"], "4": ["cat"]}
    # A category with 11 boxes is left out of its image; image 4 has nothing else.
    assert kept("pos_1") == {"1": ["dog"], "2": ["cat"], "3": ["cat", "dog"]}
    assert kept("pos_2") == {"3": ["cat", "dog"]}
    assert kept("pos_3") == {"2": ["cat"], "3": ["cat", "dog"]}


def test_coco_asks_for_all_categories(run):
    rows = run("coco", instances({1: [(0, BOX)], 2: []}), ask="all")
    assert [row["categories"] for row in rows] == [sorted(NAMES)] * 2
    assert rows[1]["solution"] == []
    filtered = run("coco", instances({1: [*MANY, (1, BOX)]}), ask="all", filter="pos_1")
    assert filtered[0]["categories"] == ["bus", "car", "cup", "dog"]


def test_coco_asks_by_the_names_alone(run):
    (row,) = run("coco", instances({5: [(1, BOX), (0, BOX)]}), bare=True)
    assert (row["problem"], row["categories"], row["task"]) == ("cat, dog", ["cat", "dog"], "ovd")


def test_coco_negatives_are_absent_and_one_to_n(run):
    value = instances({i: [*MANY, (1, BOX)] for i in range(40)})
    counts = set()
    for row in run("coco", value, filter="pos_1", negatives=3):
        absent = set(row["categories"]) - {"dog"}
        assert "dog" in row["categories"]
        # The cats were left out by the filter but are in the image.
        assert absent <= {"cup", "car", "bus"}
        assert ", ".join(row["categories"]) in row["problem"]
        counts.add(len(absent))
    assert counts == {1, 2, 3}
    with pytest.raises(ConfigError, match="ask=all"):
        run("coco", value, ask="all", negatives=1)
    with pytest.raises(ConfigError, match="filter='pos_9'"):
        run("coco", value, filter="pos_9")


def test_ovdeval_asks_for_each_images_own_labels(run):
    extra = {"0": {"text": ["dog"], "neg_text": ["cat", "cup"]}, "1": {"text": [], "neg_text": ["bus"]}}
    value = instances({0: [(1, BOX)], 1: []}, **extra)
    rows = run("ovdeval", value, file="negation.json")
    assert [row["categories"] for row in rows] == [["dog", "cat", "cup"], ["bus"]]
    assert rows[0]["solution"] == [{"bbox_2d": [10, 20, 40, 60], "label": "dog"}]
    assert rows[0]["image"] == "negation/000000000000.jpg"
    assert rows[0]["source"] == "ovdeval/negation"
    assert [row["categories"] for row in run("ovdeval", value, file="negation.json", negatives=False)] == [["dog"]]
    value["images"][0]["neg_text"] = "cat"
    with pytest.raises(DataError, match=r"image 0 has neg_text = 'cat'"):
        run("ovdeval", value)


def test_d3_adds_one_to_three_absent_descriptions(run):
    rows = run("d3", instances({i: [(0, BOX)] for i in range(40)}), file="d3_full_annotations.json")
    counts = {len(row["categories"]) for row in rows}
    assert counts == {2, 3, 4}
    assert all("cat" in row["categories"] and row["solution"][0]["label"] == "cat" for row in rows)
    again = run("d3", instances({i: [(0, BOX)] for i in range(40)}), file="d3_full_annotations.json")
    assert rows == again
    assert run("d3", instances({1: [(0, BOX)], 2: []}), negatives=0)[0]["categories"] == ["cat"]


def test_d3_with_groups_takes_absent_ones_from_the_images_group(run, tmp_path):
    images = {
        i: {"id": i, "file_name": "x", "anno_id": [], "group_id": 3, "height": 100, "width": 100, "license": ""}
        for i in range(20)
    }
    groups = {3: {"id": 3, "inner_sent_id": [1, 2, 4], "pos_sent_id": [1], "img_id": list(images), "group_name": "g"}}
    (tmp_path / "images.pkl").write_bytes(pickle.dumps(images))
    (tmp_path / "groups.pkl").write_bytes(pickle.dumps(groups))
    more = [tmp_path / "images.pkl", tmp_path / "groups.pkl"]
    rows = run("d3", instances({i: [(0, BOX)] for i in range(20)}), more=more)
    assert {name for row in rows for name in row["categories"]} == {"cat", "dog", "car"}
    with pytest.raises(ConfigError, match=r"alone or with images\.pkl and groups\.pkl"):
        run("d3", instances({1: [(0, BOX)]}), more=more[:1])
    (tmp_path / "groups.pkl").write_bytes(pickle.dumps({}))
    with pytest.raises(DataError, match="not D3's layout"):
        run("d3", instances({1: [(0, BOX)]}), more=more)


def test_an_existing_file_survives_a_failed_conversion(run, tmp_path):
    run("coco", instances({5: [(0, BOX)]}))
    before = (tmp_path / "out.jsonl").read_text(encoding="utf-8")
    broken = instances({5: [(0, BOX)]})
    broken["images"][0].pop("file_name")
    with pytest.raises(DataError, match="instances layout"):
        run("coco", broken)
    with pytest.raises(DataError, match="no rows"):
        run("coco", instances({5: []}))
    assert (tmp_path / "out.jsonl").read_text(encoding="utf-8") == before
