"""Stop on one number of processes, go on with another; kill at any moment, while a checkpoint is written too."""

import json
import random
import shutil
import subprocess
import sys

import pytest
import torch
from distributed.conftest import make
from distributed.running import SCRIPTS, assert_same_run, run_all, torchrun, weights, with_folder
from safetensors import safe_open

from vlm_r1.config_file import resolved_yaml
from vlm_r1.distributed.whole import list_checkpoints


@pytest.fixture(scope="module")
def recipes(model_folder, rewards):
    kept = {"run": {"steps": 5, "save_every": 1, "keep": 5}}
    return {
        "grpo": make(model_folder, rewards, rl={"beta": 0.02}, **kept),
        "lora": make(model_folder, rewards, train={"language": "lora"}, **kept),
        "sft": make(model_folder, rewards, "sft", **kept),
    }


@pytest.fixture(scope="module")
def never_stopped(recipes, tmp_path_factory):
    return run_all(recipes, 1, tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="module")
def resized(recipes, tmp_path_factory):
    """Two steps on 2 processes, two more on 1, the last on 4."""
    folder = tmp_path_factory.mktemp("resized")
    for processes, steps in ((2, 2), (1, 4), (4, 5)):
        found = run_all(recipes, processes, folder, steps=steps)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["grpo", "lora", "sft"])
def test_the_trajectory_of_a_run_never_stopped(never_stopped, resized, name):
    assert_same_run(never_stopped[name], resized[name])


@pytest.mark.slow
def test_a_checkpoint_holds_every_value_once_whoever_wrote_it(never_stopped, resized):
    """The shards of two processes, put together, are what one process wrote."""
    one, two = (list_checkpoints(runs["grpo"])[1] for runs in (never_stopped, resized))
    assert one.name == two.name == "checkpoint-2"
    assert len(list(one.glob("*.safetensors"))) == 1 and len(list(two.glob("*.safetensors"))) == 2
    whole = _tensors(one)
    parts = _tensors(two)
    assert whole.keys() == parts.keys()
    assert any(name.endswith(".exp_avg_sq") for name in whole)
    for name, size in whole.items():
        assert size == parts[name], name
    assert not list(one.parent.glob("checkpoint-*/*.pt")) + list(one.parent.glob("checkpoint-*/.metadata"))


def _tensors(checkpoint) -> dict[str, int]:
    """Name -> number of values, over all files."""
    found: dict[str, int] = {}
    for file in checkpoint.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  # not a mapping
                found[name] = found.get(name, 0) + tensors.get_tensor(name).numel()
    return found


def killed(recipe, folder, processes: int, shares: list[float], how: str = "SIGKILL") -> list[str]:
    file = folder / "recipe.yaml"
    file.write_text(resolved_yaml(recipe))
    command = [sys.executable, str(SCRIPTS / "kill_ranks.py"), str(file), str(folder), str(processes), how]
    done = subprocess.run([*command, *map(str, shares)], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.split()


@pytest.mark.slow
def test_two_kills_of_two_processes_change_nothing(model_folder, rewards, tmp_path):
    run = make(model_folder, rewards, run={"steps": 6, "save_every": 1, "log_rollouts_every": 0})
    assert killed(run, tmp_path, 2, [0.4, 0.75]) == ["same"] * 2


@pytest.mark.slow
@pytest.mark.parametrize("method", ["grpo", "sft"])
def test_two_processes_that_a_scheduler_stops_lose_no_step(model_folder, rewards, tmp_path, method):
    run = make(model_folder, rewards, method, run={"steps": 8, "save_every": 100, "log_rollouts_every": 0})
    assert killed(run, tmp_path, 2, [0.6], "SIGTERM") == ["same"]


@pytest.mark.campaign
def test_twenty_kills_of_two_processes_change_nothing(model_folder, rewards, tmp_path):
    random.seed(11)
    run = make(model_folder, rewards, run={"steps": 8, "save_every": 1, "log_rollouts_every": 0})
    assert killed(run, tmp_path, 2, [random.uniform(0.1, 1) for _ in range(20)]) == ["same"] * 20


@pytest.mark.slow
def test_a_copy_is_written_while_training_goes_on(model_folder, rewards, tmp_path):
    """What a checkpoint holds are the weights of its step, though they changed while it was written."""
    run = with_folder(make(model_folder, rewards, optim={"lr": 1e-2}, run={"save_every": 1, "keep": 9}), tmp_path / "a")
    (tmp_path / "recipe.yaml").write_text(resolved_yaml(run))
    torchrun(2, "slow_writing.py", str(tmp_path / "recipe.yaml"))
    states = [json.loads((c / "state.json").read_text()) for c in list_checkpoints(tmp_path / "a")]
    assert [state["step"] for state in states] == [1, 2, 3, 4, 5]
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    for later in list_checkpoints(tmp_path / "b")[2:]:
        shutil.rmtree(later)
    again = with_folder(run, tmp_path / "b")
    (tmp_path / "again.yaml").write_text(resolved_yaml(again))
    torchrun(2, "run_recipes.py", str(tmp_path / "again.yaml"))
    ours, theirs = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
