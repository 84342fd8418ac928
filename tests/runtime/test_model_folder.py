"""Model folders: whole or not there, and every other program loads them."""

import contextlib
import json
import subprocess
import sys

import pytest
import torch
from support import PLAIN, file_limit, names, recipe, tiny
from transformers import AutoModelForImageTextToText, AutoProcessor

from vlm_r1.config import PromptConfig
from vlm_r1.errors import CheckpointError
from vlm_r1.models.load import prompt_of_model
from vlm_r1.rl import loop
from vlm_r1.runtime.export import export
from vlm_r1.runtime.model_folder import save_policy, write_folder
from vlm_r1.runtime.session import open_session


def test_a_full_disk_keeps_the_final_model_of_before(tmp_path):
    target = tmp_path / "final"
    write_folder(target, lambda folder: (folder / "a").write_text("old"))

    def fails(folder):
        (folder / "a").write_text("new")
        raise OSError(28, "No space left on device")

    with pytest.raises(CheckpointError, match="No space left on device"):
        write_folder(target, fails)
    assert names(tmp_path) == ["final"] and (target / "a").read_text() == "old"


@pytest.mark.parametrize("part", ["tokenizer", "weights", "all"])
def test_every_writers_refusal_is_the_same_message(tmp_path, part):
    loaded = tiny()
    write = {
        "tokenizer": lambda: write_folder(tmp_path / "final", loaded.processor.save_pretrained),
        "weights": lambda: write_folder(tmp_path / "final", loaded.policy.model.save_pretrained),
        "all": lambda: save_policy(tmp_path / "final", loaded, PLAIN),
    }[part]
    with file_limit(5000), pytest.raises(CheckpointError, match="final: could not be written"):
        write()
    assert names(tmp_path) == []
    write()
    assert names(tmp_path) == ["final"]


def test_a_bug_while_saving_is_not_called_a_full_disk(tmp_path):
    def fails(folder):
        raise KeyError("bug")

    with pytest.raises(KeyError):
        write_folder(tmp_path / "final", fails)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_final_model_loads_in_transformers_alone_and_says_the_same(model_folder, tmp_path, precision):
    model = {"path": str(model_folder), "precision": precision}
    run = recipe(model_folder, tmp_path / "run", model=model, run={"steps": 1, "save_every": 1})
    loop.train(run)
    final, exported = tmp_path / "run" / "final", tmp_path / "exported"
    assert export(tmp_path / "run" / "checkpoint-1", exported) == tmp_path / "run" / "checkpoint-1"
    code = (
        "import sys, transformers\n"
        "model = transformers.AutoModelForImageTextToText.from_pretrained(sys.argv[1])\n"
        "print(type(model).__name__, model.config.text_config._attn_implementation, model.dtype)\n"
        "assert 'vlm_r1' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(final)], capture_output=True, text=True)
    told = ["Qwen3VLForConditionalGeneration", "sdpa", f"torch.{precision}"]
    assert done.stdout.split() == told, done.stderr[-1000:]
    with open_session(run) as session:
        trained = {name: p.detach().clone() for name, p in full_parameters(session.policy).items()}
    for folder in (final, exported):
        found, info = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        for name, theirs in found.named_parameters():
            assert torch.equal(theirs, trained[f"model.{name}"].to(theirs.dtype)), name
        assert prompt_of_model(str(folder)) == PromptConfig(template="plain")
        assert json.loads((folder / "config.json").read_text())["model_type"] == "qwen3_vl"
        assert {"preprocessor_config.json", "tokenizer.json", "generation_config.json"} <= set(names(folder))
    with contextlib.suppress(ImportError):
        import torchvision  # noqa: F401

        AutoProcessor.from_pretrained(final)


def full_parameters(policy) -> dict[str, torch.Tensor]:
    found = dict(policy.named_parameters())
    return {name: p.full_tensor() if hasattr(p, "full_tensor") else p for name, p in found.items()}
