"""A run that reads its batches ahead is, bit for bit, the run that reads each when it is needed."""

import pytest
from distributed.conftest import EVAL, make
from distributed.running import assert_same_run, run_all

from vlm_r1.distributed.whole import read_state

pytestmark = pytest.mark.slow

NAMES = ("grpo", "dapo", "frozen", "sft")


@pytest.fixture(scope="module", params=[1, 2])
def runs(request, model_folder, rewards, tmp_path_factory):
    """Name -> run folders, with and without reading ahead."""
    folder = tmp_path_factory.mktemp("runs")
    recipes = {
        "grpo": make(model_folder, rewards, **EVAL),
        "dapo": make(model_folder, rewards, "grpo", "some", rl={"algorithm": "dapo"}),
        "frozen": make(model_folder, rewards, train={"vision": "frozen", "connector": "frozen"}),
        "sft": make(model_folder, rewards, "sft", **EVAL),
    }
    ahead = run_all(recipes, request.param, folder / "ahead")
    plain = run_all(recipes, request.param, folder / "plain", "--no-prefetch")
    return {name: (ahead[name], plain[name]) for name in recipes}


@pytest.mark.parametrize("name", NAMES)
def test_the_same_run_to_the_last_bit(runs, name):
    ahead, plain = runs[name]
    assert_same_run(ahead, plain, tolerance=0.0)
    states = [read_state(run / "checkpoint-5") for run in (ahead, plain)]
    assert states[0] == states[1]
