"""Rows of the rollout table, made from records."""

import io
import json

from PIL import Image
from support import made_up, mixed_prompts, noise_image, sample, tiny

from vlm_r1.records import Answer, LabelledBox, ParseFailure, SampleImage, Score
from vlm_r1.runtime.rows import answer_row, image_bytes, rollout_rows


def test_a_groups_first_row_holds_the_image_and_every_row_its_numbers():
    loaded = tiny()
    group = made_up(loaded, mixed_prompts(loaded)[0], [2, 5])
    good = Answer(raw="x", think="t", text="[1]", value=(LabelledBox(box=(1, 2, 3, 4), label="cat"),))
    bad = Answer(raw="y", failure=ParseFailure(kind="no_box"))
    scores = [Score(total=0.5, parts={"iou": 0.5}), Score(total=None, parts={"iou": None})]
    rows = rollout_rows([group], [[good, bad]], [scores], [[1.0, 0.0]])
    assert [row["n_tokens"] for row in rows] == [2, 5]
    assert [row["reward"] for row in rows] == [0.5, None] and json.loads(rows[1]["parts"]) == {"iou": None}
    assert [row["failure"] for row in rows] == [None, "no_box"]
    assert (
        json.loads(rows[0]["pred_boxes"]) == [{"box": [1, 2, 3, 4], "label": "cat"}] and rows[1]["pred_boxes"] == "[]"
    )
    assert rows[1]["image"] is None and Image.open(io.BytesIO(rows[0]["image"])).size == (48, 32)
    assert (rows[0]["image_width"], rows[0]["image_height"]) == (48, 32)


def test_images_are_kept_as_they_are_stored(tmp_path):
    file = tmp_path / "a.jpg"
    noise_image(20, 10).image.save(file)
    assert image_bytes(sample("q", SampleImage(path=file))) == file.read_bytes()
    assert image_bytes(sample("q", SampleImage(data=b"jpeg"))) == b"jpeg"
    assert image_bytes(sample("q")) is None
    assert answer_row(sample("q"), Answer(raw=""))["image_width"] is None
