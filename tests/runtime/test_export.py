"""A model taken out of a run: copied as it is, or merged, and refused with a reason."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from support import PLAIN, mixed_groups, names, recipe, save_tiny
from transformers import AutoModelForImageTextToText

from vlm_r1.cli import main
from vlm_r1.config import ModelConfig
from vlm_r1.errors import UserError
from vlm_r1.models.load import load_policy
from vlm_r1.models.packing import pack
from vlm_r1.rl.batch import as_prefix_group
from vlm_r1.runtime.export import export
from vlm_r1.sft import train as sft


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def run(tmp_path_factory, model_folder):
    """A finished run with an adapter, two checkpoints."""
    found = tmp_path_factory.mktemp("export") / "run"
    settings = {"steps": 2, "save_every": 1}
    sft.train(recipe(model_folder, found, "sft", train={"language": "lora"}, optim={"lr": 1e-1}, run=settings))
    return found


def logprobs(folder, **model):
    loaded = load_policy(ModelConfig(path=str(folder), **model), PLAIN)
    with torch.no_grad():
        return loaded.policy(pack([as_prefix_group(g) for g in mixed_groups(loaded)]))[0]


def call(*arguments) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(["export", *map(str, arguments)])
    return stopped.value.code or 0


def test_a_run_becomes_a_plain_model(run, model_folder, tmp_path, capsys):
    out = tmp_path / "models" / "mine"
    assert call(run, "--merge", "--out", out) == 0
    assert capsys.readouterr().out == f"merged {run / 'final'} to {out}\n"
    assert {f.name for f in out.iterdir()} == {f.name for f in model_folder.iterdir()} | {"README.md"}
    assert json.loads((out / "vlm_r1.json").read_text())["template"] == "plain"
    torch.testing.assert_close(logprobs(out), logprobs(run / "final"), atol=1e-5, rtol=0)
    assert (logprobs(out) - logprobs(model_folder)).abs().max() > 1e-2
    assert AutoModelForImageTextToText.from_pretrained(out).dtype == torch.float32


def test_a_copy_holds_what_the_model_is_and_nothing_of_the_run(run, tmp_path):
    assert export(run, tmp_path / "a") == run / "final"
    assert export(run / "checkpoint-1", tmp_path / "b") == run / "checkpoint-1"
    export(run / "checkpoint-2", tmp_path / "c")
    for copied in ("a", "b", "c"):
        assert names(tmp_path / copied) == names(run / "final")
    weights = {copied: load_file(tmp_path / copied / "adapter_model.safetensors") for copied in ("a", "b", "c")}
    assert weights["a"].keys() == weights["b"].keys() == weights["c"].keys()
    for name, last in weights["a"].items():
        assert torch.equal(last, weights["c"][name])
    stored = trained_weights(run / "checkpoint-1")
    assert len(stored) == len(weights["b"])
    for name, value in stored.items():
        assert torch.equal(value, weights["b"][name])
    assert any(not torch.equal(value, weights["a"][name]) for name, value in stored.items())


def trained_weights(checkpoint) -> dict[str, torch.Tensor]:
    """What a checkpoint holds of an adapter, under the names of an adapter folder."""
    [shard] = checkpoint.glob("*.safetensors")
    found = {name: value for name, value in load_file(shard).items() if name.startswith("model.")}
    return {
        "base_model.model." + name.removeprefix("model.model.").replace(".default.", "."): value
        for name, value in found.items()
    }


def test_a_checkpoint_of_full_weights_becomes_a_plain_model(model_folder, tmp_path):
    found = tmp_path / "full"
    sft.train(recipe(model_folder, found, "sft", train={"vision": "frozen"}, run={"steps": 2, "save_every": 1}))
    export(found / "checkpoint-1", tmp_path / "one")
    export(found / "checkpoint-2", tmp_path / "two")
    assert names(tmp_path / "one") == names(found / "final") == names(model_folder)
    final, two, one, base = (
        load_file(folder / "model.safetensors")
        for folder in (found / "final", tmp_path / "two", tmp_path / "one", model_folder)
    )
    assert all(torch.equal(final[name], two[name]) for name in base)
    assert all(torch.equal(one[name], base[name]) == ("visual.blocks" in name) for name in base if "mlp" in name)
    with pytest.raises(UserError, match=r"full/checkpoint-2: is a whole model, there is no adapter to merge"):
        export(found / "checkpoint-2", tmp_path / "merged", merge=True)
    assert not (tmp_path / "merged").exists()


def test_a_run_without_a_final_model_gives_its_last_checkpoint(run, tmp_path):
    stopped = shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(stopped / "final")
    assert export(stopped, tmp_path / "out", merge=True) == stopped / "checkpoint-2"
    assert not (tmp_path / "out" / "state.json").exists()
    torch.testing.assert_close(logprobs(tmp_path / "out"), logprobs(run / "final"), atol=1e-5, rtol=0)


def test_a_checkpoint_without_its_run_and_a_damaged_one_are_refused(run, tmp_path):
    alone = shutil.copytree(run / "checkpoint-1", tmp_path / "checkpoint-1")
    with pytest.raises(UserError, match=r"config\.yaml"):
        export(alone, tmp_path / "out")
    copied = shutil.copytree(run, tmp_path / "run")
    [shard] = (copied / "checkpoint-1").glob("*.safetensors")
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(UserError, match=r"has 100 bytes instead of"):
        export(copied / "checkpoint-1", tmp_path / "out")
    shard.write_bytes(b"\xff" * (run / "checkpoint-1" / shard.name).stat().st_size)
    with pytest.raises(UserError, match="is not what was written"):
        export(copied / "checkpoint-1", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_merged_weights_have_the_bases_type_or_the_one_asked_for(run, model_folder, tmp_path):
    half = tmp_path / "half"
    AutoModelForImageTextToText.from_pretrained(model_folder, dtype=torch.bfloat16).save_pretrained(half)
    for file in model_folder.iterdir():
        if not (half / file.name).exists():
            shutil.copy(file, half)
    adapter = shutil.copytree(run / "final", tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(half)}))
    for name, dtype, expected in (("own", None, torch.bfloat16), ("asked", "float32", torch.float32)):
        export(adapter, tmp_path / name, merge=True, dtype=dtype)
        assert AutoModelForImageTextToText.from_pretrained(tmp_path / name).dtype == expected
    torch.testing.assert_close(logprobs(tmp_path / "asked"), logprobs(adapter), atol=1e-5, rtol=0)


def test_what_cannot_be_exported(run, model_folder, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    for arguments, message in (
        ((tmp_path / "nothing",), "holds no model; name a run folder"),
        ((model_folder, "--merge"), "is a whole model, there is no adapter to merge; leave --merge out"),
        ((run, "--dtype", "float32"), "--dtype: a copy keeps its weights as they are"),
    ):
        assert call(*arguments, "--out", tmp_path / "out") == 2
        assert message in capsys.readouterr().err
    with pytest.raises(UserError, match="is there already; name another folder"):
        export(run, tmp_path / "full")
    assert [f.name for f in (tmp_path / "full").iterdir()] == ["notes.txt"] and not (tmp_path / "out").exists()
