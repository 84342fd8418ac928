"""The shipped model and the demo, as a new user meets them."""

from pathlib import Path

import pytest
from support import PLAIN, answered
from transformers import AutoModelForImageTextToText

import vlm_r1
from vlm_r1.cli import main
from vlm_r1.config import ModelConfig, ScenesSource
from vlm_r1.data.scenes import load_scenes
from vlm_r1.demo import demo_recipe, run_demo
from vlm_r1.eval.run import read_rollouts
from vlm_r1.models.load import load_policy, prompt_of_model
from vlm_r1.runtime.runlog import read_eval, read_metrics
from vlm_r1.runtime.runlog import read_rollouts as read_rows

ASSETS = Path(vlm_r1.__file__).parent / "assets"


def test_the_shipped_weights_are_small_and_load_in_transformers():
    assert sum(file.stat().st_size for file in ASSETS.rglob("*") if file.is_file()) < 24_000_000
    model = AutoModelForImageTextToText.from_pretrained(ASSETS / "tiny")
    assert 2e6 < sum(p.numel() for p in model.parameters()) < 6e6
    assert prompt_of_model("tiny").template == "plain"


def test_the_shipped_model_mostly_answers_in_form_and_finds_things():
    loaded = load_policy(ModelConfig(path="tiny"), PLAIN)
    samples = load_scenes(ScenesSource(split="in_domain", n=48))[:]
    prompts = [loaded.family.encode(sample) for sample in samples]
    answers = [read_rollouts(g)[0] for g in answered(loaded, prompts, 1, seed=None, max_new_tokens=64)]
    assert sum(answer.well_formed for answer in answers) >= 44
    assert sum(answer.failure is None for answer in answers) >= 40


def test_two_steps_of_the_demo_leave_a_whole_run_folder(tmp_path, monkeypatch, capsys):
    short = demo_recipe(tmp_path / "run", 0, 2)
    data = short.data.model_copy(
        update={"eval": {k: s.model_copy(update={"sampling": "first:8"}) for k, s in short.data.eval.items()}}
    )
    short = short.model_copy(update={"data": data})
    monkeypatch.setattr("vlm_r1.demo.demo_recipe", lambda out, seed, steps: short)
    run_dir = run_demo(tmp_path / "run")
    found = read_eval(run_dir)
    assert {(phase, split) for phase in found for split in found[phase]} == {
        (phase, split) for phase in ("before", "after") for split in ("in_domain", "out_of_domain")
    }
    assert len(read_metrics(run_dir)) == 2
    assert (run_dir / "final" / "model.safetensors").is_file()
    assert (run_dir / "report.html").stat().st_size > 10_000
    out = capsys.readouterr().out
    assert "report" in out and "in_domain" in out.replace("-", "_").lower()
    assert short.run.log_rollouts_every > 2 or read_rows(run_dir, 2)


def test_predict_prints_and_draws(tmp_path, capsys):
    sample = load_scenes(ScenesSource(split="in_domain", n=1))[0]
    sample.images[0].open().save(tmp_path / "scene.png")
    with pytest.raises(SystemExit) as ended:
        main(["predict", "tiny", str(tmp_path / "scene.png"), sample.question, "--out", str(tmp_path / "out.png")])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert "think:" in out and "answer:" in out and (tmp_path / "out.png").is_file()
