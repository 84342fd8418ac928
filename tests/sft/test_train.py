"""Supervised fine-tuning through the real loop."""

import math

import pytest
import torch
from support import plain_logprobs, plain_model, recipe, scratch

from vlm_r1.config import OptimConfig
from vlm_r1.data.scenes import load_scenes
from vlm_r1.errors import ConfigError
from vlm_r1.eval.run import evaluate_model
from vlm_r1.records import Rollout, RolloutGroup
from vlm_r1.runtime.optim import learning_rate
from vlm_r1.runtime.runlog import eval_path, read_eval, read_metrics, read_samples
from vlm_r1.runtime.session import open_session
from vlm_r1.sft.batch import ByImage, image_group
from vlm_r1.sft.targets import target_ids
from vlm_r1.sft.train import sft_step, train


@pytest.mark.parametrize("optimiser", [{"lr": 3e-3}, {"name": "muon", "lr": 3e-3}], ids=["adamw", "muon"])
def test_the_loss_falls_over_thirty_steps(tmp_path, optimiser):
    model = {"init": "scratch", "scratch": scratch()}
    run = {"steps": 30, "save_every": 30}
    final = train(recipe(tmp_path, tmp_path / "run", "sft", model=model, optim=optimiser, run=run))
    losses = [line["loss"] for line in read_metrics(tmp_path / "run")]
    assert final == tmp_path / "run" / "final" and len(losses) == 30
    assert losses[0] == pytest.approx(math.log(400), abs=1.5)  # nothing known yet: uniform over the vocabulary
    assert sum(losses[-5:]) / 5 < 0.6 * losses[0], losses


def test_a_steps_loss_is_the_mean_over_answer_tokens_whatever_the_budget(model_folder, tmp_path):
    norms = []
    for budget in (100_000, 120, 1):
        settings = {"token_budget": budget}
        with open_session(recipe(model_folder, tmp_path / str(budget), "sft", sft=settings)) as session:
            loaded = session.loaded
            images = ByImage(load_scenes(session.recipe.data.train[0].scenes))[:3]
            groups = [
                RolloutGroup(prompt=prompt, rollouts=(taught(prompt, loaded),))
                for prompt in (loaded.family.encode(one) for shown in images for one in shown)
            ]
            with torch.no_grad():
                expected = -plain_logprobs(plain_model(loaded), groups, loaded.policy.suppressed, 1.0)
            prefix_groups = [image_group(shown, loaded.family) for shown in images]
            metrics = sft_step(session, prefix_groups, 0).values()
        assert metrics["loss"] == pytest.approx(float(expected.mean()), rel=1e-5)
        assert metrics["tokens/answer"] == len(expected)
        norms.append(metrics["grad_norm"])
    assert norms == pytest.approx([norms[0]] * 3, rel=1e-4)


def taught(prompt, loaded) -> Rollout:
    ids = tuple(target_ids(prompt, loaded.family))
    return Rollout(token_ids=ids, logprobs=(0.0,) * len(ids), text="", finish="stop")


def test_the_learning_rate_follows_its_schedule(model_folder, tmp_path):
    optim = {"lr": 1e-3, "schedule": "linear", "warmup_steps": 2}
    train(recipe(model_folder, tmp_path / "run", "sft", optim=optim, run={"steps": 4}))
    found = [line["lr"] for line in read_metrics(tmp_path / "run")]
    assert found == pytest.approx([5e-4, 1e-3, 1e-3, 5e-4])


def test_schedules_by_hand():
    cosine = OptimConfig(lr=2.0, schedule="cosine")
    assert [learning_rate(cosine, s, 4) for s in range(5)] == pytest.approx(
        [2, 1 + math.sqrt(0.5), 1, 1 - math.sqrt(0.5), 0]
    )
    assert [learning_rate(OptimConfig(lr=2.0), s, 4) for s in (0, 3)] == [2, 2]
    warm = OptimConfig(lr=1.0, warmup_steps=9)
    assert learning_rate(warm, 2, 5) == pytest.approx(1 / 3)


def test_without_data_the_remedy_is_said(model_folder, tmp_path):
    with pytest.raises(ConfigError, match=r"data\.train: is empty"):
        train(recipe(model_folder, tmp_path / "run", "sft", data={"train": []}))


def test_held_out_questions_are_answered_before_during_and_after(model_folder, tmp_path):
    options = {
        "data": {"eval": {"held_out": {"scenes": {"split": "in_domain", "n": 3}}}},
        "eval": {"max_new_tokens": 4, "batch_size": 2, "every": 2},
    }
    run = {"steps": 5, "save_every": 2}
    train(recipe(model_folder, tmp_path / "run", "sft", run=run, **options))
    found = read_eval(tmp_path / "run")
    assert list(found) == ["before", "step-2", "step-4", "after"]
    assert all(splits["held_out"]["n"] == 3 for splits in found.values())
    rows = {phase: read_samples(eval_path(tmp_path / "run", phase)) for phase in found}
    assert all(len(questions) == 3 for questions in rows.values())
    assert rows["before"] != rows["after"]
    for model, phase in ((model_folder, "before"), (tmp_path / "run" / "final", "after")):
        alone = evaluate_model(recipe(model, tmp_path / "again", "sft", **options), tmp_path / f"{phase}.json")
        assert alone == found[phase]
        assert read_samples(tmp_path / f"{phase}.parquet") == rows[phase]


def test_a_run_that_is_continued_does_not_answer_before_again(model_folder, tmp_path):
    data = {"eval": {"held_out": {"scenes": {"split": "in_domain", "n": 1}}}}
    for steps in (1, 2):
        run = {"steps": steps, "save_every": 1}
        train(recipe(model_folder, tmp_path / "run", "sft", data=data, eval={"max_new_tokens": 2}, run=run))
        if steps == 1:
            before = read_eval(tmp_path / "run")["before"]
            (tmp_path / "run" / "eval-before.parquet").unlink()
    assert read_eval(tmp_path / "run")["before"] == before
    assert not (tmp_path / "run" / "eval-before.parquet").exists()


def test_training_is_the_same_whether_it_is_evaluated_or_not(model_folder, tmp_path):
    data = {"eval": {"held_out": {"scenes": {"split": "in_domain", "n": 1}}}}
    finals = []
    for name, options in (("plain", {}), ("evaluated", {"data": data, "eval": {"max_new_tokens": 2, "every": 1}})):
        train(recipe(model_folder, tmp_path / name, "sft", **options))
        finals.append((tmp_path / name / "final" / "model.safetensors").read_bytes())
    assert finals[0] == finals[1]
