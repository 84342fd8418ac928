"""Every family on a tiny checkpoint in the published layout: load, encode, rollout, exact update, save, boxes."""

import pytest
import torch
import zoo
from support import answered, assert_same_gradients, attending, gradients, noise_image, sample

from vlm_r1.config import TrainConfig
from vlm_r1.models.families import FAMILIES
from vlm_r1.models.freeze import blocks_of, freeze, frozen_features
from vlm_r1.models.packing import cut_by_budget, pack
from vlm_r1.models.policy import merge_images
from vlm_r1.models.vision_cache import VisionCache, _tensors
from vlm_r1.records import Rollout, RolloutGroup
from vlm_r1.rl.batch import as_prefix_group
from vlm_r1.runtime.model_folder import save_model
from vlm_r1.sft.batch import make_prefix_groups
from vlm_r1.sft.targets import target_ids

ZOO = zoo.zoo()
TEMPERATURE = 0.8


@pytest.fixture(scope="module", params=ZOO)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def entry(name):
    return ZOO[name]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, name):
    return zoo.built(name, tmp_path_factory.mktemp("zoo"))


def weights(count: int) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(5))


def test_a_prompt_is_what_the_processor_makes_of_it(folder, entry):
    loaded = zoo.load(folder)
    for one in zoo.samples(entry):
        prompt, expected = loaded.family.encode(one), zoo.processor_inputs(loaded, one)
        assert list(prompt.token_ids) == expected["input_ids"][0].tolist()
        for key, value in merge_images(prompt.images).items():
            theirs = expected[key]
            if value.numel() < theirs.numel():  # an image with fewer tiles than the other is padded with empty ones
                theirs = theirs.flatten(0, 1)[theirs.flatten(0, 1).flatten(1).any(1)]
            assert torch.equal(value.flatten(), theirs.flatten()), key


@pytest.mark.parametrize("vision", ["full", "last_1"])
def test_every_trained_parameter_has_a_gradient(folder, entry, vision):
    """But the last norm of a tower whose blocks are read before it."""
    loaded = zoo.load(folder)
    freeze(loaded.family, TrainConfig(vision=vision, connector="frozen", language="frozen"))
    row = pack([as_prefix_group(group) for group in zoo.groups(loaded, entry)])
    loaded.policy(row, TEMPERATURE)[0].sum().backward()
    trained = {n: p for n, p in loaded.policy.named_parameters() if p.requires_grad and "post_layernorm" not in n}
    assert trained and not [name for name, parameter in trained.items() if parameter.grad is None]


@pytest.mark.parametrize(
    ("budget", "backend"), [(100_000, "sdpa"), (100_000, "flash"), (60, "sdpa")], ids=["one-row", "flash", "cut"]
)
def test_the_packed_update_equals_the_plain_one(record_property, device, folder, entry, budget, backend):
    loaded, model = attending(zoo.load(folder, device), backend), zoo.plain(folder, entry, device)
    groups = zoo.groups(loaded, entry)
    expected = zoo.plain_logprobs(model, loaded, groups, TEMPERATURE)
    (expected * weights(len(expected))).sum().backward()
    parts, start = [], 0
    for prefix_groups in cut_by_budget([as_prefix_group(g) for g in groups], budget):
        logprobs = loaded.policy(pack(prefix_groups).to(device), TEMPERATURE)[0].cpu()
        (logprobs * weights(len(expected))[start : start + len(logprobs)]).sum().backward()
        start += len(logprobs)
        parts.append(logprobs.detach())
    torch.testing.assert_close(torch.cat(parts), expected.detach(), atol=2e-5, rtol=0)
    record_property("gradient_difference", assert_same_gradients(gradients(loaded.policy), gradients(model)))


def test_questions_about_a_image_train_as_each_would_alone(folder, entry):
    loaded, model = zoo.load(folder), zoo.plain(folder, entry)
    shown = noise_image(48, 32)
    asked = [sample("the red circle", shown), sample("the blue square left of it", shown, think="there")]
    logprobs, _ = loaded.policy(pack(make_prefix_groups(asked, loaded.family)))
    alone = [RolloutGroup(prompt=p, rollouts=(taught(loaded, p),)) for p in map(loaded.family.encode, asked)]
    expected = zoo.plain_logprobs(model, loaded, alone)
    torch.testing.assert_close(logprobs, expected, atol=2e-5, rtol=0)
    (logprobs * weights(len(expected))).sum().backward()
    (expected * weights(len(expected))).sum().backward()
    assert_same_gradients(gradients(loaded.policy), gradients(model))


def taught(loaded, prompt) -> Rollout:
    ids = tuple(target_ids(prompt, loaded.family))
    return Rollout(token_ids=ids, logprobs=(0.0,) * len(ids), text="", finish="stop")


def test_rollouts_record_the_log_probs_of_the_plain_forward(device, folder, entry):
    loaded = zoo.load(folder, device)
    prompts = [loaded.family.encode(s) for s in zoo.samples(entry)]
    groups = answered(loaded, prompts, 3, seed=1, max_new_tokens=7, temperature=TEMPERATURE)
    recorded = torch.tensor([lp for g in groups for r in g.rollouts for lp in r.logprobs])
    with torch.no_grad():
        expected = zoo.plain_logprobs(zoo.plain(folder, entry, device), loaded, groups, TEMPERATURE)
    torch.testing.assert_close(recorded, expected, atol=2e-5, rtol=0)
    suppressed = set(loaded.policy.suppressed.tolist())
    assert not any(suppressed & set(r.token_ids) for g in groups for r in g.rollouts)


def test_a_saved_model_comes_back(tmp_path, folder, entry):
    loaded = zoo.load(folder)
    save_model(tmp_path, loaded.policy.model, loaded.processor, loaded.family.settings)
    again = zoo.load(tmp_path)
    row = pack([as_prefix_group(g) for g in zoo.groups(loaded, entry)])
    with torch.no_grad():
        assert torch.equal(loaded.policy(row)[0], again.policy(row)[0])
    one = zoo.samples(entry)[0]
    assert again.family.encode(one).token_ids == loaded.family.encode(one).token_ids
    published = {f.name for f in folder.iterdir()} - {"vlm_r1.json"}
    assert published <= {f.name for f in tmp_path.iterdir()}


def test_boxes_go_to_the_models_space_and_back(folder, entry):
    family = zoo.load(folder).family
    for one in zoo.samples(entry):
        box_map = family.encode(one).box_map
        box = (3.0, 5.0, 17.0, 29.0)
        assert box_map.to_pixels(box_map.to_model(box)) == pytest.approx(box, abs=1e-6)


def test_every_parameter_belongs_to_one_part(folder, entry):
    family = zoo.load(folder).family
    parts = family.parameters()
    names = [name for part in parts.values() for name in part]
    assert sorted(names) == sorted(n for n, _ in family.model.named_parameters())
    assert all(parts.values()), {part: len(found) for part, found in parts.items()}


@pytest.fixture
def kept(monkeypatch):
    """`kept(loaded, connector)`: a policy with a frozen tower keeps what it makes; the batches that it is asked for."""

    def _kept(loaded, connector: str) -> list[int]:
        counts = freeze(loaded.family, TrainConfig(vision="frozen", connector=connector))
        assert counts["vision"] == 0 < counts["language"] and (counts["connector"] > 0) == (connector == "full")
        if (frozen := frozen_features(loaded.family)) is None:
            return []
        loaded.policy.cache_features(VisionCache(1 << 30), *frozen)
        calls, encode = [], loaded.policy._encode_frozen
        monkeypatch.setattr(loaded.policy, "_encode_frozen", lambda p: calls.append(len(p)) or encode(p))
        return calls

    return _kept


def test_features_of_a_frozen_tower_are_made_once(kept, folder, entry):
    loaded = zoo.load(folder)
    calls = kept(loaded, "frozen")
    groups = zoo.groups(loaded, entry)
    row = pack([as_prefix_group(g) for g in groups])
    with torch.no_grad():
        expected = zoo.plain_logprobs(zoo.plain(folder, entry), loaded, groups, TEMPERATURE)
        for _ in range(2):
            torch.testing.assert_close(loaded.policy(row, TEMPERATURE)[0], expected, atol=2e-5, rtol=0)
    assert calls == [len({image.key for image in row.images})]  # all together


@pytest.mark.parametrize("connector", ["frozen", "full"])
def test_what_is_kept_of_images_encoded_together_is_that_of_each_alone(kept, folder, entry, connector):
    """Up to the order of summation: float32, 1e-6 of the largest value of a tensor."""
    entries = []
    for together in (True, False):
        loaded = zoo.load(folder)
        kept(loaded, connector)
        if loaded.policy.vision_cache is None:
            return
        images = [p for one in zoo.samples(entry) for p in loaded.family.encode(one).images]
        for batch in [images] if together else [[p] for p in images]:
            loaded.policy.features(batch)
        entries.append([_tensors(kept) for kept in loaded.policy.vision_cache._entries.values()])
    assert len(entries[0]) == len(images) > 1
    for ours, alone in zip(*entries, strict=True):
        assert ours.keys() == alone.keys()
        for name, value in alone.items():
            torch.testing.assert_close(ours[name], value, atol=1e-6 * float(value.abs().max()), rtol=0)


def test_under_a_trained_connector_the_towers_output_is_kept(kept, folder, entry):
    """Features and the connector's gradients are those of the model without a cache; the tower's blocks run once."""
    plain, loaded = zoo.load(folder), zoo.load(folder)
    calls = kept(loaded, "full")
    freeze(plain.family, TrainConfig(vision="frozen"))
    if plain.policy.model.config.model_type not in FAMILIES:
        assert loaded.policy.vision_cache is None
        return
    blocks = []
    blocks_of(loaded.family, "vision")[0].register_forward_hook(lambda module, args, out: blocks.append(module.forward))
    row = pack([as_prefix_group(g) for g in zoo.groups(loaded, entry)])
    expected = plain.policy(row, TEMPERATURE)[0]
    (expected * weights(len(expected))).sum().backward()
    wanted = gradients(plain.policy)
    moved = [bool(wanted[f"model.{n}"].any()) for n in loaded.family.parameters()["connector"]]
    assert 2 * sum(moved) > len(moved)  # what Qwen3-VL adds behind the tiny model's last layer, no token reads
    for _ in range(2):
        found = loaded.policy(row, TEMPERATURE)[0]
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)
        (found * weights(len(expected))).sum().backward()
        assert_same_gradients(gradients(loaded.policy), wanted)
        with torch.no_grad():
            loaded.policy.features(row.images)
    assert calls == [len({image.key for image in row.images})]
    assert [forward.__name__ for forward in blocks] == ["forward"] * 2 + ["_hand_on"] * 4  # once for one image's graph
