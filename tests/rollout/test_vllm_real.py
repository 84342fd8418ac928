"""The engine against real vLLM on the CPU: prompt ids, greedy answers, log-probs, weights and caches, adapters."""

import dataclasses

import pytest
import torch
from support import sample, scratch

from vlm_r1.config import DataSource, LoraConfig, ModelConfig, PromptConfig, RolloutConfig, ScenesSource, TrainConfig
from vlm_r1.data.source import load_source
from vlm_r1.distributed.processes import ALONE
from vlm_r1.distributed.wire import WeightFiles
from vlm_r1.models.adapters import adapt
from vlm_r1.models.load import load_policy
from vlm_r1.models.scratch import build_scratch
from vlm_r1.records import SamplingParams
from vlm_r1.rl.parity import compare, score
from vlm_r1.rollout.native import NativeEngine
from vlm_r1.rollout.vllm import VLLMEngine
from vlm_r1.rollout.vllm_client import Server
from vlm_r1.rollout.vllm_launch import Launch
from vlm_r1.rollout.vllm_server import Seat, ServerProcess, free_port
from vlm_r1.runtime.model_folder import save_model

pytestmark = pytest.mark.vllm
PLAIN = PromptConfig(template="plain")
SAMPLED = SamplingParams(max_new_tokens=24, temperature=0.7, seed=(0, 1))


@pytest.fixture
def loaded():
    """The shipped tiny model, on which the shared server runs."""
    return load_policy(ModelConfig(path="tiny", precision="float32"), PLAIN)


def engine_for(loaded, url, secret, folder):
    files = WeightFiles(loaded.policy, ALONE, str(folder))
    seats = [Seat(Server(url, secret), driven=True)]
    return VLLMEngine(loaded, RolloutConfig(engine="vllm", max_new_tokens=24), seats, files=files)


@pytest.fixture
def engine(loaded, vllm_server):
    """The engine over the shared server, under the tiny model's weights; it has them again afterwards."""
    made = engine_for(loaded, vllm_server.url, vllm_server.secret, vllm_server.weights_dir)
    first = {name: p.detach().clone() for name, p in loaded.policy.named_parameters()}
    made.sync(first.items(), 0)
    yield made
    made.sync(first.items(), 99)
    made.close()


def scenes(loaded, n):
    found = load_source(DataSource(scenes=ScenesSource(split="in_domain", n=n)), seed=0)
    return [dataclasses.replace(loaded.family.encode(s), number=i) for i, s in enumerate(found)]


def with_images(loaded, *counts):
    """Prompts with so many images, of odd sizes that are resized."""
    images = [s.images[0] for s in load_source(DataSource(scenes=ScenesSource(split="in_domain", n=4)), seed=0)]
    sizes = [(90, 61), (33, 47), (101, 75), (64, 64)]
    resized = [
        dataclasses.replace(p, image=p.open().resize(size), data=None, path=None)
        for p, size in zip(images, sizes, strict=True)
    ]
    prompts = [loaded.family.encode(sample("the red circle", *resized[:count])) for count in counts]
    return [dataclasses.replace(prompt, number=number) for number, prompt in enumerate(prompts)]


def trainer_difference(loaded, groups, temperature=0.7):
    trainer = torch.cat([score(loaded, group, temperature) for group in groups])
    sampler = torch.tensor([lp for group in groups for r in group.rollouts for lp in r.logprobs])
    return (trainer - sampler).abs()


def test_the_server_lacks_nothing(engine):
    assert engine.check().problems == ()


def test_images_of_odd_sizes_two_and_none(loaded, engine):
    """`rollouts_of` refuses an answer to other prompt ids than ours, so that an answer is the proof."""
    groups = list(engine.generate(with_images(loaded, 0, 1, 2), SAMPLED, n=4))
    assert [len(group.rollouts) for group in groups] == [4, 4, 4]
    difference = trainer_difference(loaded, groups)
    assert difference.mean() < 1e-4 and difference.max() < 1e-3


def test_greedy_answers_and_log_probs_are_the_trainers(loaded, engine):
    found = compare(loaded, engine, NativeEngine(loaded), scenes(loaded, 24), SAMPLED, 4)
    assert found.same + found.ties == found.greedy
    assert found.mean < 1e-5 and found.maximum < 1e-3 and abs(found.kl) < 1e-6


def test_without_stop_at_answer_the_end_of_turn_token_is_part_of_a_completion(loaded, engine):
    sampling = dataclasses.replace(SAMPLED, max_new_tokens=64, stop_at_answer=False)
    groups = list(engine.generate(scenes(loaded, 4), sampling, n=2))
    ended = [r for group in groups for r in group.rollouts if r.finish == "stop"]
    assert ended and {r.token_ids[-1] for r in ended} == {loaded.family.end_token_id}
    assert all(len(r.logprobs) == len(r.token_ids) for r in ended)
    assert trainer_difference(loaded, groups).max() < 1e-3


def test_a_second_family(vllm_python, tmp_path):
    """Qwen2.5-VL: windows in the tower, boxes in pixels of the resized image; heads as wide as vLLM's kernels take."""
    config = scratch("qwen2_5_vl")
    config["text_config"] |= {"hidden_size": 64, "initializer_range": 0.3}
    config["text_config"]["rope_parameters"] = config["text_config"]["rope_parameters"] | {"mrope_section": [6, 5, 5]}
    config["vision_config"] |= {"hidden_size": 64, "out_hidden_size": 64, "initializer_range": 0.3}
    model, processor = build_scratch(config, 3)
    save_model(tmp_path, model.float(), processor, PLAIN)
    loaded = load_policy(ModelConfig(path=str(tmp_path), precision="float32"), PLAIN)
    weights = tmp_path / "weights"
    weights.mkdir()
    launch = Launch(
        model=str(tmp_path), dtype="float32", port=free_port(), max_model_len=512, images=2, weights_dir=str(weights)
    )
    process = ServerProcess(launch, vllm_python, tmp_path / "server.log")
    process.start()
    try:
        process.wait_ready()
        engine = engine_for(loaded, process.url, None, weights)
        before = engine._do(engine.seats[0].server.checksums())
        engine.sync(loaded.policy.named_parameters(), 0)
        assert engine._do(engine.seats[0].server.checksums()) == before
        found = compare(loaded, engine, NativeEngine(loaded), with_images(loaded, 0, 1, 2), SAMPLED, 4)
        engine.close()
    finally:
        process.kill()
    assert found.same + found.ties == found.greedy
    assert found.mean < 1e-4 and found.maximum < 1e-2


def disturb(loaded, part, by=0.05):
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in loaded.family.parameters()[part].values():
            parameter += by * parameter.std() * torch.randn(parameter.shape, generator=generator)


def long_prompt(loaded):
    """Longer than two blocks of keys and values, so that the prefix cache holds some."""
    question = " ".join(["the red circle left of the blue square"] * 40)
    prompt = loaded.family.encode(sample(question, with_images(loaded, 1)[0].sample.images[0]))
    assert len(prompt.token_ids) > 256
    return prompt


@pytest.mark.parametrize("part", ["vision", "language"])
def test_after_a_sync_the_new_weights_answer_about_the_same_image(loaded, engine, part):
    prompt = long_prompt(loaded)
    before = list(engine.generate([prompt], SAMPLED, n=4))
    disturb(loaded, part)
    assert trainer_difference(loaded, before).max() > 1e-2  # the disturbance can be seen
    engine.sync(loaded.policy.named_parameters(), 1)
    after = list(engine.generate([prompt], SAMPLED, n=4))
    difference = trainer_difference(loaded, after)
    assert difference.mean() < 1e-4 and difference.max() < 1e-3
    assert {rollout.version for group in after for rollout in group.rollouts} == {1}


@pytest.mark.parametrize(
    ("left_out", "part"), [("/reset_encoder_cache", "vision"), ("/reset_prefix_cache", "language")]
)
def test_each_reset_is_needed(loaded, engine, monkeypatch, left_out, part):
    """Without it the same prompt is answered with what the weights before made of it."""
    prompt = long_prompt(loaded)
    list(engine.generate([prompt], SAMPLED, n=4))
    call = Server.call

    async def without(self, path, *args, **kwargs):
        return {"success": True} if path == left_out else await call(self, path, *args, **kwargs)

    monkeypatch.setattr(Server, "call", without)
    disturb(loaded, part)
    engine.sync(loaded.policy.named_parameters(), 1)
    stale = list(engine.generate([prompt], SAMPLED, n=4))
    assert trainer_difference(loaded, stale).max() > 1e-2


def test_checksums_confirm_what_arrived(loaded, engine):
    server = engine.seats[0].server
    before = engine._do(server.checksums())
    first = {name: parameter.detach().clone() for name, parameter in loaded.policy.named_parameters()}
    disturb(loaded, "vision")
    engine.sync(loaded.policy.named_parameters(), 1)
    changed = engine._do(server.checksums())
    tower = {name for name in before if before[name] != changed[name]}
    assert tower and all("visual." in name for name in tower)
    engine.sync(first.items(), 2)
    assert engine._do(server.checksums()) == before


def test_adapters_travel_alone_under_a_name_for_each_version(vllm_python, tmp_path):
    loaded = load_policy(ModelConfig(path="tiny", precision="float32"), PLAIN)
    train = TrainConfig(language="lora")
    adapt(loaded.family, train, LoraConfig(rank=8, alpha=32), 0)
    launch = Launch(
        model=str(loaded.policy.model.name_or_path),
        dtype="float32",
        port=free_port(),
        max_model_len=512,
        lora_rank=8,
        weights_dir=str(tmp_path),
    )
    process = ServerProcess(launch, vllm_python, tmp_path / "server.log")
    process.start()
    try:
        process.wait_ready()
        engine = engine_for(loaded, process.url, None, tmp_path)
        assert engine.check().problems == ()
        prompts = scenes(loaded, 6)
        for version in range(4):
            with torch.no_grad():
                for name, parameter in loaded.policy.named_parameters():
                    if "lora_" in name:
                        parameter += 0.02 * torch.randn_like(parameter)
            engine.sync(loaded.policy.named_parameters(), version)
            groups = list(engine.generate(prompts, SAMPLED, n=3))
            difference = trainer_difference(loaded, groups)
            assert difference.mean() < 1e-4 and difference.max() < 1e-3
            names = engine._do(engine.seats[0].server.models())
            assert names == {"policy", f"{engine.run}-v{version}"}
        engine.close()
    finally:
        process.kill()
