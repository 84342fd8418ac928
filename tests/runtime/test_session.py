"""Runs that are opened again: what may have another value, what may not, and what is left alone."""

import shutil

import pytest
import torch
from support import recipe, untimed

from vlm_r1.config import RLConfig
from vlm_r1.config_file import load_config, resolved_yaml
from vlm_r1.errors import CheckpointError
from vlm_r1.rl import loop
from vlm_r1.rollout.native import NativeEngine
from vlm_r1.runtime.session import open_session
from vlm_r1.sft import train as sft

SHORT = {"steps": 1, "save_every": 1}
FROZEN = {"vision": "frozen", "connector": "frozen"}
SCENES = {"scenes": {"split": "in_domain", "n": 1}}


@pytest.fixture(scope="module")
def one_step(model_folder, tmp_path_factory):
    """The folder of a run of one step, which the tests copy."""
    run_dir = tmp_path_factory.mktemp("session") / "run"
    loop.train(recipe(model_folder, run_dir, run=SHORT, train=FROZEN))
    return run_dir


@pytest.fixture
def run_dir(one_step, tmp_path):
    return shutil.copytree(one_step, tmp_path / "run")


def again(model_folder, run_dir, **sections):
    """The recipe of `one_step` with these settings changed."""
    sections["run"] = SHORT | sections.get("run", {})
    sections["model"] = {"path": str(model_folder)} | sections.get("model", {})
    return recipe(model_folder, run_dir, train=FROZEN, **sections)


@pytest.mark.parametrize(
    "change",
    [
        {"run": {"steps": 9}},
        {"run": {"keep": 5}},
        {"run": {"save_every": 3}},
        {"run": {"log_rollouts_every": 2}},
        {"run": {"hang_timeout_s": 7.0}},
        {"run": {"shard_size": 1}},
        {"run": {"trackers": ["tensorboard"], "track_images_every": 1}},
        {"rl": {"token_budget": 77, "group_size": 3, "prompts_per_step": 2}},
        {"sft": {"token_budget": 77, "images_per_step": 2}},
        {"rl": {"reference_offload": True, "group_size": 3, "prompts_per_step": 2}},
        {"rollout": {"max_sequences": 1, "max_new_tokens": 6}},
        {"rollout": {"kv_cache_gb": 0.5, "max_new_tokens": 6}},
        {"model": {"gradient_checkpointing": True}},
        {"model": {"vision_cache_mb": 1}},
        {"eval": {"batch_size": 3, "max_new_tokens": 9, "every": 2, "resamples": 7}},
        {"data": {"eval": {"held_out": SCENES}}, "eval": {"suites": {"held_out": "rec"}}},
    ],
    ids=str,
)
def test_settings_of_speed_memory_and_measurement_may_change(model_folder, run_dir, change):
    changed = again(model_folder, run_dir, **change)
    with open_session(changed) as session:
        assert session.start == 1 and session.state["step"] == 1
        assert load_config(run_dir / "config.yaml", []) == session.recipe == changed


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"optim": {"lr": 0.5}}, "optim.lr"),
        ({"optim": {"lr": 1e-3, "schedule": "cosine"}}, "optim.schedule"),
        ({"rl": {"group_size": 4, "prompts_per_step": 2}}, "rl.group_size"),
        ({"rl": {"group_size": 3, "prompts_per_step": 3}}, "rl.prompts_per_step"),
        ({"rl": {"group_size": 3, "prompts_per_step": 2, "beta": 0.1}}, "rl.beta"),
        ({"rollout": {"max_new_tokens": 6, "temperature": 0.5}}, "rollout.temperature"),
        ({"rollout": {"max_new_tokens": 7}}, "rollout.max_new_tokens"),
        ({"rollout": {"max_new_tokens": 6, "importance_sampling": "token_mask"}}, "rollout.importance_sampling"),
        ({"model": {"precision": "bfloat16"}}, "model.precision"),
        ({"model": {"max_pixels": 4096}}, "model.max_pixels"),
        ({"prompt": {"template": "r1"}}, "prompt.template"),
        ({"run": {"seed": 1}}, "run.seed"),
        ({"data": {"train": [SCENES]}}, "data.train"),
    ],
    ids=str,
)
def test_settings_that_change_the_result_are_refused_by_name_and_the_folder_is_left_alone(
    model_folder, run_dir, change, named
):
    before = {p: p.read_bytes() for p in run_dir.rglob("*") if p.is_file()}
    match = rf"holds a run with other settings \({named}\); give run\.dir another folder"
    with pytest.raises(CheckpointError, match=match), open_session(again(model_folder, run_dir, **change)):
        pass
    after = {p: p.read_bytes() for p in run_dir.rglob("*") if p.is_file()}
    assert after.keys() == before.keys()
    assert {p.name for p in before if before[p] != after[p]} <= {"environment.json"}


def test_before_the_first_checkpoint_too_a_folder_of_other_settings_is_refused(model_folder, run_dir):
    """Else one run's metrics and answers would be lost, or stand beside the weights of another."""
    shutil.rmtree(run_dir / "checkpoint-1")
    with (
        pytest.raises(CheckpointError, match=r"other settings \(run\.seed\)"),
        open_session(again(model_folder, run_dir, run={"seed": 1})),
    ):
        pass
    (run_dir / "metrics.jsonl").unlink()  # nothing was done yet: a mistake may be put right
    with open_session(again(model_folder, run_dir, run={"seed": 1})) as session:
        assert session.start == 0


@pytest.mark.parametrize("text", ["[]", '{"before": 3}', '{"before": {"held_out": [1]}}', "7", "null", "{"])
def test_an_evaluation_file_of_another_type_is_refused_before_anything_is_trained(model_folder, run_dir, text):
    (run_dir / "eval.json").write_text(text)
    with (
        pytest.raises(CheckpointError, match=r"eval\.json: .*remove it and evaluate again"),
        open_session(again(model_folder, run_dir)),
    ):
        pass


def test_every_setting_that_differs_is_named(model_folder, run_dir):
    other = again(model_folder, run_dir, optim={"lr": 0.5}, rl={"group_size": 4, "prompts_per_step": 2})
    with pytest.raises(CheckpointError, match=r"\(rl\.group_size, optim\.lr\)"), open_session(other):
        pass


def test_a_recipe_of_the_release_before_continues_its_run(model_folder, run_dir):
    """What a run folder's config.yaml says in old words is read in new ones."""
    text = (run_dir / "config.yaml").read_text()
    old = text.replace("  precision: auto\n", "  dtype: float32\n  autocast: 'no'\n", 1)
    old = old.replace("rl:\n", "rl:\n  reuse_prefill: true\n", 1)
    old = old.replace("optim:\n", "optim:\n  master_weights: false\n", 1)
    assert all(word in old for word in ("dtype", "reuse_prefill", "master_weights"))
    (run_dir / "config.yaml").write_text(old)
    settings = again(model_folder, run_dir, model={"precision": "float32"})
    with pytest.warns(FutureWarning), open_session(settings) as session:
        assert session.start == 1


def test_a_run_continued_with_other_speed_settings_is_the_same_run(model_folder, tmp_path):
    """Rows of another size and answers decoded one at a time change the order of sums, nothing else."""
    options = {"rewards": {"parts": {"repetition": 1.0, "format": 1.0}}}
    for name, steps in (("whole", 4), ("half", 2)):
        loop.train(recipe(model_folder, tmp_path / name, run={"steps": steps, "save_every": 2}, **options))
    rest = recipe(
        model_folder,
        tmp_path / "half",
        run={"steps": 4, "save_every": 2},
        rl={"token_budget": 50, "group_size": 3, "prompts_per_step": 2},
        rollout={"max_new_tokens": 6, "max_sequences": 1},
        model={"path": str(model_folder), "gradient_checkpointing": True},
        **options,
    )
    loop.train(rest)
    first, second = untimed(tmp_path / "whole"), untimed(tmp_path / "half")
    assert len(first) == len(second) == 4
    for ours, theirs in zip(first, second, strict=True):
        skipped = {"tokens/update_prompt"}  # a smaller budget repeats a prompt for each part of its group
        assert {k: v for k, v in ours.items() if k not in skipped} == pytest.approx(
            {k: v for k, v in theirs.items() if k not in skipped}, rel=1e-3, abs=1e-5
        )


def test_the_run_folder_keeps_the_resolved_recipe(model_folder, tmp_path):
    run = recipe(model_folder, tmp_path / "run")
    with open_session(run) as session:
        assert session.start == 0 and session.state == {}
        assert isinstance(session.engine, NativeEngine) and session.engine.loaded is session.loaded
    assert (tmp_path / "run" / "config.yaml").read_text() == resolved_yaml(run)


def test_old_keys_are_accepted_with_a_warning():
    with pytest.warns(FutureWarning, match="rl.reuse_prefill is gone"):
        assert RLConfig.model_validate({"reuse_prefill": False}) == RLConfig()


def test_steps_that_bfloat16_would_lose_are_kept(model_folder, tmp_path):
    """The model computes in bfloat16; trained weights are float32, or steps of 1e-6 would vanish in rounding."""
    model = {"path": str(model_folder), "precision": "bfloat16"}
    steps = {"steps": 6, "save_every": 6}
    run = recipe(model_folder, tmp_path / "run", "sft", model=model, optim={"lr": 1e-6}, run=steps)
    with open_session(run) as session:
        before = {name: p.detach().full_tensor().clone() for name, p in session.policy.named_parameters()}
        assert {p.dtype for p in session.policy.parameters()} == {torch.float32}
        seen = set()
        layer = session.policy.model.model.language_model.layers[0].mlp.gate_proj
        layer.register_forward_hook(lambda module, args, out: seen.add((module.weight.dtype, out.dtype)))
        sft.run(session)
        assert seen == {(torch.bfloat16, torch.bfloat16)}
        after = {name: p.detach().full_tensor() for name, p in session.policy.named_parameters()}
    moved = torch.cat([(after[name] - before[name]).abs().flatten() for name in before])
    # Adam's steps are at most lr each; weights of 0.1 lie 2**-11 apart in bfloat16
    assert 0 < float(moved.max()) < 6.5e-6 and float((moved > 1e-6).float().mean()) > 0.3
    same = torch.cat([(after[name].bfloat16() == before[name].bfloat16()).flatten() for name in before])
    assert float(same.float().mean()) > 0.9
