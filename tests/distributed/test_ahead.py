"""Answers ahead of the update on several processes: the same run on any number, and an engine lost on one of them."""

import json
import shutil

import pytest
from apart import SERVED
from distributed.conftest import EVAL, make
from distributed.running import assert_same_run, torchrun, with_folder

from vlm_r1.config_file import resolved_yaml
from vlm_r1.distributed.whole import list_checkpoints
from vlm_r1.runtime.runlog import read_metrics

KEPT = {"run": {"steps": 5, "save_every": 1, "keep": 5}}


def ahead(recipe, processes, run_dir, *options, check=True):
    file = run_dir.parent / "recipe.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(resolved_yaml(with_folder(recipe, run_dir)))
    return torchrun(processes, "run_ahead.py", *options, str(file), check=check)


@pytest.fixture(scope="module")
def recipe(model_folder, rewards):
    return make(model_folder, rewards, rollout=SERVED | {"staleness": 1}, **EVAL, **KEPT)


@pytest.fixture(scope="module")
def runs(recipe, tmp_path_factory):
    """Number of processes -> run folder."""
    found = {n: tmp_path_factory.mktemp(str(n)) / "run" for n in (1, 2)}
    for n, run_dir in found.items():
        ahead(recipe, n, run_dir)
    return found


@pytest.mark.slow
def test_the_same_run(runs):
    assert_same_run(runs[1], runs[2])
    assert [line["rollout/staleness"] for line in read_metrics(runs[2])] == [0, 1, 1, 1, 1]


@pytest.mark.slow
def test_another_number_of_processes_takes_over_the_groups_that_are_there(runs, recipe, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(runs[2], run_dir)
    for lost in ("checkpoint-4", "checkpoint-5", "final"):
        shutil.rmtree(run_dir / lost)
    state = json.loads((run_dir / "checkpoint-3" / "state.json").read_text())
    assert sorted((row["step"], row["number"]) for row in state["rollouts"]) == [(3, 0), (3, 1), (3, 2)]
    ahead(recipe, 1, run_dir)
    assert_same_run(runs[1], run_dir)
    assert read_metrics(run_dir)[3]["rollout/staleness"] == 1  # those of the checkpoint: asked again, it were 0


@pytest.mark.slow
@pytest.mark.parametrize("staleness", [0, 1])
def test_an_engine_lost_on_one_process_stops_all_after_they_have_saved(recipe, runs, tmp_path, staleness):
    settings = recipe.model_copy(update={"rollout": recipe.rollout.model_copy(update={"staleness": staleness})})
    settings = settings.model_copy(update={"run": settings.run.model_copy(update={"save_every": 5})})
    done = ahead(settings, 2, tmp_path / "run", "--lose", "3", check=False)
    assert done.returncode != 0 and "no server has answered" in done.stderr
    assert [c.name for c in list_checkpoints(tmp_path / "run")] == ["checkpoint-3"], done.stderr[-3000:]
    ahead(settings, 2, tmp_path / "run")
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [1, 2, 3, 4, 5]
