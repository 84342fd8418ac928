"""Compute in bfloat16 over float32 weights: one process is sharded by one, gradients add up in float32."""

import json

import pytest
import torch
from distributed.conftest import make
from distributed.running import run_all, torchrun, weights, with_folder
from safetensors.torch import load_file

from vlm_r1.config_file import resolved_yaml
from vlm_r1.runtime.runlog import read_metrics

pytestmark = pytest.mark.slow

LOW = {"model": {"precision": "bfloat16"}}


@pytest.fixture(scope="module")
def runs(model_folder, rewards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("low")
    recipes = {
        "grpo": make(model_folder, rewards, rl={"beta": 0.02}, **LOW),
        "lora": make(model_folder, rewards, train={"language": "lora"}, rl={"beta": 0.02}, **LOW),
        "offload": make(model_folder, rewards, rl={"beta": 0.02, "reference_offload": True}, **LOW),
        "float32": make(model_folder, rewards, rl={"beta": 0.02}),
    }
    return {n: run_all(recipes, n, folder / str(n)) for n in (1, 2)}


@pytest.mark.parametrize("name", ["grpo", "lora", "offload"])
@pytest.mark.parametrize("processes", [1, 2])
def test_the_sampler_and_the_trainer_agree_to_bfloat16(runs, name, processes):
    rows = read_metrics(runs[processes][name])
    assert len(rows) == 5
    for row in rows:
        assert 0 <= row["sampling/sampling_logp_difference/mean"] < 0.02  # 0: they agree to the bit
        assert row["sampling/sampling_logp_difference/max"] < 0.2
        assert row["sampling/importance_sampling_ratio/mean"] == 1.0  # the native engine is not corrected
        assert row["grad_norm"] > 0


def test_steps_smaller_than_bfloat16_can_hold_are_not_lost(model_folder, rewards, tmp_path):
    """At lr 1e-6 AdamW moves a weight of 0.1 by a 400th of bfloat16's step; float32 shards keep it."""
    run = with_folder(make(model_folder, rewards, optim={"lr": 1e-6}, run={"steps": 2}, **LOW), tmp_path / "run")
    (tmp_path / "recipe.yaml").write_text(resolved_yaml(run))
    torchrun(1, "shard_types.py", str(tmp_path / "recipe.yaml"), str(tmp_path / "types.json"))
    found = json.loads((tmp_path / "types.json").read_text())
    assert found["parameters"] == found["gradients"] == found["state"] == ["torch.float32"]
    assert found["sampled with"] == ["torch.bfloat16"]
    assert found["moved"] > 0.8  # embeddings of words that no prompt has stay where they are


def test_the_final_model_is_what_sampled(runs):
    low, high = weights(runs[1]["grpo"]), weights(runs[1]["float32"])
    assert {t.dtype for t in low.values()} == {torch.bfloat16}
    assert {t.dtype for t in high.values()} == {torch.float32}
    two = weights(runs[2]["grpo"])
    assert low.keys() == two.keys()
    assert max(float((low[n].float() - two[n].float()).abs().max()) for n in low) < 2e-2


def test_muon_steps_on_the_only_shard_of_one_process_and_continues(model_folder, rewards, tmp_path):
    """One process in bfloat16 is sharded by one: an optimizer that knows no shards works on what is inside."""
    muon = make(model_folder, rewards, optim={"name": "muon"}, run={"steps": 4, "save_every": 2, "keep": 9}, **LOW)
    whole = run_all({"muon": muon}, 1, tmp_path / "whole")["muon"]
    run_all({"muon": muon}, 1, tmp_path / "parts", steps=2)
    parts = run_all({"muon": muon}, 1, tmp_path / "parts")["muon"]
    start = weights_of(model_folder)
    first, second = weights(whole), weights(parts)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert sum(bool((first[n].float() - start[n]).abs().max() > 1e-4) for n in first) > 0.8 * len(first)


def weights_of(folder):
    return load_file(folder / "model.safetensors")
