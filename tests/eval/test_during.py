"""Runs that keep their best checkpoint, stop early, and end with the best model; resumed ones do the same."""

import shutil

import pytest
from safetensors.torch import load_file
from support import names, recipe, save_tiny, untimed

from vlm_r1.errors import CheckpointError
from vlm_r1.eval import during
from vlm_r1.report.runs import list_runs
from vlm_r1.rl import loop
from vlm_r1.runtime.runlog import read_eval
from vlm_r1.sft import train as sft

TRAIN = {"grpo": loop.train, "sft": sft.train}
VALUES = {
    "before": 0.1,
    "step-1": 0.2,
    "step-2": 0.6,
    "step-3": 0.4,
    "step-4": 0.6,
    "step-5": 0.7,
    "step-6": 0.1,
    "after": 0.3,
}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    (folder / "score.py").write_text("def score(completions, **_): return [sum(map(ord, c)) % 7 for c in completions]")
    return save_tiny(folder / "tiny")


@pytest.fixture
def asked(monkeypatch):
    """Evaluations find `VALUES`; the list keeps their phases."""
    phases = []

    def evaluate(engine, family, splits, settings, world, *, version, phase):
        phases.append(phase)
        return {"held": {"n": 2.0, "mean_iou": VALUES[phase], "mean_iou/low": 0.0, "mean_iou/high": 1.0}}, []

    monkeypatch.setattr(during, "evaluate", evaluate)
    return phases


def settings(model_folder, run_dir, method="grpo", steps=6, **options):
    return recipe(
        model_folder,
        run_dir,
        method,
        data={"eval": {"held": {"scenes": {"split": "in_domain", "n": 2}}}},
        eval={"every": 1, "keep_best": "held/mean_iou"} | options,
        optim={"lr": 1e-2},
        rewards={"parts": {str(model_folder.parent / "score.py") + ":score": 1.0}},
        run={"steps": steps, "save_every": 9, "keep": 1},
    )


def checkpoints(run_dir):
    return [name for name in names(run_dir) if name.startswith("checkpoint-")]


def weights(run_dir):
    return (run_dir / "final" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("method", sorted(TRAIN))
def test_the_best_checkpoint_stays_beside_the_last_and_the_run_stops_early(
    model_folder, tmp_path, asked, method, capsys
):
    run = settings(model_folder, tmp_path / "run", method, early_stopping_patience=2)
    TRAIN[method](run)
    assert asked == ["before", "step-1", "step-2", "step-3", "step-4"]
    assert checkpoints(tmp_path / "run") == ["checkpoint-2", "checkpoint-4"]
    assert read_eval(tmp_path / "run")["after"] == read_eval(tmp_path / "run")["step-4"]
    said = capsys.readouterr().err
    assert "step-2: held: mean_iou 0.6000 (0.000 to 1.000), n 2\n" in said
    assert "held/mean_iou: highest at step 2 (0.6000)\n" in said
    assert "held/mean_iou: highest at step 2 (0.6000); stopping early\n" in said
    assert list_runs(tmp_path)[0].state == "finished"
    before = weights(tmp_path / "run")
    TRAIN[method](run)  # it has ended: nothing more is trained or asked
    assert asked[5:] == [] and weights(tmp_path / "run") == before


def test_without_keep_best_nothing_of_it_happens(model_folder, tmp_path, asked):
    loop.train(settings(model_folder, tmp_path / "run", steps=3, keep_best=None))
    assert checkpoints(tmp_path / "run") == ["checkpoint-3"] and asked == ["before", "step-1", "step-2", "after"]


@pytest.mark.parametrize("method", sorted(TRAIN))
def test_final_is_the_best_model_where_that_is_asked_for(model_folder, tmp_path, asked, method):
    last, best = tmp_path / "last", tmp_path / "best"
    TRAIN[method](settings(model_folder, last, method, steps=4))
    TRAIN[method](settings(model_folder, best, method, steps=4, load_best_at_end=True))
    TRAIN[method](settings(model_folder, tmp_path / "two", method, steps=2))
    assert checkpoints(last) == checkpoints(best) == ["checkpoint-2", "checkpoint-4"]
    assert weights(best) == weights(tmp_path / "two") != weights(last)
    assert read_eval(best)["after"] == read_eval(best)["step-2"] and read_eval(last)["after"]["held"]["mean_iou"] == 0.6
    TRAIN[method](settings(model_folder, best, method, steps=6, load_best_at_end=True))  # it goes on from its last step
    TRAIN[method](settings(model_folder, last, method, steps=6))
    assert checkpoints(best) == ["checkpoint-5", "checkpoint-6"]
    kept = [load_file(next((run / "checkpoint-6").glob("*.safetensors"))) for run in (best, last)]
    assert all((kept[0][name] == kept[1][name]).all() for name in kept[1])


@pytest.mark.parametrize("lost", ["checkpoint-4", "final"])
def test_a_run_that_was_stopped_ends_as_one_that_was_not(model_folder, tmp_path, asked, lost):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    options = {"early_stopping_patience": 2, "load_best_at_end": True}
    loop.train(settings(model_folder, whole, **options))
    loop.train(settings(model_folder, stopped, **options))
    shutil.rmtree(stopped / "final")
    if lost != "final":
        shutil.rmtree(stopped / lost)
    loop.train(settings(model_folder, stopped, **options))
    assert weights(whole) == weights(stopped) and untimed(whole) == untimed(stopped)
    assert checkpoints(whole) == checkpoints(stopped) and read_eval(whole) == read_eval(stopped)


def test_a_best_checkpoint_that_is_gone_is_said(model_folder, tmp_path, asked):
    run = tmp_path / "run"
    loop.train(settings(model_folder, run, steps=4))
    shutil.rmtree(run / "checkpoint-2")
    with pytest.raises(CheckpointError, match=r"checkpoint-2: is not there .*load_best_at_end: false"):
        loop.train(settings(model_folder, run, steps=4, load_best_at_end=True))
