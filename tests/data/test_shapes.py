"""Each row shape that the peers use, as their documentation writes it, becomes the same sample."""

import base64

import pytest

from vlm_r1.config import DataSource
from vlm_r1.data.images import ImageFinder
from vlm_r1.data.rows import RowContext, read_row
from vlm_r1.data.source import load_source
from vlm_r1.records import LabelledBox, Truth

BOX = Truth(boxes=(LabelledBox(box=(1.0, 2.0, 30.0, 40.0)),))


@pytest.fixture
def read(folder):
    def _read(row, task=None):
        context = RowContext(name="data.jsonl", finder=ImageFinder(folder), task=task)
        sample, faults = read_row(row, context, 7)
        assert faults == []
        return sample

    return _read


REC_ROWS = {
    "ours": {"image": "a.png", "problem": "the cat", "solution": [1, 2, 30, 40]},
    "R1-V": {"image": "a.png", "problem": "the cat", "solution": "<answer> [1, 2, 30, 40] </answer>"},
    "LLaVA": {
        "image": "a.png",
        "conversations": [
            {"from": "human", "value": "<image>the cat"},
            {"from": "gpt", "value": "[1, 2, 30, 40]"},
        ],
    },
    "VLM-R1": {
        "id": 7,
        "image": ["a.png"],
        "conversations": [
            {"from": "human", "value": "<image>\nthe cat"},
            {"from": "gpt", "value": [1, 2, 30, 40]},
        ],
    },
    "TRL": {
        "prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "the cat"}]}],
        "image": "a.png",
        "solution": "[1, 2, 30, 40]",
    },
    "TRL, text content": {
        "prompt": [{"role": "user", "content": "the cat"}],
        "images": ["a.png"],
        "ground_truth": "[1, 2, 30, 40]",
    },
    "image among the parts": {
        "prompt": [
            {"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "the cat"}]}
        ],
        "answer": [1, 2, 30, 40],
    },
    "verl": {
        "data_source": "refcoco",
        "prompt": [{"role": "user", "content": "<image>the cat"}],
        "images": [{"image": "a.png"}],
        "ability": "grounding",
        "reward_model": {"style": "rule", "ground_truth": "[1, 2, 30, 40]"},
        "extra_info": {"split": "train", "index": 3},
    },
    "EasyR1": {"problem": "<image>the cat", "answer": "[1, 2, 30, 40]", "images": ["a.png"]},
    "ms-swift, solution": {
        "messages": [{"role": "user", "content": "<image>the cat"}],
        "images": ["a.png"],
        "solution": "[1, 2, 30, 40]",
    },
    "ms-swift, objects": {
        "messages": [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": "<image>the <ref-object>"},
            {"role": "assistant", "content": "<bbox>"},
        ],
        "images": ["a.png"],
        "objects": {"ref": ["cat"], "bbox": [[1, 2, 30, 40]]},
    },
}


@pytest.mark.parametrize("row", REC_ROWS.values(), ids=REC_ROWS)
def test_every_shape_gives_the_same_sample(read, folder, row):
    sample = read(row)
    assert sample.question == "the cat"
    assert sample.task == "rec"
    assert [box.box for box in sample.truth.boxes] == [(1.0, 2.0, 30.0, 40.0)]
    assert [image.path for image in sample.images] == [folder / "a.png"]


def test_ids_and_sources(read):
    assert read(REC_ROWS["ours"]).id == "data.jsonl:7"
    assert read(REC_ROWS["ours"]).source == "data.jsonl"
    assert read(REC_ROWS["VLM-R1"]).id == "7"
    assert read(REC_ROWS["verl"]).id == "train-3"
    assert read(REC_ROWS["verl"]).source == "refcoco"
    assert read(REC_ROWS["verl"]).columns["ability"] == "grounding"
    assert read(REC_ROWS["ms-swift, objects"]).columns["system"] == "You are a helpful assistant."


def test_swift_objects_with_labels_and_thousandths(read):
    row = {
        "messages": [
            {"role": "user", "content": "<image>Find the <ref-object> in the image"},
            {"role": "assistant", "content": '[{"bbox_2d": <bbox>, "label": "<ref-object>"}, ...]'},
        ],
        "images": ["b.jpg"],
        "objects": {
            "ref": ["sheep", "sheep", "lamb"],
            "bbox": [[100, 250, 500, 500], [0, 0, 1000, 1000]],
            "bbox_type": "norm1000",
        },
    }
    sample = read(row)
    assert sample.question == "Find the sheep in the image"
    assert sample.task == "ovd"
    assert sample.truth.boxes == (
        LabelledBox(box=(10.0, 20.0, 50.0, 40.0), label="sheep"),
        LabelledBox(box=(0.0, 0.0, 100.0, 80.0), label="lamb"),
    )


def test_swift_one_name_for_two_boxes_as_shares(read):
    row = {
        "messages": [
            {"role": "user", "content": "<image>Find the <ref-object> in the image"},
            {"role": "assistant", "content": "<bbox><bbox>"},
        ],
        "images": ["b.jpg"],
        "objects": {"ref": ["sheep"], "bbox": [[0.1, 0.25, 0.5, 0.5], [0, 0, 1, 1]], "bbox_type": "norm1"},
    }
    found = read(row).truth.boxes
    assert [item.label for item in found] == ["sheep", "sheep"]
    assert found[0].box == pytest.approx((10.0, 20.0, 50.0, 40.0))


@pytest.mark.parametrize(
    ("method", "solution", "reward", "task"),
    [
        ("mcq", "B", "choice", "choice"),
        ("yes_no", "yes", "yes_no", "yes_no"),
        ("odLength", "None", "od_length", "ovd"),
        ("weighted_sum", "[]", "weighted_detection", "ovd"),
        ("math", "4", "math", "math"),
        ("all_match", "4", "exact_text", "text"),
        ("default", "4", None, "number"),
        ("my_reward", "4", "my_reward", "number"),
    ],
)
def test_reward_methods_of_vlm_r1(read, method, solution, reward, task):
    row = {
        "conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": solution}],
        "accu_reward_method": method,
    }
    sample = read(row)
    assert (sample.reward, sample.task) == (reward, task)


def test_task_of_the_row_before_that_of_the_source(read):
    assert read({"problem": "Q", "solution": "4"}, task="text").truth == Truth(text="4")
    assert read({"problem": "Q", "solution": "4", "task": "count"}, task="text").truth == Truth(number=4.0)


def test_zero_two_and_three_images(read, folder):
    assert read({"problem": "2+2?", "solution": 4}).images == ()
    two = read({"problem": "<image> and <image>: same?", "images": ["a.png", "b.jpg"], "solution": "no"})
    assert two.question == "and : same?"
    assert [image.path.name for image in two.images] == ["a.png", "b.jpg"]
    assert len(read({"problem": "Q", "images": ["a.png", "b.jpg", "a.png"], "solution": "no"}).images) == 3


def test_a_box_may_belong_to_any_of_several_images(read):
    row = {"problem": "the cat", "images": ["a.png", "b.jpg"], "solution": [70, 10, 90, 70]}
    assert read(row).truth.boxes[0].box == (70.0, 10.0, 90.0, 70.0)


def test_a_think_block_is_kept_for_the_supervised_baseline(read):
    row = {"problem": "Q", "solution": "<think>two and two</think><answer>4</answer>"}
    assert read(row).think == "two and two"
    assert read({"problem": "Q", "solution": 4, "think": "so"}).think == "so"


def test_encoded_images(read, folder):
    data = (folder / "a.png").read_bytes()
    code = base64.b64encode(data).decode()
    for value in (code, f"data:image/png;base64,{code}", {"bytes": data, "path": None}, {"bytes": data, "path": "x"}):
        sample = read({"problem": "the cat", "image": value, "solution": [1, 2, 30, 40]})
        assert sample.images[0].open().size == (64, 48)


def test_other_columns_are_kept_for_plugins(read):
    assert read({"problem": "Q", "solution": "4", "level": "hard"}).columns == {"level": "hard"}


def test_shapes_may_be_mixed_in_one_file(write):
    path = write(*REC_ROWS.values())
    samples = load_source(DataSource(path=str(path)))
    assert len(samples) == len(REC_ROWS)
    assert {sample.question for sample in samples} == {"the cat"}
