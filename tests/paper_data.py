"""The data that recipes/paper/prepare.sh expects, in miniature: a few images in the published layouts."""

import json
import pickle
from pathlib import Path

from PIL import Image

SUBSETS = ("celebrity", "color", "landmark", "logo", "material", "negation", "position", "relationship")
NAMES = ("cat", "dog", "cup")


def write_json(path: Path, value) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def write_pickle(path: Path, value) -> None:
    path.write_bytes(pickle.dumps(value, protocol=2))


def image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 48), (90, 140, 60)).save(path)


def instances(files: dict[int, str], **image_fields) -> dict:
    """COCO's layout: every image of 64x48 pixels holds one cat and, if its id is odd, a dog."""
    annotations = []
    for image_id in files:
        for category in (1, 2)[: 1 + image_id % 2]:
            annotation = {"id": len(annotations) + 1, "image_id": image_id, "category_id": category, "iscrowd": 0}
            annotations.append(annotation | {"bbox": [4.0 * category, 8.0, 24.0, 20.0], "area": 480.0})
    images = [{"id": i, "file_name": f, "width": 64, "height": 48, **image_fields} for i, f in files.items()]
    categories = [{"id": i, "name": name, "supercategory": "thing"} for i, name in enumerate(NAMES, start=1)]
    return {"info": {}, "licenses": [], "images": images, "annotations": annotations, "categories": categories}


def refs(splits: dict[int, str]) -> list[dict]:
    return [
        {
            "ref_id": i,
            "ann_id": i,
            "image_id": i,
            "split": split,
            "file_name": f"{i}.jpg",
            "category_id": 1,
            "sent_ids": [i],
            "sentences": [{"sent_id": i, "sent": "the cat", "raw": "the cat", "tokens": ["the", "cat"]}],
        }
        for i, split in splits.items()
    ]


def write_paper_data(root: Path) -> None:
    """`root/data` as its authors' archives leave it."""
    data = root / "data"
    # Even ids: one annotation an image, whose id is then the image's number in order.
    train = {2 * i: f"COCO_train2014_{2 * i:012d}.jpg" for i in range(1, 5)}
    for file in train.values():
        image(data / "train2014" / file)
    table = instances(train)
    splits = {a["id"]: "train" if a["id"] < 3 else "val" for a in table["annotations"]}
    for name, file in (("refcoco", "refs(unc).p"), ("refcoco+", "refs(unc).p"), ("refcocog", "refs(umd).p")):
        write_json(data / name / "instances.json", table)
        write_pickle(data / name / file, refs(splits))

    val = {i: f"{i:012d}.jpg" for i in (1, 2)}
    for file in val.values():
        image(data / "val2017" / file)
    write_json(data / "annotations" / "instances_val2017.json", instances(val))

    image(data / "ReasonSeg" / "test" / "7_o.jpg")
    target = {"label": "target", "shape_type": "polygon", "points": [[4, 4], [30, 4], [20, 40]]}
    lisa = {"text": ["what would you eat against a cold?"], "is_sentence": True, "shapes": [target]}
    write_json(data / "ReasonSeg" / "test" / "7_o.json", lisa)

    d3 = {i: f"{i}.jpg" for i in (1, 2, 3)}
    for file in d3.values():
        image(data / "d3" / "d3_images" / file)
    write_json(data / "d3" / "d3_full_annotations.json", instances(d3))
    write_pickle(data / "d3" / "images.pkl", {i: {"id": i, "file_name": f, "group_id": 0} for i, f in d3.items()})
    write_pickle(data / "d3" / "groups.pkl", {0: {"id": 0, "inner_sent_id": [1, 2, 3], "img_id": list(d3)}})

    for subset in SUBSETS:
        image(data / "ovdeval" / "images" / subset / "a.jpg")
        table = instances({0: "a.jpg"}, text=["cat"], neg_text=["dog"])
        write_json(data / "ovdeval" / "annotations" / f"{subset}.json", table)
