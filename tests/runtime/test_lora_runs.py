"""Whole runs with adapters: stopped and gone on, one model in memory, from an adapter, over a quantised base."""

import hashlib
import json
import shutil
from contextlib import ExitStack

import pytest
import torch
from safetensors.torch import load_file
from support import PLAIN, killed_runs, mixed_groups, recipe, untimed

from vlm_r1.config import ModelConfig
from vlm_r1.config_file import load_config
from vlm_r1.errors import CheckpointError, ConfigError
from vlm_r1.models import load
from vlm_r1.models.packing import pack
from vlm_r1.rl import loop, reference
from vlm_r1.rl.batch import as_prefix_group
from vlm_r1.runtime.export import export
from vlm_r1.runtime.session import open_session
from vlm_r1.sft import train as sft

TRAIN = {"grpo": loop.train, "sft": sft.train}
RL = {"group_size": 3, "prompts_per_step": 2, "beta": 0.05, "iterations": 2}
OPTIONS: dict[str, dict] = {
    "grpo": {"train": {"language": "lora"}, "rl": RL},
    "grpo-dora-everywhere": {
        "train": {"vision": "lora", "connector": "lora", "language": "lora"},
        "lora": {"rank": 4, "variant": "dora"},
        "rl": RL,
    },
    "grpo-bf16": {"train": {"language": "lora"}, "rl": RL, "model": {"precision": "bfloat16"}},
    "sft-dropout": {"train": {"language": "lora"}, "lora": {"rank": 4, "dropout": 0.3}},
}
REWARD = """
import zlib
def varied(sample, answer):
    return zlib.crc32(answer.raw.encode()) % 1000 / 1000
"""


@pytest.fixture
def reward(tmp_path):
    """A reward that differs between answers."""
    (tmp_path / "reward.py").write_text(REWARD)
    return f"{tmp_path / 'reward.py'}:varied"


@pytest.fixture
def opens():
    """`opens(recipe)`: an open session."""
    with ExitStack() as stack:
        yield lambda run: stack.enter_context(open_session(run))


def settings(model_path, run_dir, name="grpo", *, reward="repetition", steps=6, save_every=3, **more):
    method = name.partition("-")[0]
    run = {"steps": steps, "save_every": save_every, "log_rollouts_every": 0}
    options = {"optim": {"lr": 1e-2}, "rewards": {"parts": {reward: 1.0}}, "run": run} | OPTIONS[name]
    return recipe(model_path, run_dir, method, **options | more)


def weights(folder) -> bytes:
    return (folder / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_six_steps_equal_three_and_three(model_folder, tmp_path, reward, name):
    whole, halves = (settings(model_folder, tmp_path / part, name, reward=reward) for part in ("whole", "halves"))
    train = TRAIN[whole.method]
    train(whole)
    train(halves)
    for lost in ("checkpoint-6", "final"):  # as if killed between the two checkpoints
        shutil.rmtree(tmp_path / "halves" / lost)
    train(halves)
    final = weights(tmp_path / "whole" / "final")
    assert final == weights(tmp_path / "halves" / "final")
    export(tmp_path / "whole" / "checkpoint-3", tmp_path / "third")
    assert final != weights(tmp_path / "third")
    export(tmp_path / "halves" / "checkpoint-6", tmp_path / "sixth")
    assert final == weights(tmp_path / "sixth")
    assert untimed(tmp_path / "whole") == untimed(tmp_path / "halves")


@pytest.mark.slow
def test_a_killed_run_ends_as_the_one_never_killed(model_folder, tmp_path):
    run = settings(model_folder, tmp_path / "run", steps=5, save_every=1)
    assert killed_runs(run, tmp_path, [0.6]) == ["same"]


def test_the_base_is_not_touched_and_not_saved(model_folder, tmp_path):
    def digests():
        return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in model_folder.iterdir()}

    before = digests()
    sft.train(settings(model_folder, tmp_path / "run", "sft-dropout", steps=2, save_every=2))
    assert digests() == before
    export(tmp_path / "run" / "checkpoint-2", tmp_path / "exported")
    for folder in (tmp_path / "run" / "final", tmp_path / "exported"):
        config = json.loads((folder / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == str(model_folder.resolve())
        assert not [f.name for f in folder.glob("model*") if f.suffix == ".safetensors"]
    [shard] = (tmp_path / "run" / "checkpoint-2").glob("*.safetensors")
    kept = load_file(shard)
    assert kept and all(".lora_" in name for name in kept)


def logprobs(policy, loaded):
    row = pack([as_prefix_group(g) for g in mixed_groups(loaded)])
    with torch.no_grad():
        return policy(row, 1.0)[0]


def test_the_reference_is_the_same_model_without_its_adapter(model_folder, tmp_path, monkeypatch, reward, opens):
    run = settings(model_folder, tmp_path / "run", reward=reward, steps=2, save_every=2)
    monkeypatch.setattr(reference, "open_policy", lambda *args, **kwargs: pytest.fail("a second model was loaded"))
    loop.train(run)
    opened = opens(run)
    before = {id(p) for p in opened.loaded.policy.parameters()}
    found = reference.load_reference(opened)
    assert {id(p) for p in opened.loaded.policy.parameters()} == before
    base = load.load_policy(ModelConfig(path=str(model_folder)), PLAIN)
    expected = logprobs(base.policy, base)
    torch.testing.assert_close(logprobs(found, opened.loaded), expected, atol=1e-5, rtol=0)
    assert (logprobs(opened.loaded.policy, opened.loaded) - expected).abs().max() > 1e-3
    assert {n for n, p in opened.loaded.policy.named_parameters() if p.requires_grad} == {
        n for n, _ in opened.loaded.policy.named_parameters() if "lora_" in n
    }
    kl = [row["kl"] for row in untimed(tmp_path / "run")]
    assert kl[-1] > 1e-6


def test_an_adapter_is_trained_further_and_is_its_own_reference(model_folder, tmp_path, reward, opens):
    sft.train(settings(model_folder, tmp_path / "first", "sft-dropout", steps=2))
    first = tmp_path / "first" / "final"
    run = settings(first, tmp_path / "second", reward=reward, steps=4, save_every=2)
    loop.train(run)
    shutil.rmtree(tmp_path / "second" / "checkpoint-4")
    shutil.rmtree(tmp_path / "second" / "final")
    opened = opens(run)
    found = reference.load_reference(opened)
    start = load.load_policy(ModelConfig(path=str(first)), PLAIN)
    torch.testing.assert_close(logprobs(found, opened.loaded), logprobs(start.policy, start), atol=1e-5, rtol=0)
    assert not any(p.requires_grad for n, p in opened.loaded.policy.named_parameters() if ".reference." in n)
    after_two = untimed(tmp_path / "second")[:2]
    loop.train(run)
    whole = settings(first, tmp_path / "whole", reward=reward, steps=4, save_every=4)
    loop.train(whole)
    assert weights(tmp_path / "second" / "final") == weights(tmp_path / "whole" / "final")
    assert untimed(tmp_path / "whole")[:2] == after_two
    config = json.loads((tmp_path / "second" / "final" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_dropout"]) == (4, 0.0)
    assert config["base_model_name_or_path"] == str(model_folder.resolve())
    with pytest.raises(ConfigError, match=r"vlm-r1 export ADAPTER --merge"):
        loop.train(settings(first, tmp_path / "full", train={}, rl={"group_size": 3, "prompts_per_step": 2}))
    with pytest.raises(CheckpointError, match=r"holds a run with other settings \(.*lora"):
        sft.train(settings(model_folder, tmp_path / "first", "sft-dropout", lora={"rank": 8, "dropout": 0.3}))


def test_the_parameters_that_are_trained_are_told_in_one_line(model_folder, tmp_path, capsys):
    sft.train(settings(model_folder, tmp_path / "run", "sft-dropout", steps=1))
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("trained parameters: ")]
    assert told == ["trained parameters: vision none, connector none, language 4,480 (lora), of 146,240 in all"]


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_quantised_base(model_folder, tmp_path, reward, opens, kind):
    pytest.importorskip("bitsandbytes")
    model = {"path": str(model_folder), "quantize": kind}
    data = {"eval": {"held_out": {"scenes": {"split": "in_domain", "n": 2}}}}
    data["train"] = [{"scenes": {"n": 5}}]
    more = {"model": model, "data": data, "eval": {"max_new_tokens": 3}}
    run = settings(model_folder, tmp_path / "run", reward=reward, steps=2, save_every=1, **more)
    loop.train(run)
    assert min(row["grad_norm"] for row in untimed(tmp_path / "run")) > 0
    opened = opens(run)
    quantised = {n for n, m in opened.loaded.policy.model.named_modules() if "bit" in type(m).__name__.lower()}
    layers = opened.loaded.policy.model.model.language_model.layers
    assert len(quantised) >= 7 * len(layers) and all("language_model.layers" in n for n in quantised)
    shutil.rmtree(tmp_path / "run" / "checkpoint-2")
    expected = weights(tmp_path / "run" / "final")
    loop.train(run)
    assert weights(tmp_path / "run" / "final") == expected
    with pytest.raises(ConfigError, match=r"model\.quantize: quantised weights are not trained"):
        loop.train(settings(model_folder, tmp_path / "full", model=model, train={}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lora: {rank: 8}", "lora: no part is trained with it; set train.language: lora"),
        ("train: {language: lora, vision: full}", "beside a part with lora the others are lora or frozen"),
        ("train: {language: lora}\nlora: {dropout: 0.1}", "lora.dropout: the policy that is updated would not be"),
        ("train: {language: lora}\nmodel: {init: scratch}", "lora needs a base model with weights"),
        ("model: {init: scratch, quantize: nf4}", "has no weights to quantize"),
        ("train: {language: lora}\nrl: {reference_offload: true}", "there is no second model"),
        ("train: {language: lora}\nlora: {ranc: 8}", 'unknown key "lora.ranc": did you mean "rank"'),
    ],
)
def test_recipes_that_contradict_themselves(tmp_path, text, message):
    file = tmp_path / "my.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as raised:
        load_config(file)
    assert message in str(raised.value)


def test_bitsandbytes_is_asked_for(model_folder, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="run: pip install bitsandbytes"):
        load.load_policy(ModelConfig(path=str(model_folder), quantize="nf4"), PLAIN)
