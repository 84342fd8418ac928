"""Whole runs on the machine's own device, in float32 and bfloat16, with every way to train; and compiled layers."""

import dataclasses

import pytest
import torch
from distributed.conftest import REWARDS, make
from support import PLAIN, answered, assert_same_gradients, gradients, mixed_groups, row_of, save_tiny, tiny

from vlm_r1.config import ModelConfig
from vlm_r1.models.load import load_policy
from vlm_r1.rl import loop
from vlm_r1.runtime.runlog import read_metrics

FROZEN = {"vision": "frozen", "connector": "frozen"}
WAYS = {
    "full": {},
    "checkpointing": {"model": {"gradient_checkpointing": True}},
    "frozen tower": {"train": FROZEN},
    "lora": {"train": {"language": "lora"}},
    "nf4": {"train": {"language": "lora"}, "model": {"quantize": "nf4"}},
    "kl": {"rl": {"beta": 0.02}},
}
HIGHEST = {"float32": (1e-4, 1e-3), "bfloat16": (0.02, 0.2)}
"""Mean and highest difference of sampler and trainer in nats; bfloat16's are those of `tests/distributed`."""


@pytest.mark.parametrize("precision", HIGHEST)
@pytest.mark.parametrize("way", WAYS)
def test_the_sampler_and_the_trainer_agree(record_property, session_device, tmp_path, way, precision):
    if way == "nf4":
        pytest.importorskip("bitsandbytes")
    folder, rewards = save_tiny(tmp_path / "model"), tmp_path / "rewards.py"
    rewards.write_text(REWARDS)
    model = {"precision": precision, **WAYS[way].get("model", {})}
    run = {"dir": str(tmp_path / "run"), "steps": 2, "save_every": 2}
    loop.train(make(folder, rewards, **(WAYS[way] | {"model": model, "run": run})))
    mean, highest = HIGHEST[precision]
    rows = read_metrics(tmp_path / "run")
    assert len(rows) == 2
    for row in rows:
        record_property("mean", row["sampling/sampling_logp_difference/mean"])
        assert row["sampling/sampling_logp_difference/mean"] <= mean
        assert row["sampling/sampling_logp_difference/max"] <= highest
        assert row["grad_norm"] > 0


@pytest.mark.slow
def test_compiled_layers_compute_the_same(device, tmp_path):
    folder, plain = save_tiny(tmp_path / "model"), tiny(device=device)
    loaded = load_policy(ModelConfig(path=str(folder), precision="float32", compile=True), PLAIN)
    loaded = dataclasses.replace(loaded, policy=loaded.policy.to(device))
    groups, found = mixed_groups(plain), []
    for one in (loaded, plain):
        logprobs = one.policy(row_of(one, groups))[0]
        logprobs.square().sum().backward()
        found.append((logprobs.detach().cpu(), gradients(one.policy)))
    torch.testing.assert_close(found[0][0], found[1][0], atol=1e-5, rtol=0)
    assert_same_gradients(found[0][1], found[1][1])
    settings = {"n": 2, "seed": None, "max_new_tokens": 12}
    written = [
        [r.token_ids for g in answered(one, [g.prompt for g in groups], **settings) for r in g.rollouts]
        for one in (loaded, plain)
    ]
    assert written[0] == written[1]
