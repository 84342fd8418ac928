"""A question from the form to the columns, without a browser: what is wrong with the form is told, never raised."""

import pytest
import torch

from vlm_r1.play.images import example_scenes
from vlm_r1.play.playground import Form
from vlm_r1.rollout.native import NativeEngine


@pytest.fixture
def form(playground):
    """The first scene with its question."""
    sample = example_scenes()[0]
    path = playground.images.folder / "scene.png"
    sample.images[0].open().save(path)
    return {"image": {"path": str(path)}, "question": sample.question, "limit": 40}


def last(playground, form, **changes):
    return list(playground.ask(Form(**form | changes), "tab"))[-1]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"image": None}, "There is no image"),
        ({"image": {"path": "/etc/passwd"}}, "was not uploaded here"),
        ({"question": "  "}, "There is no question"),
        ({"question": None}, "There is no question"),
        ({"task": "nonsense"}, 'unknown task "nonsense"'),
        ({"truth": "left"}, 'The true box "left" cannot be read'),
        ({"truth": "0,0,500,9"}, "reaches out of the image, which has 96 x 96 pixels"),
        ({"template": "r2"}, 'did you mean "r1"'),
        ({"limit": 0}, "The longest answer 0 is not an integer from 1 to 8192"),
        ({"limit": None}, "The longest answer None is not an integer"),
        ({"greedy": False, "n": 99}, "The number of samples 99 is not an integer from 1 to 32"),
        ({"greedy": False, "n": float("nan")}, "The number of samples nan"),
        ({"greedy": False, "temperature": 0}, "The temperature 0 is not a number from 0.01 to 5"),
        ({"greedy": False, "seed": "-1"}, "The seed -1 is not an integer"),
        ({"greedy": False, "seed": "x"}, "The seed x is not an integer"),
        ({"truth": "1,2,3,4", "rewards": ["llm_judge"]}, 'There is no reward "llm_judge" here'),
        ({"question": "what is <|image_pad|>?"}, "placeholder"),
    ],
)
def test_what_is_wrong_with_the_form_is_told(playground, form, changes, told):
    view = last(playground, form, **changes)
    assert view.error and not view.busy and told in view.status
    assert str(playground.images.folder) not in view.status and "sample question" not in view.status


def test_samples_have_the_rewards_of_the_task_or_the_chosen_ones(playground, form):
    given = form | {"greedy": False, "n": 3, "seed": "7", "truth": "35, 9, 52, 26"}
    views = list(playground.ask(Form(**given), "tab"))
    assert views[-1].status == "Done." and views[0].busy and not views[-1].busy
    [column] = views[-2].columns
    assert [[name for name, _, _ in card.bars] for card in column.cards] == [["iou", "format"]] * 3
    assert column.note.startswith("3 answers, temperature 1, seed 7") and column.key
    [column] = list(playground.ask(Form(**given | {"rewards": ["giou", "repetition"]}), "tab"))[-2].columns
    assert [[name for name, _, _ in card.bars] for card in column.cards] == [["giou", "repetition"]] * 3
    [column] = list(playground.ask(Form(**given | {"truth": ""}), "tab"))[-2].columns
    assert [card.bars for card in column.cards] == [()] * 3 and not column.key


def test_a_blank_seed_is_another_each_time_and_is_told(playground, form):
    notes = {
        list(playground.ask(Form(**form | {"greedy": False, "n": 1, "seed": seed}), "tab"))[-2]
        .columns[0]
        .note.split(",")[2]
        for seed in (None, "", " ")
    }
    assert len(notes) > 1 and all(note.startswith(" seed ") for note in notes)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RuntimeError("boom"), "failed inside the program (RuntimeError)"),
        (torch.OutOfMemoryError(), "ran out of memory"),
    ],
)
def test_a_failure_inside_is_told_without_a_trace_and_logged(playground, form, monkeypatch, caplog, error, told):
    def fail(*args, **settings):
        raise error

    monkeypatch.setattr(NativeEngine, "generate", fail)
    view = last(playground, form)
    assert view.error and told in view.status and "boom" not in view.status
    assert [(column.note, column.busy, column.cards) for column in view.columns] == [("No answer.", False, ())]
    assert ("boom" in caplog.text) == (str(error) == "boom")
    monkeypatch.undo()
    assert last(playground, form).status == "Done."  # the next question is answered


def test_stop_ends_only_the_tab_that_asked(playground, form, slowly):
    asking = playground.ask(Form(**form), "tab")
    next(asking), next(asking)
    playground.stop("another tab")
    assert next(asking).busy
    playground.stop("tab")
    *_, finished, ended = asking
    assert ended.status == "Stopped." and ended.columns == (None,)
    assert finished.columns[0].note.endswith("stopped") and not finished.columns[0].busy


def test_a_model_that_was_not_asked_before_the_stop_is_not_asked(playground, speaker, form, slowly):
    playground.speakers = [speaker, speaker]
    asking = playground.ask(Form(**form), "tab")
    next(asking), next(asking)
    playground.stop("tab")
    *_, ended = asking
    assert ended.columns[0] is None and ended.columns[1].note == "Not asked."


def test_two_models_answer_one_after_the_other_in_their_own_columns(playground, speaker, form):
    playground.speakers = [speaker, speaker]
    views = list(playground.ask(Form(**form), "tab"))
    changed = [tuple(column is not None for column in view.columns) for view in views]
    assert changed[0] == (True, True) and changed[-1] == (False, False)
    middle = changed[1:-1]
    assert middle == sorted(middle, reverse=True) and {(True, False), (False, True)} == set(middle)
