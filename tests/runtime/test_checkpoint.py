"""Checkpoints of one process: written while training goes on, against full disks, lost bytes and other models."""

import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support import file_limit, names, recipe, tiny

from vlm_r1.config import OptimConfig
from vlm_r1.distributed.checkpoints import CheckpointWriter, load_checkpoint
from vlm_r1.distributed.processes import ALONE
from vlm_r1.distributed.whole import list_checkpoints, read_state
from vlm_r1.errors import CheckpointError, RewardError
from vlm_r1.rl import loop, rollouts
from vlm_r1.runtime.optim import build_optimizer, place_of
from vlm_r1.sft.train import train

SHARD = "shard-00001-model-00001-of-00001.safetensors"


def steps(policy, optimizer, seeds) -> None:
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


def stepped(config: OptimConfig | None = None, seeds=(1, 2)):
    """A policy and its optimizer after these steps."""
    policy = tiny().policy
    optimizer = build_optimizer(policy, config or OptimConfig(lr=1e-2))
    steps(policy, optimizer, seeds)
    return policy, optimizer


def save(run_dir: Path, step: int, keep: int = 9, policy=None, optimizer=None, **state) -> Path:
    if policy is None:
        policy, optimizer = stepped()
    writer = CheckpointWriter(run_dir, ALONE, keep)
    writer.save(step, policy, optimizer, {"stream": {"drawn": 7}, **state})
    writer.wait()
    return run_dir / f"checkpoint-{step}"


def test_the_last_few_are_kept(tmp_path):
    for step in (2, 10, 9, 11):
        save(tmp_path, step, keep=3)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-9", "checkpoint-10", "checkpoint-11"]
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-11", "checkpoint-9"]
    state = read_state(tmp_path / "checkpoint-9")
    assert (state["step"], state["stream"]) == (9, {"drawn": 7})


def test_a_checkpoint_written_again_replaces_the_old_one(tmp_path):
    save(tmp_path, 3)
    save(tmp_path, 3, extra=1)
    assert names(tmp_path) == ["checkpoint-3"] and read_state(tmp_path / "checkpoint-3")["extra"] == 1


def test_what_is_written_are_the_weights_and_moments_of_the_step_in_safetensors(tmp_path):
    policy, optimizer = stepped()
    expected = {f"model.{name}": p.detach().clone() for name, p in policy.named_parameters()}
    moments = {
        f"optim.{name}.{key}": value.clone()
        for name, p in policy.named_parameters()
        for key, value in optimizer.state[p].items()
    }
    writer = CheckpointWriter(tmp_path, ALONE, 1)
    writer.save(2, policy, optimizer, {})
    steps(policy, optimizer, [3])  # training goes on while it is written
    writer.wait()
    assert names(tmp_path / "checkpoint-2") == [SHARD, "state.json"]
    found = load_file(tmp_path / "checkpoint-2" / SHARD)
    assert found.keys() == expected.keys() | moments.keys()
    assert {key.rpartition(".")[2] for key in moments} == {"exp_avg", "exp_avg_sq", "step"}
    assert all(torch.equal(found[name], value) for name, value in (expected | moments).items())


def test_frozen_weights_are_not_written(tmp_path):
    policy = tiny().policy
    policy.model.model.visual.requires_grad_(False)
    optimizer = build_optimizer(policy, OptimConfig())
    found = load_file(save(tmp_path, 1, policy=policy, optimizer=optimizer) / SHARD)
    assert found and not any(".visual." in name for name in found)


def test_one_checkpoint_is_written_at_a_time_and_has_its_name_when_it_is_whole(tmp_path, monkeypatch):
    policy, optimizer = stepped()
    writer = CheckpointWriter(tmp_path, ALONE, 9)
    writer.save(1, policy, optimizer, {})
    assert list_checkpoints(tmp_path) == []
    writer.save(2, policy, optimizer, {})
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-1"]
    writer.wait()
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-2"]
    writer.wait()
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-2"]


@pytest.mark.parametrize("size", [0, 60, 20_000, 400_000])
def test_a_full_disk_while_saving_is_one_message_and_leaves_earlier_checkpoints(tmp_path, size):
    first = save(tmp_path, 1)
    told = r"checkpoint-2: could not be written .* checkpoint-1 is intact, and the run continues from it"
    with file_limit(size), pytest.raises(CheckpointError, match=told):
        save(tmp_path, 2)
    assert names(tmp_path) == ["checkpoint-1"]
    read_state(first)
    save(tmp_path, 2)
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-2"]


def test_a_full_disk_without_a_checkpoint_says_that_the_run_begins_anew(tmp_path):
    with file_limit(60), pytest.raises(CheckpointError, match=r"could not be written .* again: the run begins anew"):
        save(tmp_path, 1)


def test_a_folder_that_cannot_be_made_is_the_same_message(tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(CheckpointError, match=r"could not be written .*set run\.dir to a folder"):
        save(tmp_path / "run", 1)


def damaged(folder: Path, name: str) -> None:
    file = folder / name
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])


@pytest.mark.parametrize("name", [SHARD, "state.json"])
def test_a_checkpoint_cut_in_half_is_refused_by_name_and_the_one_before_continues(model_folder, tmp_path, name):
    run = recipe(model_folder, tmp_path / "run", "sft", run={"steps": 2, "save_every": 1})
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
    (folder / SHARD).unlink()
    with pytest.raises(CheckpointError, match=rf"{SHARD}: is missing; delete"):
        read_state(folder)


def load(folder, policy, optimizer):
    load_checkpoint(folder, policy, lambda parameter: place_of(optimizer, parameter), ALONE)


def flipped(file: Path, place: float = 0.7) -> None:
    """Change one bit of a file, at this share of it."""
    data = bytearray(file.read_bytes())
    data[int(len(data) * place)] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("place", [0.0, 0.02, 0.5, 0.999])
@pytest.mark.parametrize("name", [SHARD, "state.json"])
def test_one_bit_that_changed_is_noticed(tmp_path, name, place):
    folder = save(tmp_path, 1, monitor={"trend": [0.1, float("nan")], "é": None})
    assert read_state(folder)["monitor"]["trend"][0] == 0.1
    flipped(folder / name, place)
    with pytest.raises(CheckpointError, match=rf"checkpoint-1/{name}: .*; delete .*checkpoint-1 to continue"):
        read_state(folder)


@pytest.mark.parametrize(
    "text", ["{}", "[]", '{"files": 3}', '{"files": {"a": {}}}', "[" * 10**5, '{"files": {"a": [1]}}']
)
def test_a_state_that_is_something_else_is_refused(tmp_path, text):
    folder = save(tmp_path, 1)
    (folder / "state.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"state\.json: .*skip_damaged"):
        read_state(folder)


def test_a_checkpoint_with_sizes_alone_is_read(tmp_path):
    folder = save(tmp_path, 1)
    state = json.loads((folder / "state.json").read_text())
    files = {name: written["bytes"] for name, written in state["files"].items()}
    (folder / "state.json").write_text(json.dumps({"files": files, "step": 1}))
    assert read_state(folder)["step"] == 1
    (folder / "state.json").write_text(json.dumps({"files": {SHARD: 1}, "step": 1}))
    with pytest.raises(CheckpointError, match="instead of 1"):
        read_state(folder)


def test_a_damaged_checkpoint_is_passed_over_where_the_user_says_so(model_folder, tmp_path, capsys):
    run = recipe(model_folder, tmp_path / "run", "sft", run={"steps": 3, "save_every": 1, "keep": 2})
    train(run)
    final = (tmp_path / "run" / "final" / "model.safetensors").read_bytes()
    flipped(tmp_path / "run" / "checkpoint-3" / SHARD)
    with pytest.raises(CheckpointError, match=r"checkpoint-3/.*its checksum differs.*or set run\.skip_damaged: true"):
        train(run)
    skips = recipe(
        model_folder, tmp_path / "run", "sft", run={**run.run.model_dump(exclude={"epochs"}), "skip_damaged": True}
    )
    train(skips)
    assert "It is checkpoint-3.damaged now, and checkpoint-2 is taken" in capsys.readouterr().err
    assert (tmp_path / "run" / "final" / "model.safetensors").read_bytes() == final
    found = [name for name in names(tmp_path / "run") if name.startswith("checkpoint")]
    assert found == ["checkpoint-2", "checkpoint-3", "checkpoint-3.damaged"]
    for step in (2, 3):
        flipped(tmp_path / "run" / f"checkpoint-{step}" / SHARD)
    with pytest.raises(CheckpointError, match="checkpoint-2/"):  # nothing is before it: the run is not begun anew
        train(skips)


def test_what_a_killed_run_left_is_removed_when_it_goes_on(model_folder, tmp_path):
    run = recipe(model_folder, tmp_path / "run", "sft", run={"steps": 2, "save_every": 1, "keep": 1})
    train(run)
    folder = tmp_path / "run"
    shutil.copytree(folder / "checkpoint-2", folder / "checkpoint-1")  # killed before the older one was deleted
    (folder / ".checkpoint-9.tmp").mkdir()
    (folder / "rollouts").mkdir()
    (folder / "rollouts" / ".step-000001.parquet.elsewhere-1.tmp").touch()
    train(run)
    assert [name for name in names(folder) if "checkpoint" in name] == ["checkpoint-2"]
    assert names(folder / "rollouts") == []


def test_the_checkpoint_of_another_model_is_refused(tmp_path):
    policy = tiny().policy
    policy.model.model.visual.requires_grad_(False)
    folder = save(tmp_path, 1, policy=policy, optimizer=build_optimizer(policy, OptimConfig()))
    with pytest.raises(CheckpointError, match=r"checkpoint-1: holds no model\.model\.model\.visual\..*; delete"):
        load(folder, *stepped())
    wide = tiny().policy
    layer = wide.model.model.language_model.layers[0].mlp
    layer.gate_proj.weight = torch.nn.Parameter(torch.zeros(50, 32))
    folder = save(tmp_path, 2)
    with pytest.raises(CheckpointError, match=r"checkpoint-2: cannot be read .*[Ss]ize"):
        load(folder, wide, build_optimizer(wide, OptimConfig()))


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_weights_and_optimizer_continue_exactly(tmp_path, name):
    config = OptimConfig(name=name, lr=1e-2, weight_decay=0.1)
    whole, _ = stepped(config, [1, 2, 3])
    folder = save(tmp_path, 2, 9, *stepped(config, [1, 2]))
    second, optimizer = stepped(config, [])
    load(folder, second, optimizer)
    steps(second, optimizer, [3])
    for ours, theirs in zip(second.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_checkpoint_is_there_soon_after_it_was_written_and_not_only_when_the_next_one_is(
    model_folder, tmp_path, monkeypatch
):
    """A run that is killed between two checkpoints continues from the last of them."""
    run, seen, deal = recipe(model_folder, tmp_path / "run", run={"steps": 8, "save_every": 4}), [], rollouts.deal

    def slow_deal(*args):
        time.sleep(0.2)
        seen.append([path.name for path in list_checkpoints(tmp_path / "run")])
        return deal(*args)

    monkeypatch.setattr(rollouts, "deal", slow_deal)
    loop.train(run)
    assert seen[:4] == [[]] * 4
    assert seen[6:] == [["checkpoint-4"]] * 2  # at the start of the third step after it, at the latest


def test_a_run_that_ends_with_an_error_keeps_the_checkpoint_before_it(model_folder, tmp_path, monkeypatch):
    run, deal, calls = recipe(model_folder, tmp_path / "run", run={"steps": 4, "save_every": 2}), rollouts.deal, []

    def fails(*args):
        calls.append(args)
        if len(calls) == 4:
            raise RewardError("in the fourth step")
        return deal(*args)

    monkeypatch.setattr(rollouts, "deal", fails)
    with pytest.raises(RewardError):
        loop.train(run)
    assert [path.name for path in list_checkpoints(tmp_path / "run")] == ["checkpoint-2"]


def test_states_that_are_integers_or_bytes_come_back_as_they_were(tmp_path):
    """bitsandbytes counts steps in a Python integer and keeps moments in bytes."""
    policy, optimizer = stepped(OptimConfig(), [1])
    first = next(policy.parameters())
    optimizer.state[first] = {"step": 3, "state1": torch.full(first.shape, 7, dtype=torch.uint8)}
    folder = save(tmp_path, 1, 9, policy, optimizer)
    other, fresh = stepped(OptimConfig(), [])
    load(folder, other, fresh)
    found = fresh.state[next(other.parameters())]
    assert found["step"] == 3 and type(found["step"]) is int
    assert found["state1"].dtype == torch.uint8 and int(found["state1"].sum()) == 7 * first.numel()
