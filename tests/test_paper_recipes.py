"""The recipes of the paper, and those of scenes, run: on data that prepare.sh makes of miniature originals."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from paper_data import write_paper_data
from support import save_tiny, scratch

from vlm_r1.config import ModelConfig, Recipe
from vlm_r1.config_file import load_config
from vlm_r1.data.source import load_source
from vlm_r1.eval.run import evaluate_model
from vlm_r1.plan.machine import gpu_bytes
from vlm_r1.rl import loop
from vlm_r1.runtime.runlog import read_eval, read_metrics
from vlm_r1.sft import train as sft

ROOT = Path(__file__).resolve().parent.parent
PAPER = sorted((ROOT / "recipes" / "paper").glob("*.yaml"))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder in which recipes/paper/prepare.sh has run, the commands going to this interpreter."""
    folder = tmp_path_factory.mktemp("paper")
    write_paper_data(folder)
    command = folder / "bin" / "vlm-r1"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -c "from vlm_r1.cli import main; main()" "$@"\n')
    command.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT / "src"),
    }
    script = ROOT / "recipes" / "paper" / "prepare.sh"
    run = subprocess.run(["sh", str(script)], cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    return folder


def small(recipe: Recipe, run_dir: Path, **model) -> Recipe:
    """The recipe with a tiny model and few short answers; data, rewards and method stay."""
    changed = {
        "model": ModelConfig(gradient_checkpointing=recipe.model.gradient_checkpointing, **model),
        "rollout": recipe.rollout.model_copy(update={"max_new_tokens": 6}),
        "rl": recipe.rl.model_copy(update={"group_size": 2, "prompts_per_step": 2}),
        "sft": recipe.sft.model_copy(update={"images_per_step": 2}),
        "eval": recipe.eval.model_copy(update={"max_new_tokens": 6, "every": 0, "resamples": 5}),
        "run": recipe.run.model_copy(update={"dir": str(run_dir), "steps": 1, "save_every": 1, "threads": 1}),
    }
    return recipe.model_copy(update=changed)


@pytest.mark.parametrize("file", PAPER, ids=lambda file: file.stem)
def test_the_data_of_every_recipe_is_what_prepare_makes(prepared, monkeypatch, file):
    monkeypatch.chdir(prepared)
    recipe = load_config(file)
    for source in (*recipe.data.train, *recipe.data.eval.values()):
        samples = load_source(source)
        assert len(samples) and samples[0].images[0].size == (64, 48)
        assert samples[0].task == ("ovd" if "ovd" in file.stem else "rec")
    assert set(recipe.eval.suites) <= set(recipe.data.eval)
    header = file.read_text(encoding="utf-8").partition("\nm")[0]
    assert "original data and GPUs" in header and "prepare.sh" in header


@pytest.mark.parametrize("file", PAPER, ids=lambda file: file.stem)
def test_the_papers_hyper_parameters(file):
    recipe = load_config(file)
    size = next((size for size in ("7b", "32b") if f"-{size}" in file.stem), "3b").upper()
    assert recipe.model.path == f"Qwen/Qwen2.5-VL-{size}-Instruct"
    assert recipe.optim.lr == (1e-5 if recipe.lora else 1e-6)
    if recipe.method == "grpo":
        assert (recipe.rl.group_size, recipe.rl.iterations, recipe.rollout.temperature) == (8, 1, 0.9)
        assert recipe.rl.beta == (0.0 if "ovd" in file.stem else 0.04)


@pytest.mark.parametrize("file", PAPER, ids=lambda file: file.stem)
def test_the_header_names_the_gpus_and_how_their_memory_is_planned(file):
    header, recipe = file.read_text(encoding="utf-8").partition("\nm")[0], load_config(file)
    planned = re.search(rf"`vlm-r1 plan recipes/paper/{file.name} --gpus (\d+) --gpu-memory (\w+)`", header)
    assert planned, "the command that finds the peak memory of one GPU"
    assert int(planned[1]) % (recipe.run.shard_size or 1) == 0 and gpu_bytes(planned[2])
    machines = re.search(r"sbatch --nodes (\d+)", header)
    assert int(planned[1]) == 8 * int(machines[1]) if machines else f"--processes {planned[1]}" in header


@pytest.mark.parametrize("small, large", [("rec", "rec-7b"), ("rec", "rec-32b"), ("ovd", "ovd-7b"), ("ovd", "ovd-32b")])
def test_larger_models_differ_by_model_and_run_alone(small, large):
    one, other = (load_config(PAPER[0].with_name(f"{name}.yaml")).model_dump() for name in (small, large))
    assert {key for key in one if one[key] != other[key]} == {"model", "run"}
    assert {key for key in one["run"] if one["run"][key] != other["run"][key]} == {"dir"}


@pytest.mark.parametrize("name", ["rec", "ovd"])
def test_reinforcement_learning_runs(prepared, monkeypatch, tmp_path, name):
    monkeypatch.chdir(prepared)
    recipe = load_config(ROOT / "recipes" / "paper" / f"{name}.yaml")
    run = small(recipe, tmp_path / "run", init="scratch", scratch=scratch("qwen2_5_vl"))
    loop.train(run)
    (line,) = read_metrics(tmp_path / "run")
    assert {f"rewards/{part}/mean" for part in recipe.rewards.parts} <= line.keys()
    after = read_eval(tmp_path / "run")["after"]
    assert set(after) == set(recipe.data.eval)
    wanted = {"rec": {"lisa": "acc@0.5"}, "ovd": {"coco_filtered": "GP", "ovdeval": "nms_ap/color"}}[name]
    assert all(metric in after[split] for split, metric in wanted.items()), after


@pytest.mark.parametrize("name", ["rec_sft", "ovd_sft"])
def test_the_supervised_counterpart_runs_and_is_evaluated(prepared, monkeypatch, tmp_path, name):
    monkeypatch.chdir(prepared)
    recipe = load_config(ROOT / "recipes" / "paper" / f"{name}.yaml")
    run = small(recipe, tmp_path / "run", init="scratch", scratch=scratch("qwen2_5_vl"))
    final = sft.train(run)
    assert set(read_eval(tmp_path / "run")) == {"before", "after"}
    metrics = evaluate_model(run.model_copy(update={"model": ModelConfig(path=str(final))}), tmp_path / "eval.json")
    assert set(metrics) == set(recipe.data.eval)
    assert (tmp_path / "eval.parquet").is_file()


@pytest.mark.parametrize(("name", "metric"), [("ovd", "mAP"), ("custom_reward", "acc@0.5")])
def test_recipes_on_scenes_train_and_their_table_appears(monkeypatch, tmp_path, name, metric):
    monkeypatch.chdir(ROOT)
    recipe = load_config(ROOT / "recipes" / "scenes" / f"{name}.yaml", ["data.eval.in_domain.scenes.n=8"])
    loop.train(small(recipe, tmp_path / "run", path=str(save_tiny(tmp_path / "tiny"))))
    (line,) = read_metrics(tmp_path / "run")
    assert {f"rewards/{part}/mean" for part in recipe.rewards.parts} <= line.keys()
    assert {f"shadow/{part}/mean" for part in recipe.rewards.shadow} <= line.keys()
    found = read_eval(tmp_path / "run")
    assert all(metric in found[phase]["in_domain"] for phase in ("before", "after"))


def test_the_custom_reward_is_ten_lines_and_right():
    import ast
    import importlib.util

    from vlm_r1.records import Answer, LabelledBox, Sample, Truth

    file = ROOT / "recipes" / "scenes" / "my_reward.py"
    (function,) = [n for n in ast.parse(file.read_text()).body if isinstance(n, ast.FunctionDef)]
    body = [n for n in function.body if not isinstance(n, ast.Expr)]
    assert body[-1].end_lineno - body[0].lineno + 1 <= 10
    spec = importlib.util.spec_from_file_location("my_reward", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    asked = Sample(id="", question="", truth=Truth(boxes=(LabelledBox(box=(0, 0, 30, 40)),)))
    # A true box with a diagonal of 50; centres 0, 25 and 100 away.
    boxes = [(10, 10, 20, 30), (0, 25, 30, 65), (100, 0, 130, 40)]
    answers = [Answer(raw="", value=(LabelledBox(box=box),)) for box in boxes] + [Answer(raw="")]
    other = Sample(id="", question="", truth=Truth(text="x"))
    scores = module.near_centre(
        completions=[""] * 5, samples=[asked] * 4 + [other], answers=[*answers, answers[0]], prompts=[]
    )
    assert scores == [1.0, 0.5, 0.0, 0.0, None]


def test_the_headers_state_what_the_results_hold():
    """benchmarks/plan_recipes.py writes both."""
    rows = json.loads((ROOT / "docs" / "results" / "plan_recipes.json").read_text())["rows"]
    assert {row["recipe"] for row in rows} == {str(file.relative_to(ROOT)) for file in PAPER}
    for row in rows:
        text = (ROOT / row["recipe"]).read_text()
        where = "(" if row["overrides"] else f"--gpus {row['gpus']} --gpu-memory {row['gpu_memory_gib']}`: "
        assert f"{where}{row['peak_gib']} GiB" in text, row
        assert row["fits"], row
