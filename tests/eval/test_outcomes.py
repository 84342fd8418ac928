import pytest

from vlm_r1.boxes import BoxMap
from vlm_r1.eval.outcomes import outcome, outcome_of_row
from vlm_r1.prompts.parse import read_answer
from vlm_r1.records import LabelledBox, Sample, Truth
from vlm_r1.runtime.runlog import read_samples, write_eval_samples


def sample(task, **truth):
    return Sample(id="s", question="q", truth=Truth(**truth), task=task, source="made/up")


def measured(sample, answer):
    return outcome(sample, read_answer(f"<think>t</think><answer>{answer}</answer>", sample, BoxMap(), n_tokens=7))


BOX = LabelledBox(box=(0.0, 0.0, 10.0, 10.0), label="cat")
DOG = LabelledBox(box=(20.0, 0.0, 30.0, 10.0), label="dog")


@pytest.mark.parametrize(
    ("answer", "iou", "correct"),
    [
        ("[0, 0, 10, 5]", 0.5, True),
        ("[0, 0, 10, 4.9]", 0.49, False),
        ("[[50, 50, 60, 60], [0, 0, 10, 10]]", 0.0, False),
        ("no idea", 0.0, False),
        ("None", 0.0, False),
    ],
)
def test_one_box(answer, iou, correct):
    found = measured(sample("rec", boxes=(BOX,)), answer)
    assert (found.kind, found.iou, found.score, found.correct) == ("box", iou, iou, correct)
    assert (found.well_formed, found.n_tokens, found.source) == (True, 7, "made/up")


def test_the_best_of_several_true_boxes_counts_and_nothing_there_can_be_right():
    assert measured(sample("reasoning", boxes=(DOG, BOX)), "[0, 0, 10, 10]").iou == 1.0
    assert measured(sample("rec", boxes=()), "None").correct is True
    assert measured(sample("rec", boxes=()), "[0, 0, 10, 10]").correct is False


@pytest.mark.parametrize(
    ("answer", "correct"),
    [
        ('[{"bbox_2d": [20, 0, 30, 10], "label": "Dog"}, {"bbox_2d": [0, 0, 10, 9], "label": "cat"}]', True),
        ('[{"bbox_2d": [0, 0, 10, 10], "label": "cat"}]', False),
        ('[{"bbox_2d": [20, 0, 30, 10], "label": "cat"}, {"bbox_2d": [0, 0, 10, 9], "label": "dog"}]', False),
        (
            '[{"bbox_2d": [20, 0, 30, 10], "label": "dog"}, {"bbox_2d": [0, 0, 10, 9], "label": "cat"},'
            ' {"bbox_2d": [0, 0, 10, 9], "label": "cat"}]',
            False,
        ),
        ("None", False),
    ],
)
def test_detection_is_correct_when_all_is_found_and_nothing_else(answer, correct):
    found = measured(sample("ovd", boxes=(BOX, DOG)), answer)
    assert (found.kind, found.iou, found.correct) == ("boxes", None, correct)


def test_nothing_to_find():
    assert measured(sample("ovd", boxes=()), "None").correct is True
    unreadable = measured(sample("ovd", boxes=()), "hm")
    assert (unreadable.correct, unreadable.failure, unreadable.predicted) == (False, "unreadable", ())


@pytest.mark.parametrize(
    ("task", "truth", "right", "wrong"),
    [
        ("choice", {"choice": "B"}, "(B)", "A or B"),
        ("yes_no", {"choice": "yes"}, "Yes", "no"),
        ("count", {"number": 3.0}, "3", "4"),
        ("number", {"number": 2.5}, "2.50", "2.6"),
        ("text", {"text": "Exit"}, "exit", "exits"),
        ("gui", {"boxes": (BOX,)}, "[5, 5]", "[15, 5]"),
    ],
)
def test_other_tasks_are_right_or_wrong(task, truth, right, wrong):
    for answer, correct in ((right, True), (wrong, False)):
        found = measured(sample(task, **truth), answer)
        assert (found.iou, found.score, found.correct) == (None, float(correct), correct)


def test_without_a_truth_there_is_no_verdict():
    found = measured(sample("choice", boxes=(BOX,)), "A")
    assert (found.score, found.correct) == (None, None)


def test_a_row_holds_the_outcome(tmp_path):
    row = {"split": "s", "sample_id": "1", "task": "ovd", "question": "q", "source": "ovdeval/color", "score": 0.25}
    row |= {"correct": None, "true_boxes": '[{"box": [0, 0, 10, 10], "label": "cat"}]', "failure": "unreadable"}
    write_eval_samples(tmp_path / "e.parquet", [row])
    (read,) = read_samples(tmp_path / "e.parquet", ["task", "source", "score", "correct", "true_boxes", "failure"])
    found = outcome_of_row(read)
    assert (found.kind, found.source, found.score, found.correct) == ("boxes", "ovdeval/color", 0.25, None)
    assert (found.true, found.predicted, found.failure) == ((BOX,), (), "unreadable")


def test_a_row_without_a_known_task_is_told_by_its_iou():
    assert outcome_of_row({"iou": 0.5, "correct": True}).kind == "box"
    assert outcome_of_row({"task": "of my own", "correct": True}).kind == "text"
