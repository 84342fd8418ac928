"""The best evaluation of a run, told from its eval.json."""

import json

import pytest

from vlm_r1.config import Recipe
from vlm_r1.eval.best import find_best, is_stale

VALUES = {"before": 0.9, "step-2": 0.3, "step-4": 0.5, "step-6": 0.5, "step-10": 0.4, "step-8": None, "after": 0.8}


@pytest.fixture
def run_dir(tmp_path):
    content = {phase: {"held": {"n": 3, "mean_iou": value}, "far": {"n": 1}} for phase, value in VALUES.items()}
    (tmp_path / "eval.json").write_text(json.dumps(content))
    return tmp_path


def settings(patience=None, **options):
    data = {"eval": {"held": {"scenes": {}}, "far": {"scenes": {}}}}
    options = {"keep_best": "held/mean_iou", "every": 2, "early_stopping_patience": patience} | options
    return Recipe.model_validate({"data": data, "eval": options})


@pytest.mark.parametrize(
    ("done", "expected"),
    [(1, None), (2, (2, 0.3, 0)), (3, (2, 0.3, 0)), (4, (4, 0.5, 0)), (6, (4, 0.5, 1)), (99, (4, 0.5, 2))],
)
def test_the_first_of_the_highest_up_to_the_steps_done(run_dir, done, expected):
    found = find_best(run_dir, settings(), done)
    assert (None if found is None else (found.step, found.value, found.later)) == expected


def test_without_evaluations_or_the_setting_there_is_none(run_dir, tmp_path):
    assert find_best(tmp_path / "nothing", settings(), 9) is None
    assert find_best(run_dir, Recipe(), 9) is None
    assert find_best(run_dir, settings(keep_best="far/mean_iou"), 9) is None


@pytest.mark.parametrize(("patience", "stale"), [(None, False), (1, True), (2, True), (3, False)])
def test_a_run_is_stale_after_so_many_evaluations_without_a_higher_value(run_dir, patience, stale):
    recipe = settings(patience)
    assert is_stale(find_best(run_dir, recipe, 10), recipe) is stale
    assert not is_stale(None, recipe)
