"""Two processes make the run of one. What else may differ between numbers of processes is in the slow tests."""

import pytest
from distributed.conftest import EVAL, make
from distributed.running import assert_same_run, run_all


@pytest.fixture(scope="module")
def runs(model_folder, rewards, tmp_path_factory):
    """Number of processes -> name -> run folder."""
    folder = tmp_path_factory.mktemp("runs")
    recipes = {
        "grpo": make(model_folder, rewards, rl={"beta": 0.02}, **EVAL),
        "lora": make(model_folder, rewards, train={"language": "lora"}),
        "sft": make(model_folder, rewards, "sft", **EVAL),
    }
    return {n: run_all(recipes, n, folder / str(n)) for n in (1, 2)}


@pytest.mark.parametrize("name", ["grpo", "lora", "sft"])
def test_the_same_run(runs, name):
    assert_same_run(runs[1][name], runs[2][name])
