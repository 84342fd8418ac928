"""Features of a frozen tower are computed once: equal to its own, bounded, kept on disk, dropped with the weights."""

import pytest
import torch
from safetensors.torch import load_file
from support import assert_same_gradients, gradients, mixed_groups, mixed_prompts, recipe, row_of, save_tiny, tiny

from vlm_r1.models import vision_cache
from vlm_r1.models.vision_cache import VisionCache, WeightsVersion
from vlm_r1.records import VisionInput
from vlm_r1.rl import loop
from vlm_r1.runtime.runlog import read_metrics
from vlm_r1.runtime.tally import cache_tally
from vlm_r1.sft.train import train as sft

FAMILIES = ("qwen3_vl", "qwen2_5_vl")


def cached(family: str = "qwen3_vl", capacity: int = 1 << 30, folder=None, device="cpu"):
    """A policy with a frozen, cached tower, and a list that a call of the tower adds to."""
    loaded = tiny(family, device=device)
    tower = loaded.policy.model.model.visual
    tower.requires_grad_(False)
    loaded.policy.cache_features(
        VisionCache(capacity, folder), [f"model.visual.{name}" for name, _ in tower.named_parameters()]
    )
    calls: list[int] = []
    tower.register_forward_hook(lambda *_: calls.append(1))
    return loaded, calls


def rows(loaded):
    return row_of(loaded, mixed_groups(loaded))


@pytest.mark.parametrize("family", FAMILIES)
def test_cached_features_give_the_same_log_probs_and_gradients(device, family):
    plain = tiny(family, device=device)
    plain.policy.model.model.visual.requires_grad_(False)
    expected = plain.policy(rows(plain))[0]
    expected.square().sum().backward()
    wanted = gradients(plain.policy)
    loaded, calls = cached(family, device=device)
    for _ in range(2):
        found = loaded.policy(rows(loaded))[0]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        found.square().sum().backward()
        assert_same_gradients(gradients(loaded.policy), wanted)
    assert len(calls) == 1  # the six images together, once


def test_other_weights_are_other_features():
    """This fails where a cache goes on answering after the weights changed."""
    loaded, calls = cached()
    before = loaded.policy(rows(loaded))[0]
    with torch.no_grad():
        loaded.policy.model.model.visual.merger.linear_fc2.weight.mul_(1.5)
    after = loaded.policy(rows(loaded))[0]
    loaded.policy.vision_cache = None
    assert torch.equal(after, after.detach()) and (before - after).abs().max() > 1e-3
    torch.testing.assert_close(after, loaded.policy(rows(loaded))[0], atol=1e-5, rtol=0)
    assert len(calls) == 1 + 1 + 1


def test_weights_that_are_written_or_replaced_have_another_hash():
    version, weight = WeightsVersion(), torch.nn.Parameter(torch.ones(3))
    first = version([weight])
    assert version([weight]) == first == WeightsVersion()([torch.ones(3)])
    with torch.no_grad():
        weight.add_(1)
    second = version([weight])
    weight.data = torch.ones(3)
    assert second != first and version([weight]) == first
    assert version([torch.ones(3, dtype=torch.bfloat16)]) != first


def test_memory_is_bounded_and_the_least_recently_used_go_first():
    made = []

    class Output(dict):
        pass

    def encode(images):
        made.extend(image.key for image in images)
        return Output(pooler_output=torch.zeros(1, 10), last_hidden_state=torch.zeros(1000))

    cache = VisionCache(capacity=2 * 40)
    for key in "aabacab":  # c pushes out b
        cache.lookup([VisionInput(key=key, tensors={})], "w", encode, torch.device("cpu"))
    assert made == ["a", "b", "c", "b"] and cache.size == 80
    assert cache_tally(cache).values() == {"vision_cache/mb": 80 / 2**20, "vision_cache/hit_rate": 3 / 7}
    assert cache_tally(cache).values() == {"vision_cache/mb": 80 / 2**20}  # nothing was asked since
    assert cache_tally(None).values() == {}


def test_features_come_back_from_disk_and_a_damaged_file_is_made_again(tmp_path):
    first, calls = cached(folder=tmp_path)
    expected = first.policy(rows(first))[0]
    files = sorted(tmp_path.glob("*.safetensors"))
    assert (len(files), len(calls)) == (6, 1) and sorted(tmp_path.iterdir()) == files
    second, calls = cached(folder=tmp_path)
    torch.testing.assert_close(second.policy(rows(second))[0], expected, atol=1e-5, rtol=0)
    assert calls == []
    files[0].write_bytes(files[0].read_bytes()[:50])
    third, calls = cached(capacity=0, folder=tmp_path)
    torch.testing.assert_close(third.policy(rows(third))[0], expected, atol=1e-5, rtol=0)
    assert len(calls) == 1 and set(load_file(files[0])) >= {"pooler_output.0"}


def test_two_questions_about_one_image_encode_it_once():
    loaded, calls = cached()
    prompt = mixed_prompts(loaded)[0]
    loaded.policy.features([*prompt.images, *prompt.images])
    assert len(calls) == 1


def test_images_are_encoded_together_up_to_a_bound(monkeypatch):
    """Sizes 30, 30, 50, 100 and 20 under a bound of 80: what does not fit begins a batch, a larger one is alone."""
    monkeypatch.setattr(vision_cache, "ENCODED_AT_ONCE", 80)
    seen = []

    def encode(images):
        seen.append([image.key for image in images])
        return {"pooler_output": torch.cat([p.tensors["x"] for p in images])}

    images = [
        VisionInput(key=k, tensors={"x": torch.rand(n, 10)}) for k, n in zip("abcde", (3, 3, 5, 10, 2), strict=True)
    ]
    cache = VisionCache(1 << 20)
    cache.lookup([images[1]], "w", encode, torch.device("cpu"))
    found = cache.lookup([*images, images[0]], "w", encode, torch.device("cpu"))
    assert seen == [["b"], ["a", "c"], ["d"], ["e"]]
    expected = torch.cat([p.tensors["x"] for p in [*images, images[0]]])
    assert torch.equal(found.pooler_output, expected) and cache.take_counts() == (2, 7)


def test_an_output_that_cannot_be_divided_is_made_image_by_image():
    seen = []

    def encode(images):
        seen.append(len(images))
        return {"pooler_output": torch.cat([p.tensors["x"][:-1] for p in images])}  # neither images nor rows

    images = [VisionInput(key=str(n), tensors={"x": torch.rand(n, 3)}) for n in (4, 5, 7)]
    cache = VisionCache(1 << 20)
    found = cache.lookup(images[:2], "w", encode, torch.device("cpu"))
    cache.lookup([images[2], VisionInput(key="more", tensors=images[0].tensors)], "w", encode, torch.device("cpu"))
    assert torch.equal(found.pooler_output, torch.cat([p.tensors["x"][:-1] for p in images[:2]]))
    assert seen == [2, 1, 1, 1, 1]


@pytest.mark.parametrize("method", ["grpo", "sft"])
@pytest.mark.parametrize("connector", ["frozen", "full", "lora"])
def test_a_second_epoch_makes_no_tower_call(monkeypatch, tmp_path, method, connector):
    """12 images, 2 a step: six steps see each once. Rollout, update, reference and later epochs share it."""
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionBlock

    from vlm_r1.models.policy import Policy

    batches, blocks = [], []
    encode, forward = Policy._encode_frozen, Qwen3VLVisionBlock.forward

    def counted(self, images):
        batches.append([image.key for image in images])
        return encode(self, images)

    monkeypatch.setattr(Policy, "_encode_frozen", counted)
    monkeypatch.setattr(
        Qwen3VLVisionBlock, "forward", lambda self, *args, **kwargs: blocks.append(1) or forward(self, *args, **kwargs)
    )
    settings = recipe(
        save_tiny(tmp_path / "model"),
        tmp_path / "run",
        method,
        train={"vision": "frozen", "connector": connector, "language": "lora" if connector == "lora" else "full"},
        model={"path": str(tmp_path / "model"), "precision": "bfloat16" if connector == "lora" else "float32"},
        run={"steps": 12, "save_every": 100},
        **({"rl": {"beta": 0.1, "iterations": 2}} if method == "grpo" else {}),
    )
    (loop.train if method == "grpo" else sft)(settings)
    calls = [key for batch in batches for key in batch]
    n_images = 12
    assert len(calls) == len(set(calls)) == n_images
    assert len(blocks) == 2 * (len(batches) + (connector != "frozen"))  # once for the graph of one image
    metrics = read_metrics(tmp_path / "run")
    assert [m["vision_cache/hit_rate"] for m in metrics[6:]] == [1.0] * 6
    assert metrics[0]["vision_cache/hit_rate"] < 1


def test_a_trained_tower_has_no_cache(tmp_path):
    from vlm_r1.runtime.session import open_session

    folder = save_tiny(tmp_path / "model")
    for number, train in enumerate([{}, {"connector": "frozen"}, {"vision": "last_1"}]):
        with open_session(recipe(folder, tmp_path / f"run-{number}", train=train)) as session:
            assert session.loaded.policy.vision_cache is None
