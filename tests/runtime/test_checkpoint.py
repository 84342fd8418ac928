"""Checkpoints against full disks, lost bytes and strangers' folders; what is saved loads in transformers alone."""

import contextlib
import json
import resource
import shutil
import subprocess
import sys

import pytest
import torch
from support import recipe, tiny
from transformers import AutoModelForImageTextToText, AutoProcessor

from vlm_r1.config import OptimConfig, PromptConfig
from vlm_r1.config_file import load_config, resolved_yaml
from vlm_r1.errors import CheckpointError
from vlm_r1.models.load import prompt_of_model
from vlm_r1.rl import loop
from vlm_r1.runtime.checkpoint import (
    list_checkpoints,
    load_optimizer,
    read_state,
    save_checkpoint,
    write_folder,
)
from vlm_r1.runtime.optim import build_optimizer
from vlm_r1.runtime.session import open_session


def save(run_dir, step: int, keep: int = 9, **state):
    loaded = tiny()
    optimizer = build_optimizer(loaded.policy, OptimConfig())
    return save_checkpoint(
        run_dir,
        step,
        model=loaded.policy.model,
        processor=loaded.processor,
        prompt=PromptConfig(template="plain"),
        optimizer=optimizer,
        state={"stream": {"drawn": 7}, **state},
        keep=keep,
    )


def names(run_dir) -> list[str]:
    return sorted(path.name for path in run_dir.iterdir())


@contextlib.contextmanager
def file_limit(size: int):
    """No file may grow over `size` bytes: writing more fails as on a full disk (another errno, the same exception)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_the_last_few_are_kept(tmp_path):
    for step in (2, 10, 9, 11):
        save(tmp_path, step, keep=3)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-9", "checkpoint-10", "checkpoint-11"]
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-11", "checkpoint-9"]
    assert read_state(tmp_path / "checkpoint-9")["stream"] == {"drawn": 7}


def test_a_checkpoint_written_again_replaces_the_old_one(tmp_path):
    save(tmp_path, 3)
    save(tmp_path, 3, extra=1)
    assert names(tmp_path) == ["checkpoint-3"] and read_state(tmp_path / "checkpoint-3")["extra"] == 1


@pytest.mark.parametrize("size", [0, 200, 20_000, 400_000])
def test_a_full_disk_while_saving_is_one_message_and_leaves_earlier_checkpoints(tmp_path, size):
    first = save(tmp_path, 1)
    with file_limit(size), pytest.raises(CheckpointError, match=r"checkpoint-2: could not be written .* intact"):
        save(tmp_path, 2)
    assert names(tmp_path) == ["checkpoint-1"]
    read_state(first)
    save(tmp_path, 2)
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-2"]


def test_a_full_disk_keeps_the_final_model_of_before(tmp_path):
    target = tmp_path / "final"
    write_folder(target, lambda folder: (folder / "a").write_text("old"))

    def fails(folder):
        (folder / "a").write_text("new")
        raise OSError(28, "No space left on device")

    with pytest.raises(CheckpointError, match="No space left on device"):
        write_folder(target, fails)
    assert names(tmp_path) == ["final"] and (target / "a").read_text() == "old"


@pytest.mark.parametrize("part", ["tokenizer", "optimizer"])
def test_every_writers_refusal_is_the_same_message(tmp_path, part):
    loaded = tiny()
    optimizer = build_optimizer(loaded.policy, OptimConfig())
    for parameter in loaded.policy.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    fill = {
        "tokenizer": lambda folder: loaded.processor.save_pretrained(folder),
        "optimizer": lambda folder: torch.save(optimizer.state_dict(), folder / "optimizer.pt"),
    }[part]
    with file_limit(5000), pytest.raises(CheckpointError, match="final: could not be written"):
        write_folder(tmp_path / "final", fill)
    assert names(tmp_path) == []


def test_a_bug_while_saving_is_not_called_a_full_disk(tmp_path):
    def fails(folder):
        raise KeyError("bug")

    with pytest.raises(KeyError):
        write_folder(tmp_path / "final", fails)


def damaged(folder, name):
    file = folder / name
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "tokenizer.json", "state.json"])
def test_a_checkpoint_cut_in_half_is_refused_by_name_and_the_one_before_continues(model_folder, tmp_path, name):
    run = recipe(model_folder, tmp_path / "run", "sft", run={"steps": 2, "save_every": 1})
    from vlm_r1.sft.train import train

    train(run)
    final = (tmp_path / "run" / "final" / "model.safetensors").read_bytes()
    last = tmp_path / "run" / "checkpoint-2"
    damaged(last, name)
    with pytest.raises(CheckpointError, match=rf"checkpoint-2/{name}: .*delete .*checkpoint-2 to continue"):
        train(run)
    shutil.rmtree(last)
    train(run)
    assert (tmp_path / "run" / "final" / "model.safetensors").read_bytes() == final


def test_a_checkpoint_without_one_of_its_files_is_refused(tmp_path):
    folder = save(tmp_path, 1)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: is missing; delete"):
        read_state(folder)


def test_an_optimizer_of_another_shape_is_refused(tmp_path):
    folder = save(tmp_path, 1)
    torch.save({"state": {}, "param_groups": []}, folder / "optimizer.pt")
    with pytest.raises(CheckpointError, match=r"optimizer\.pt: cannot be read"):
        load_optimizer(folder, build_optimizer(tiny().policy, OptimConfig()))


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_an_optimizer_continues_exactly(tmp_path, name):
    def steps(loaded, optimizer, seeds):
        for seed in seeds:
            generator = torch.Generator().manual_seed(seed)
            for parameter in loaded.policy.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step()

    config = OptimConfig(name=name, lr=1e-2, weight_decay=0.1)
    whole, first = tiny(), tiny()
    steps(whole, build_optimizer(whole.policy, config), [1, 2, 3])
    optimizer = build_optimizer(first.policy, config)
    steps(first, optimizer, [1, 2])
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    second = build_optimizer(first.policy, config)
    load_optimizer(tmp_path, second)
    steps(first, second, [3])
    for ours, theirs in zip(first.policy.parameters(), whole.policy.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_every_parameter_has_one_optimizer_and_norms_are_not_decayed():
    loaded = tiny()
    for name in ("adamw", "muon"):
        groups = build_optimizer(loaded.policy, OptimConfig(name=name, weight_decay=0.5)).param_groups
        ids = [id(p) for group in groups for p in group["params"]]
        assert sorted(ids) == sorted(id(p) for p in loaded.policy.parameters())
        for group in groups:
            assert all((p.ndim >= 2) == (group["weight_decay"] == 0.5) for p in group["params"])


def test_the_final_model_loads_in_transformers_alone_and_says_the_same(model_folder, tmp_path):
    run = recipe(model_folder, tmp_path / "run", run={"steps": 1, "save_every": 1})
    loop.train(run)
    for folder in (tmp_path / "run" / "final", tmp_path / "run" / "checkpoint-1"):
        code = (
            "import sys, transformers\n"
            "model = transformers.AutoModelForImageTextToText.from_pretrained(sys.argv[1])\n"
            "print(type(model).__name__, model.config.text_config._attn_implementation)\n"
            "assert 'vlm_r1' not in sys.modules\n"
        )
        if folder.name == "final":
            done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True)
            assert done.stdout.split() == ["Qwen3VLForConditionalGeneration", "sdpa"], done.stderr[-1000:]
        model, info = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        again = open_session(run).loaded.policy.model
        for (name, ours), theirs in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
            assert torch.equal(ours, theirs), name
        assert prompt_of_model(str(folder)) == PromptConfig(template="plain")
    assert json.loads((tmp_path / "run" / "final" / "config.json").read_text())["model_type"] == "qwen3_vl"
    with contextlib.suppress(ImportError):
        import torchvision  # noqa: F401

        AutoProcessor.from_pretrained(tmp_path / "run" / "final")


def test_a_folder_with_another_recipes_run_is_refused_and_left_alone(model_folder, tmp_path):
    run_dir = tmp_path / "run"
    loop.train(recipe(model_folder, run_dir, run={"steps": 1, "save_every": 1}))
    before = {p: p.read_bytes() for p in run_dir.rglob("*") if p.is_file()}
    other = recipe(model_folder, run_dir, optim={"lr": 0.5}, rl={"group_size": 4, "prompts_per_step": 2})
    with pytest.raises(CheckpointError, match=r"other settings \(rl.group_size, optim.lr\); give run.dir another"):
        open_session(other)
    after = {p: p.read_bytes() for p in run_dir.rglob("*") if p.is_file()}
    assert {p.name for p in before if before[p] != after.get(p)} <= {"environment.json"}


@pytest.mark.parametrize("change", [{"steps": 9}, {"keep": 5}, {"save_every": 3}, {"log_rollouts_every": 2}], ids=str)
def test_settings_that_do_not_change_the_result_may_change(model_folder, tmp_path, change):
    loop.train(recipe(model_folder, tmp_path / "run", run={"steps": 1, "save_every": 1}))
    session = open_session(recipe(model_folder, tmp_path / "run", run={"steps": 1, "save_every": 1} | change))
    assert session.start == 1
    assert load_config(tmp_path / "run" / "config.yaml", []) == session.recipe


def test_the_run_folder_keeps_the_resolved_recipe(model_folder, tmp_path):
    run = recipe(model_folder, tmp_path / "run")
    open_session(run)
    assert (tmp_path / "run" / "config.yaml").read_text() == resolved_yaml(run)
