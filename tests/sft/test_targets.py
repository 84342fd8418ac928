"""The text that is taught for each task, in the coordinates the model writes."""

import pytest
from support import sample, tiny

from vlm_r1.boxes import BoxMap
from vlm_r1.errors import DataError
from vlm_r1.prompts.parse import read_answer
from vlm_r1.records import LabelledBox, Truth
from vlm_r1.sft.targets import answer_text, target_ids, target_text

HALF = BoxMap(x=0.5, y=0.25)
CAT = LabelledBox(box=(10.0, 20.0, 30.0, 40.0), label="cat")
DOG = LabelledBox(box=(1.0, 2.0, 3.0, 4.0), label="dög")


@pytest.mark.parametrize(
    ("task", "truth", "text"),
    [
        ("rec", Truth(boxes=(CAT,)), "[20, 80, 60, 160]"),
        ("rec", Truth(boxes=(CAT, DOG)), "[20, 80, 60, 160]"),
        ("rec", Truth(boxes=()), "None"),
        ("ovd", Truth(boxes=()), "None"),
        ("ovd", Truth(boxes=(CAT,)), '[{"bbox_2d": [20, 80, 60, 160], "label": "cat"}]'),
        (
            "list",
            Truth(boxes=(CAT, DOG)),
            '[{"bbox_2d": [20, 80, 60, 160], "label": "cat"}, {"bbox_2d": [2, 8, 6, 16], "label": "dög"}]',
        ),
        ("count", Truth(number=4.0), "4"),
        ("number", Truth(number=2.5), "2.5"),
        ("count", Truth(number=0.0), "0"),
        ("choice", Truth(choice="B"), "B"),
        ("text", Truth(text="a red car"), "a red car"),
    ],
)
def test_answers_by_hand(task, truth, text):
    assert answer_text(sample(truth=truth, task=task), HALF) == text


def test_thinking_stands_before_the_answer_and_may_be_empty():
    with_think = sample(truth=Truth(number=3.0), task="count", think="one; two; three")
    assert target_text(with_think, BoxMap()) == "<think>one; two; three</think><answer>3</answer>"
    without = sample(truth=Truth(number=3.0), task="count")
    assert target_text(without, BoxMap()) == "<think></think><answer>3</answer>"


def test_a_share_of_the_targets_has_its_thought_and_a_sample_keeps_its_target():
    samples = [sample(id=f"s{i}", truth=Truth(number=3.0), task="count", think="one; two; three") for i in range(400)]
    texts = [target_text(s, BoxMap(), 0.25) for s in samples]
    assert set(texts) == {"<think></think><answer>3</answer>", "<think>one; two; three</think><answer>3</answer>"}
    assert 0.2 < sum("one" in text for text in texts) / 400 < 0.3
    assert texts == [target_text(s, BoxMap(), 0.25) for s in samples]
    assert not any("one" in target_text(s, BoxMap(), 0.0) for s in samples)


def test_a_sample_without_a_truth_is_named():
    with pytest.raises(DataError, match="sample x7: has no truth to learn from"):
        answer_text(sample(id="x7", truth=Truth()), BoxMap())


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl"])
def test_what_is_taught_reads_back_as_the_truth_and_ends_the_text(family):
    from support import noise_image

    loaded = tiny(family)
    prompt = loaded.family.encode(sample("the cat", noise_image(200, 120), truth=Truth(boxes=(CAT,))))
    ids = target_ids(prompt, loaded.family)
    assert ids[-1] == loaded.tokenizer.eos_token_id and loaded.tokenizer.eos_token_id not in ids[:-1]
    answer = read_answer(loaded.tokenizer.decode(ids[:-1]), prompt.sample, prompt.box_map)
    assert answer.well_formed and answer.failure is None
    assert answer.value[0].box == pytest.approx(CAT.box, abs=0.5)
