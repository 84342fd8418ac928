"""Two processes that ask one server, and write its weights together: the same run as one."""

import pytest
from apart import SERVED
from distributed.conftest import make
from distributed.running import assert_same_run, run_all
from fake_vllm import FakeVLLM
from support import tiny

pytestmark = pytest.mark.slow


def test_the_same_run(model_folder, rewards, tmp_path):
    with FakeVLLM(tiny()) as server:
        rollout = SERVED | {"servers": [server.url]}
        recipes = {f"k{k}": make(model_folder, rewards, rollout=rollout | {"staleness": k}) for k in (0, 1)}
        one, two = (run_all(recipes, n, tmp_path / str(n)) for n in (1, 2))
    loads = [path for path in server.log if path == "/update_weights"]
    assert len(loads) == 4 * (recipes["k0"].run.steps + 1)
    for name in recipes:
        assert_same_run(one[name], two[name])
