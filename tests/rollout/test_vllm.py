"""The vLLM engine against a server that speaks its protocol: what goes over the wire, and the ways a server fails."""

import asyncio
import copy
import threading
import time

import pytest
import torch
from fake_vllm import CONFIG, FakeVLLM
from support import mixed_prompts, sample, tiny

from vlm_r1.config import RolloutConfig
from vlm_r1.distributed.processes import ALONE
from vlm_r1.distributed.wire import WeightFiles
from vlm_r1.errors import EngineError
from vlm_r1.records import SamplingParams
from vlm_r1.rl.parity import compare
from vlm_r1.rollout import vllm
from vlm_r1.rollout.engine import awake
from vlm_r1.rollout.native import NativeEngine
from vlm_r1.rollout.vllm import VLLMEngine
from vlm_r1.rollout.vllm_client import Server
from vlm_r1.rollout.vllm_request import body_of, stops_of
from vlm_r1.rollout.vllm_server import Seat

SAMPLED = SamplingParams(max_new_tokens=8, temperature=0.8, seed=(3, 5))


@pytest.mark.parametrize("stop_at_answer", [True, False])
def test_a_server_is_asked_to_end_a_completion_where_the_native_engine_does(stop_at_answer):
    loaded = tiny()
    sampling = SamplingParams(max_new_tokens=8, seed=(3, 5), stop_at_answer=stop_at_answer)
    params = body_of(loaded, mixed_prompts(loaded)[0], sampling, 2, stops_of(loaded))["sampling_params"]
    assert params.get("stop") == (["</answer>"] if stop_at_answer else None)
    assert loaded.family.end_token_id in params["stop_token_ids"] and params["ignore_eos"]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(vllm, "LOOK_S", 0.05)
    monkeypatch.setattr(vllm, "HANG_S", 0.5)


@pytest.fixture
def servers(request):
    """Two servers with the tiny model's weights."""
    made = [FakeVLLM(tiny()).start() for _ in range(2)]
    yield made
    for server in made:
        server.stop()


@pytest.fixture
def open_engine(request):
    """Make engines over servers, closed at the end."""
    opened = []

    def make(servers, loaded=None, *, sleeps=False, **settings):
        loaded = loaded or tiny()
        files = WeightFiles(loaded.policy, ALONE, None)
        seats = [Seat(Server(server.url), driven=True) for server in servers]
        engine = VLLMEngine(loaded, RolloutConfig(engine="vllm", **settings), seats, files=files, sleeps=sleeps)
        opened.append(engine)
        engine.sync(loaded.policy.named_parameters(), 0)
        return engine

    yield make
    for engine in opened:
        engine.close()


def answers(engine, prompts, sampling=SAMPLED, n=3):
    groups = sorted(engine.generate(prompts, sampling, n=n), key=lambda group: group.prompt.number)
    assert [group.prompt.number for group in groups] == [prompt.number for prompt in prompts]
    return groups


def tokens(groups):
    return [[rollout.token_ids for rollout in group.rollouts] for group in groups]


def changed(loaded, by=0.3):
    """The same policy with other weights, the tower's included."""
    loaded.policy.load_state_dict({n: t + by * torch.randn_like(t) for n, t in loaded.policy.state_dict().items()})
    return loaded


def test_prompts_arrive_as_the_trainer_reads_them_and_answers_come_back(servers, open_engine):
    loaded = tiny()
    engine = open_engine(servers[:1], loaded)
    found = compare(loaded, engine, NativeEngine(loaded), mixed_prompts(loaded), SAMPLED, 3)
    assert (found.greedy, found.same) == (4, 4)
    assert found.maximum < 1e-4


def test_seeds_do_not_depend_on_the_server(servers, open_engine):
    prompts = mixed_prompts(tiny())
    one, both = open_engine(servers[:1]), open_engine(servers)
    assert tokens(answers(one, prompts)) == tokens(answers(both, prompts))
    assert all(server.answered for server in servers)


def test_after_a_sync_the_new_weights_answer(servers, open_engine):
    loaded = tiny()
    engine = open_engine(servers, loaded)
    prompts = mixed_prompts(loaded)
    before = tokens(answers(engine, prompts))
    changed(loaded)
    engine.sync(loaded.policy.named_parameters(), 1)
    groups = answers(engine, prompts)
    assert tokens(groups) != before
    assert {rollout.version for group in groups for rollout in group.rollouts} == {1}
    found = compare(loaded, engine, NativeEngine(loaded), prompts, SAMPLED, 2)
    assert found.same == found.greedy and found.maximum < 1e-4


def test_a_sync_drains_and_resets_before_the_version_gets_its_name(servers, open_engine):
    open_engine(servers[:1])
    paths = [path.partition("?")[0] for path in servers[0].log]
    assert paths == [
        *("/abort_requests", "/pause", "/update_weight_version", "/start_weight_update", "/update_weights"),
        *("/reset_encoder_cache", "/reset_prefix_cache", "/finish_weight_update", "/resume"),
    ]


FAULTS = [500, 503, "cut", "old", "short"]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_failing_request_is_asked_again_and_nothing_is_lost(servers, open_engine, fault, capsys):
    prompts = mixed_prompts(tiny())
    wanted = tokens(answers(open_engine(servers[:1]), prompts))
    engine = open_engine(servers)
    servers[0].faults, servers[1].faults = [fault], [fault]
    assert tokens(answers(engine, prompts)) == wanted
    assert engine.counts["asked_again"] >= 2
    told = capsys.readouterr().err
    assert "is left out" in told and "is back, with the weights of version 0" in told


def test_a_server_that_hangs_is_given_up(servers, open_engine, monkeypatch):
    prompts = mixed_prompts(tiny())
    engine = open_engine(servers, request_timeout_s=1.0)
    servers[0].faults = ["hang"]
    started = time.monotonic()
    answers(engine, prompts)
    assert time.monotonic() - started < 20


def test_a_server_that_comes_back_with_old_weights_gets_the_current_ones_first(servers, open_engine):
    loaded = tiny()
    engine = open_engine(servers[:1], loaded)
    changed(loaded)
    engine.sync(loaded.policy.named_parameters(), 7)
    prompts = mixed_prompts(loaded)
    wanted = tokens(answers(engine, prompts))
    servers[0].stop()
    threading.Timer(0.5, servers[0].start).start()
    assert tokens(answers(engine, prompts)) == wanted
    assert servers[0].label == engine.label


def test_a_server_looked_at_while_a_sync_begins_is_not_left_out(servers, open_engine, monkeypatch):
    asked = Server.label

    async def late(self, *timeout):
        held = await asked(self, *timeout)
        await asyncio.sleep(0.4)
        return held

    monkeypatch.setattr(Server, "label", late)
    loaded = tiny()
    engine = open_engine(servers[:1], loaded)
    servers[0].delay = 0.2
    answers(engine, mixed_prompts(loaded)[:1])
    engine.sync(loaded.policy.named_parameters(), 1)
    assert engine.take_counts() == {"asked_again": 0, "servers_lost": 0}


def test_one_server_dies_for_good_and_the_other_finishes(servers, open_engine):
    prompts = mixed_prompts(tiny())
    engine = open_engine(servers)
    servers[0].delay = servers[1].delay = 0.3
    threading.Timer(0.2, servers[0].stop).start()
    answers(engine, prompts)
    loaded = engine.loaded
    engine.sync(loaded.policy.named_parameters(), 1)
    groups = answers(engine, prompts)
    assert {rollout.version for group in groups for rollout in group.rollouts} == {1}
    assert [seat.usable for seat in engine.seats] == [False, True]


def test_without_any_server_for_too_long_the_engine_says_so(servers, open_engine):
    engine = open_engine(servers[:1], server_timeout_s=0.5)
    servers[0].stop()
    with pytest.raises(EngineError, match=r"no server has answered for .* s \(http://127.0.0.1:\d+: .*\)\. Start one"):
        answers(engine, mixed_prompts(engine.loaded))


def test_a_prompt_that_no_server_can_answer_ends_with_its_sample(servers, open_engine):
    engine = open_engine(servers[:1])
    servers[0].faults = [500] * 100
    with pytest.raises(EngineError, match="sample s: servers failed on it 10 times"):
        answers(engine, mixed_prompts(engine.loaded)[:1])
    servers[0].faults = [400]
    with pytest.raises(EngineError, match="refuses a prompt: made to fail"):
        answers(engine, mixed_prompts(engine.loaded)[:1])


def test_other_prompt_tokens_are_an_error(servers, open_engine):
    engine = open_engine(servers[:1])
    prompt = engine.loaded.family.encode(sample("the red circle"))
    object.__setattr__(prompt, "token_ids", (*prompt.token_ids, 1))
    with pytest.raises(EngineError, match="sample s: the server reads"):
        answers(engine, [prompt])


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("logprobs_mode", "raw_logprobs", "--logprobs-mode processed_logprobs"),
        ("generation_config", "auto", "--generation-config vllm"),
        ("served_model_name", "x", "--served-model-name policy"),
    ],
)
def test_a_missing_switch_is_named(key, value, told, open_engine):
    config = copy.deepcopy(CONFIG)
    config["model_config"][key] = value
    with FakeVLLM(tiny(), config=config) as server:
        [problem] = open_engine([server]).check().problems
    assert server.url in problem and told in problem


def test_an_old_version_is_named(open_engine):
    with FakeVLLM(tiny(), version="0.30.1") as server:
        [problem] = open_engine([server]).check().problems
    assert "vLLM 0.30.1 is older than 0.32" in problem


def test_servers_on_the_gpus_of_the_run_sleep_without_weights_and_wake_with_the_current_ones(servers, open_engine):
    loaded = tiny()
    engine = open_engine(servers, loaded, sleeps=True)
    prompts = mixed_prompts(loaded)
    with awake(engine):
        answers(engine, prompts)
    assert all(server.resident == set() for server in servers)
    changed(loaded)
    for server in servers:
        server.log.clear()
    engine.sync(loaded.policy.named_parameters(), 1)
    assert all(not server.log for server in servers)  # asleep they have no memory to take weights into
    for _ in range(2):  # waking without new weights, as for an evaluation, brings them back too
        with awake(engine):
            groups = answers(engine, prompts)
        assert {rollout.version for group in groups for rollout in group.rollouts} == {1}
    found = compare(loaded, engine, NativeEngine(loaded), prompts, SAMPLED, 2)
    assert found.same == found.greedy and found.maximum < 1e-4
    paths = [path for path in servers[0].log if "wake_up" in path or "update_weights" in path]
    assert paths[:3] == ["/wake_up?tags=weights", "/update_weights", "/wake_up?tags=kv_cache"]


def test_old_versions_of_the_weights_are_deleted(servers, open_engine):
    engine = open_engine(servers[:1])
    root = engine.files.root
    for version in (1, 2):
        engine.sync(engine.loaded.policy.named_parameters(), version)
        assert [folder.name for folder in root.iterdir()] == [f"v{version}"]
    engine.close()
    assert not root.exists()
