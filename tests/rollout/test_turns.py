"""Answers that speak with an environment: what the native engine records is what the update computes."""

import dataclasses
import time

import pytest
import torch
import zoo
from fake_vllm import FakeVLLM
from support import attending, noise_image

from vlm_r1.config import EnvConfig, RolloutConfig
from vlm_r1.envs import Reply
from vlm_r1.envs.host import Host
from vlm_r1.models.packing import pack
from vlm_r1.records import SamplingParams
from vlm_r1.rl.batch import as_prefix_group
from vlm_r1.rollout.cache import Prefill
from vlm_r1.rollout.feed import Feed
from vlm_r1.rollout.native import NativeEngine
from vlm_r1.rollout.vllm import VLLMEngine
from vlm_r1.rollout.vllm_client import Server
from vlm_r1.rollout.vllm_server import Seat

FAMILIES = ["qwen3_vl", "qwen2_5_vl", "qwen3_5", "internvl", "smolvlm", "aya_vision"]
CROPS = [noise_image(32, 48, 7), noise_image(64, 32, 8), noise_image(40, 40, 9)]
SAMPLED = SamplingParams(seed=(3,), max_new_tokens=6, temperature=0.8, max_calls=2)


class Echo:
    """Answers most of what is written, with no image, one or two."""

    def __init__(self) -> None:
        self.asked = []

    def instructions(self, max_calls):
        return ""

    def begin(self, seen):
        return [{"seen": one, "calls": 0} for one in seen]

    def step(self, state, text):
        state["calls"] += 1
        self.asked.append(text)
        kind = (len(text) + state["calls"]) % 4
        time.sleep(0.01 * kind)
        if kind == 3:
            return None
        return Reply(text=f"reply {kind}", images=tuple(CROPS[i].open() for i in range(kind)))

    def score(self, states, texts):
        return [float(state["calls"]) for state in states]


def engine_of(loaded, **settings) -> NativeEngine:
    stops = list(range(11, len(loaded.tokenizer), 6))
    loaded.policy.model.generation_config.eos_token_id = stops
    host = Host(EnvConfig(tools=["zoom"], max_calls=SAMPLED.max_calls), loaded.family)
    host.environment = Echo()
    return NativeEngine(loaded, RolloutConfig(**settings), host=host)


def asked(loaded, entry):
    return [dataclasses.replace(loaded.family.encode(s), number=n) for n, s in enumerate(zoo.samples(entry))]


@pytest.fixture(scope="module", params=FAMILIES)
def made(request, tmp_path_factory):
    entry = zoo.zoo()[request.param]
    return zoo.built(request.param, tmp_path_factory.mktemp("turns")), entry


@pytest.mark.parametrize("backend", ["flash", "sdpa"])
@pytest.mark.parametrize("sampling", [SAMPLED, dataclasses.replace(SAMPLED, seed=None)], ids=["sampled", "greedy"])
def test_recorded_log_probs_are_those_of_the_update(made, backend, sampling):
    folder, entry = made
    loaded = attending(zoo.load(folder), backend)
    engine = engine_of(loaded)
    groups = list(engine.generate(asked(loaded, entry), sampling, n=4))
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    turns = [len(rollout.turns) for rollout in rollouts]
    assert {1, 2} & {*turns} if sampling.seed is None else {0, 1, 2} == {*turns}
    assert any(turn.images for rollout in rollouts for turn in rollout.turns) or sampling.seed is None
    temperature = sampling.temperature if sampling.seed else 1.0
    with torch.no_grad():
        expected = loaded.policy(pack([as_prefix_group(group) for group in groups]), temperature)[0]
    recorded = torch.tensor([logprob for rollout in rollouts for logprob in rollout.logprobs])
    torch.testing.assert_close(recorded, expected, atol=2e-5, rtol=0)
    for rollout, calls in zip(rollouts, turns, strict=True):
        assert rollout.text.startswith("".join(turn.call.text for turn in rollout.turns))
        assert rollout.score in (calls, calls + 1.0)  # the last time it may have heard an answer


def test_caches_agree_and_pieces_do_not_count(made):
    folder, entry = made
    found = []
    for backend, limits in (("flash", {}), ("sdpa", {}), ("sdpa", {"max_sequences": 3})):
        loaded = attending(zoo.load(folder), backend)
        groups = engine_of(loaded, **limits).generate(asked(loaded, entry), SAMPLED, n=4)
        found.append([(r.token_ids, [t.token_ids for t in r.turns]) for g in groups for r in g.rollouts])
    assert found[0] == found[1] == found[2]


def test_servers_are_asked_for_each_part_with_what_it_goes_on_from(made):
    folder, entry = made
    if folder.name not in ("qwen3_vl", "qwen2_5_vl"):
        pytest.skip("the stand-in for a server knows their images alone")
    loaded, served = zoo.load(folder), zoo.load(folder)
    host = engine_of(loaded).host
    engine_of(served)
    with FakeVLLM(served) as server:
        seats = [Seat(Server(server.url), driven=True)]
        engine = VLLMEngine(loaded, RolloutConfig(engine="vllm"), seats, host=host)
        groups = list(engine.generate(asked(loaded, entry), SAMPLED, n=4))
        engine.close()
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    assert {0, 1, 2} == {len(rollout.turns) for rollout in rollouts}
    assert len(server.log) == len(groups) + sum(len(rollout.turns) for rollout in rollouts)
    with torch.no_grad():
        expected = loaded.policy(pack([as_prefix_group(group) for group in groups]), SAMPLED.temperature)[0]
    recorded = torch.tensor([logprob for rollout in rollouts for logprob in rollout.logprobs])
    torch.testing.assert_close(recorded, expected, atol=1e-4, rtol=0)


def test_prompts_and_replies_run_once_and_distinct_images_are_encoded_once(made, monkeypatch):
    folder, entry = made
    loaded = zoo.load(folder)
    engine, prompts, ran, encoded = engine_of(loaded), asked(loaded, entry), {Prefill: [], Feed: []}, []
    hidden, encode = loaded.policy.hidden, loaded.policy.encode_images

    def counted(token_ids, positions, features, layout):
        ran.get(type(layout), []).append(len(token_ids))
        return hidden(token_ids, positions, features, layout)

    monkeypatch.setattr(loaded.policy, "hidden", counted)
    monkeypatch.setattr(loaded.policy, "encode_images", lambda images: encoded.append(images) or encode(images))
    rollouts = [r for group in engine.generate(prompts, SAMPLED, n=4) for r in group.rollouts]
    assert ran[Prefill] == [sum(len(prompt.token_ids) for prompt in prompts)]
    # Of each reply its own tokens, and the last one that was written before it.
    replies = [[r.turns[n] for r in rollouts if len(r.turns) > n] for n in range(SAMPLED.max_calls)]
    assert ran[Feed] == [sum(1 + len(turn.token_ids) for turn in turns) for turns in replies]
    shown = [prompt.images for prompt in prompts], *([turn.images for turn in turns] for turns in replies)
    distinct = [len({image.key for images in some for image in images}) for some in shown]
    together = [images for images in encoded if len(images) != 1 or max(distinct) == 1]
    assert [len(images) for images in together if images][: len(distinct)] == [n for n in distinct if n]
