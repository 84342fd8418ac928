"""Several processes agree on the best step, keep its checkpoint, stop early and load it at the end."""

import json

import pytest
from distributed.conftest import make
from distributed.running import assert_same_run, run_all

from vlm_r1.distributed.whole import list_checkpoints

pytestmark = pytest.mark.slow
OPTIONS = {"every": 1, "keep_best": "held/acc@0.5", "early_stopping_patience": 2, "load_best_at_end": True}


@pytest.fixture(scope="module")
def runs(model_folder, rewards, tmp_path_factory):
    sections = {
        "data": {"eval": {"held": {"scenes": {"split": "in_domain", "n": 3}}}},
        "eval": {"max_new_tokens": 4, "resamples": 0} | OPTIONS,
        "run": {"steps": 5, "save_every": 9, "keep": 1},
    }
    recipes = {
        "grpo": make(model_folder, rewards, **sections),
        "sft": make(model_folder, rewards, "sft", **sections),
    }
    folder = tmp_path_factory.mktemp("runs")
    return {n: run_all(recipes, n, folder / str(n)) for n in (1, 2)}


@pytest.mark.parametrize("name", ["grpo", "sft"])
def test_two_processes_end_as_one(runs, name):
    one, two = runs[1][name], runs[2][name]
    assert_same_run(one, two)
    phases = json.loads((two / "eval.json").read_text())
    # the answers of 4 tokens hold no box: the first evaluation stays the best, and two later ones are not better
    assert set(phases) == {"before", "step-1", "step-2", "step-3", "after"} and phases["after"] == phases["step-1"]
    assert [path.name for path in list_checkpoints(two)] == ["checkpoint-1", "checkpoint-3"]
