"""Rates of a step: by hand from tokens, FLOPs and seconds, and as a run writes them."""

import pytest
import torch
from support import made_up, mixed_prompts, recipe, save_tiny, tiny

from vlm_r1.distributed.processes import ALONE, World
from vlm_r1.models.flops import Arithmetic, Work
from vlm_r1.rl import loop
from vlm_r1.rl.batch import as_prefix_group
from vlm_r1.runtime import throughput
from vlm_r1.runtime.runlog import read_metrics
from vlm_r1.runtime.tally import Tally
from vlm_r1.runtime.throughput import Shape, Throughput, peak_flops
from vlm_r1.sft import train as sft


@pytest.mark.parametrize(
    ("name", "dtype", "tf32", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", torch.bfloat16, False, 989e12),
        ("NVIDIA H100 PCIe", torch.bfloat16, True, 756e12),
        ("NVIDIA H200", torch.bfloat16, False, 989e12),
        ("NVIDIA A100-SXM4-80GB", torch.bfloat16, False, 312e12),
        ("NVIDIA A100-SXM4-80GB", torch.float32, True, 156e12),
        ("NVIDIA A100-SXM4-80GB", torch.float32, False, None),
        ("NVIDIA L4", torch.bfloat16, False, 121e12),
        ("NVIDIA L40S", torch.bfloat16, False, 362e12),
        ("NVIDIA A10G", torch.bfloat16, False, 70e12),
        ("NVIDIA GeForce RTX 4090", torch.bfloat16, False, 165e12),
        ("NVIDIA GeForce RTX 4080", torch.bfloat16, False, None),
        ("Tesla V100-SXM2-16GB", torch.bfloat16, False, None),
    ],
)
def test_peaks_of_gpus_by_their_names(name, dtype, tf32, peak):
    assert peak_flops(name, dtype, tf32=tf32) == peak


def gpu(monkeypatch, loaded, name="NVIDIA A100-SXM4-80GB", size=2) -> Throughput:
    """As it would be on a GPU of this name."""
    monkeypatch.setattr(throughput.torch.cuda, "get_device_name", lambda device: name)
    loaded.policy.compute_dtype = torch.bfloat16
    return Throughput(loaded, World(size=size, device=torch.device("cuda")))


def test_rates_by_hand(monkeypatch):
    """Two processes for 8 s: 2 s of rollout, 4 s of update."""
    counted = {"flops/rollout": 1e14, "flops/update": 3e14, "flops/update_padded": 12e14}
    tokens = {
        "tokens/prompt": 100.0,
        "tokens/answer": 600.0,
        "tokens/update_prompt": 80.0,
        "tokens/update_answer": 400.0,
    }
    times = {"time/rollout_s": 2.0, "time/update_s": 4.0, "time/step_s": 8.0, "time/collectives_s": 0.8}
    values = {**counted, **tokens, **times, "reward": 0.5}
    expected = {
        "time/rollout_share": 0.25,
        "time/update_share": 0.5,
        "time/collectives_share": 0.1,
        "perf/prompt_tokens_per_s": 50.0,
        "perf/completion_tokens_per_s": 300.0,
        "perf/trained_tokens_per_s": 120.0,
        "perf/throughput": (6 * 100 + 600) / 8 / 2,  # each completion with its prompt, a process
        "perf/tflops": 37.5,
        "perf/tflops_step": 25.0,
    }
    shares = {"perf/mfu": 37.5 / 312, "perf/mfu_padded": 150 / 312, "perf/mfu_step": 25 / 312}
    found = gpu(monkeypatch, tiny()).rates(values, 6)
    assert found == pytest.approx(expected | shares)
    assert values.keys() == {*tokens, *times, "reward"}
    ahead = gpu(monkeypatch, tiny()).rates(values | counted | {"rollout/generate_s": 4.0}, 6)  # beside the update
    assert (ahead["perf/prompt_tokens_per_s"], ahead["perf/completion_tokens_per_s"]) == (25.0, 150.0)
    unknown = gpu(monkeypatch, tiny(), "NVIDIA Unheard-of")
    assert unknown.rates(values | counted, 6) == pytest.approx(expected)


class OneEach(Arithmetic):
    """Of which every prompt is 100 FLOPs (10 of them images), every completion 1, and a padded row 1000."""

    def shared(self, token_ids, images, completions, contexts=(), encoded=1.0):
        assert list(contexts) == [0] * len(completions)
        return Work(90 + 10 * encoded + len(completions), 2 * (100 + len(completions)))

    def padded(self, token_ids, images, completions):
        return len(completions) * Work(1000, 2000)


@pytest.mark.parametrize(("hits", "forward"), [(None, 103), ((3, 4), 95.5)])
def test_what_is_counted_of_a_step(monkeypatch, hits, forward):
    """Two groups of three completions, of which one is trained on, in two iterations and with a reference."""
    monkeypatch.setattr(throughput, "Arithmetic", OneEach)
    loaded, tally = tiny(), Tally()
    if hits is not None:
        tally.mean("vision_cache/hit_rate", *hits)
    groups = [as_prefix_group(made_up(loaded, prompt, (2, 5, 3))) for prompt in mixed_prompts(loaded)[:2]]
    shapes = [Shape.of(group) for group in groups]
    Throughput(loaded, ALONE).count(tally, shapes, shapes[:1], rollout=True, steps=2, forwards=1)
    assert tally.totals == {
        "flops/rollout": 2 * forward,
        "flops/update": 2 * (forward + 206) + forward,
        "flops/update_padded": 2 * 3 * (2 * 3000 + 1000),
    }


RATES = {"perf/trained_tokens_per_s", "perf/tflops", "perf/tflops_step"}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny")


def test_a_run_writes_them(model_folder, tmp_path, capsys):
    loop.train(recipe(model_folder, tmp_path / "run"))
    for line in read_metrics(tmp_path / "run"):
        assert {*RATES, "perf/completion_tokens_per_s", "perf/prompt_tokens_per_s", "perf/throughput"} <= line.keys()
        assert all(line[name] >= 0 for name in line if name.startswith("perf/"))
        assert not any(name.startswith(("perf/mfu", "perf/peak", "flops/")) for name in line)  # on a CPU
        phases = [line[f"time/{phase}_share"] for phase in ("data", "rollout", "reward", "update", "sync")]
        assert 0 < sum(phases) <= 1
    assert "perf/completion_tokens_per_s" in capsys.readouterr().err


def test_supervised_runs_too(model_folder, tmp_path, capsys):
    sft.train(recipe(model_folder, tmp_path / "run", "sft"))
    [line, *_] = read_metrics(tmp_path / "run")
    assert line.keys() >= {*RATES, "time/update_share", "tokens/prompt"} and "perf/throughput" not in line
    rate = (line["tokens/prompt"] + line["tokens/answer"]) / line["time/update_s"]
    assert line["perf/trained_tokens_per_s"] == pytest.approx(rate)
    assert "perf/trained_tokens_per_s" in capsys.readouterr().err
