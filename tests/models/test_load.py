"""One door to every model, and one message for what is not a model."""

import json
import shutil
import socket
import time

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import FAMILIES, PLAIN, mixed_prompts, save_tiny, scratch, tiny

from vlm_r1.config import ModelConfig, PromptConfig
from vlm_r1.errors import ConfigError, ModelError, UserError
from vlm_r1.models import load
from vlm_r1.models.load import PROMPT_FILE, load_policy, prompt_of_model
from vlm_r1.models.policy import merge_images
from vlm_r1.runtime.model_folder import save_model


@pytest.fixture
def folder(tmp_path):
    return save_tiny(tmp_path / "model")


@pytest.mark.parametrize("name", FAMILIES)
def test_a_saved_model_comes_back_with_its_family(tmp_path, name):
    folder = save_tiny(tmp_path / "model", name)
    loaded, expected = load_policy(ModelConfig(path=str(folder)), PLAIN), tiny(name)
    assert type(loaded.family) is type(expected.family)
    for ours, theirs in zip(loaded.policy.parameters(), expected.policy.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    for a, b in zip(mixed_prompts(loaded), mixed_prompts(expected), strict=True):
        assert a.token_ids == b.token_ids and torch.equal(a.positions, b.positions)
        ours, theirs = merge_images(a.images), merge_images(b.images)
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert loaded.policy.suppressed.tolist() == expected.policy.suppressed.tolist()


def test_the_family_is_chosen_by_the_model_and_not_by_its_path(tmp_path):
    folder = save_tiny(tmp_path / "my-qwen2_5_vl-model", "qwen3_vl")
    assert type(load_policy(ModelConfig(path=str(folder))).family).__name__ == "QwenVL"


def test_weights_from_scratch_depend_on_the_seed_alone():
    config = ModelConfig(init="scratch", scratch=scratch())
    torch.manual_seed(0)
    a = load_policy(config, seed=1).policy.state_dict()
    state = torch.get_rng_state()
    b, c = (load_policy(config, seed=seed).policy.state_dict() for seed in (1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not torch.equal(a["model.lm_head.weight"], c["model.lm_head.weight"])


def test_the_dtype_is_the_recipes(folder):
    loaded = load_policy(ModelConfig(path=str(folder), dtype="bfloat16"))
    assert {p.dtype for p in loaded.policy.parameters()} == {torch.bfloat16}


def test_tied_embeddings_are_stored_once_and_come_back(tmp_path):
    config = ModelConfig(init="scratch", scratch=scratch() | {"tie_word_embeddings": True})
    loaded = load_policy(config)
    save_model(tmp_path, loaded.policy.model, loaded.processor, PLAIN)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    model = load_policy(ModelConfig(path=str(tmp_path))).policy.model
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_prompt_settings_travel_with_the_model(folder):
    assert prompt_of_model(str(folder)) == PLAIN
    (folder / PROMPT_FILE).unlink()
    assert prompt_of_model(str(folder)) == PromptConfig()
    (folder / PROMPT_FILE).write_text('{"template": 3}')
    with pytest.raises(ModelError, match=rf"{PROMPT_FILE}: holds no prompt settings .*delete it"):
        prompt_of_model(str(folder))


def without_weights(folder):
    (folder / "model.safetensors").unlink()


def cut_weights(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])


def cut_in_the_middle(folder):
    file = folder / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])


def without_a_layer(folder):
    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if "language_model.layers.1." not in name}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})


def without_config(folder):
    (folder / "config.json").unlink()


def broken_config(folder):
    (folder / "config.json").write_text("{")


def other_family(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "bert", "architectures": None}))


def without_processor(folder):
    for file in folder.iterdir():
        if file.name not in ("config.json", "model.safetensors", "generation_config.json"):
            file.unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_weights, "model.safetensors"),
        (cut_weights, "cannot be loaded"),
        (cut_in_the_middle, "cannot be loaded"),
        (without_a_layer, r"no weights for \d+ parameters \(model.language_model.layers.1"),
        (without_config, r"no config\.json"),
        (broken_config, "cannot be loaded"),
        (other_family, r'family "bert" of .* is not supported; '),
        (without_processor, "processor"),
        (shutil.rmtree, "does not exist"),
    ],
)
def test_what_is_no_model_is_one_message_with_its_path(folder, damage, message):
    damage(folder)
    with pytest.raises(UserError, match=message) as caught:
        load_policy(ModelConfig(path=str(folder)))
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)
    assert str(caught.value).startswith("model.path: ")


def test_an_unknown_hub_id_is_one_message():
    message = (
        r'model.path: "nobody/nothing" is not a folder here, .* \(HF_HUB_OFFLINE is set\); .* \(hf download nobody'
    )
    with pytest.raises(ModelError, match=message):
        load_policy(ModelConfig(path="nobody/nothing"))


def test_a_hub_that_does_not_answer_is_said_at_once(monkeypatch, capfd):
    with socket.socket() as closed:  # a port where nothing listens
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
    monkeypatch.setattr(load.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(load.constants, "ENDPOINT", address)
    started = time.monotonic()
    with pytest.raises(ModelError, match=rf"cannot be reached \({address}: .*refused.*--local-dir FOLDER"):
        load_policy(ModelConfig(path="nobody/nothing"))
    assert time.monotonic() - started < load.HUB_TIMEOUT_S + 1
    assert capfd.readouterr().err == ""


def test_a_run_folder_is_not_a_model_and_the_message_names_the_one_in_it(folder, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(folder, run / "final")
    with pytest.raises(ModelError, match=r'run" is not a model folder .*; did you mean ".*run/final"\?'):
        load_policy(ModelConfig(path=str(run)))


def test_a_run_that_wrote_no_model_yet_is_not_looked_for_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="does not exist"):
        load_policy(ModelConfig(path="runs/mine/final"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt"}, "model.scratch.model_type: 'gpt' is not one of qwen3_vl, qwen2_5_vl"),
        ({"model_type": None}, "model.scratch.model_type: None is not one of"),
        ({"vocabulary": 3}, "model.scratch: unknown key vocabulary"),
    ],
)
def test_a_wrong_scratch_section_names_its_key(change, message):
    with pytest.raises(ConfigError, match=message):
        load_policy(ModelConfig(init="scratch", scratch=scratch() | change))


@pytest.mark.parametrize("text", ["", "héllo 猫 🎈", "<think>a</think><answer>[12, 345]</answer>", "\x00\t\n"])
def test_the_scratch_tokenizer_encodes_any_text(text):
    tokenizer = tiny().tokenizer
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text
    for tag in ("<think>", "</think>", "<answer>", "</answer>"):
        assert len(tokenizer(tag, add_special_tokens=False)["input_ids"]) == 1
    digits = tokenizer("12345", add_special_tokens=False)["input_ids"]
    assert len(digits) == 5
