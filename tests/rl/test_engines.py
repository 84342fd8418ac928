"""The first weights that servers get, confirmed by their own checksums."""

import pytest
import torch
from fake_vllm import FakeVLLM
from support import recipe, save_tiny, tiny

from vlm_r1.distributed.processes import ALONE
from vlm_r1.errors import EngineError
from vlm_r1.rl.engines import open_engine


@pytest.fixture
def servers():
    made = [FakeVLLM(tiny()).start() for _ in range(2)]
    yield made
    for server in made:
        server.stop()


def opened(servers, tmp_path, loaded, start=0):
    urls = [server.url for server in servers]
    settings = recipe(save_tiny(tmp_path / "model"), tmp_path / "run", rollout={"engine": "vllm", "servers": urls})
    return open_engine(settings, loaded, ALONE, start)


def test_the_same_weights_are_confirmed(servers, tmp_path):
    with opened(servers, tmp_path, tiny()) as engine:
        assert {seat.server.url for seat in engine.seats} == {server.url for server in servers}
    assert all("/weight_checker" in server.log for server in servers)


def test_other_weights_than_the_folders_are_refused_at_the_start_of_a_run(servers, tmp_path):
    loaded = tiny()
    with torch.no_grad():
        loaded.policy.model.lm_head.weight += 0.1
    with pytest.raises(EngineError, match=r"1 of \d+ parameters of a server .*\(lm_head.weight, ...\)"):
        opened(servers, tmp_path, loaded).__enter__()
    with opened(servers, tmp_path, loaded, start=3) as engine:
        assert engine.version == 3


def test_servers_that_differ_after_a_sync_are_refused(servers, tmp_path):
    servers[1].spoilt = "?"
    with pytest.raises(EngineError, match="parameters of a server are not the trainer's"):
        opened(servers, tmp_path, tiny(), start=3).__enter__()
