"""Whole runs through the vLLM engine and a server that speaks its protocol: in step, ahead, killed, gone for good."""

import itertools
import threading
import time

import pytest
from fake_vllm import FakeVLLM
from support import recipe, tiny, untimed

from vlm_r1.distributed.whole import list_checkpoints
from vlm_r1.errors import EngineError
from vlm_r1.rl import loop
from vlm_r1.rollout import vllm
from vlm_r1.runtime.runlog import read_eval, read_metrics, read_rollouts

REWARD = "import zlib\ndef varied(sample, answer):\n    return zlib.crc32(answer.raw.encode()) % 1000 / 1000\n"
STEPS = 4


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(vllm, "LOOK_S", 0.05)
    monkeypatch.setattr(vllm, "HANG_S", 0.5)


def settings(model_folder, run_dir, url, staleness, **rollout):
    plugin = model_folder.parent / "varied.py"
    plugin.write_text(REWARD)
    return recipe(
        model_folder,
        run_dir,
        data={"train": [{"scenes": {"n": 9}}], "eval": {"held_out": {"scenes": {"split": "in_domain", "n": 3}}}},
        eval={"max_new_tokens": 3, "every": 2},
        rollout={"engine": "vllm", "servers": [url], "staleness": staleness, "max_new_tokens": 6} | rollout,
        rewards={"parts": {f"{plugin}:varied": 1.0}},
        optim={"lr": 1e-2},
        run={"steps": STEPS, "save_every": STEPS, "log_rollouts_every": 1},
    )


@pytest.fixture(scope="module")
def undisturbed(model_folder, tmp_path_factory):
    """Staleness -> folder of a run whose server never failed."""
    found = {k: tmp_path_factory.mktemp("runs") / "run" for k in (0, 1)}
    with FakeVLLM(tiny()) as server:
        for k, run_dir in found.items():
            loop.train(settings(model_folder, run_dir, server.url, k))
    return found


def assert_same(one, other):
    assert untimed(one) == untimed(other) and read_eval(one) == read_eval(other)
    for step in range(1, STEPS + 1):
        assert read_rollouts(one, step) == read_rollouts(other, step)
    assert (one / "final" / "model.safetensors").read_bytes() == (other / "final" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("k", [0, 1])
def test_the_versions_are_those_of_the_schedule(undisturbed, k):
    for step in range(STEPS):
        assert {row["version"] for row in read_rollouts(undisturbed[k], step + 1)} == {max(0, step - k)}
    lines = read_metrics(undisturbed[k])
    assert [line["rollout/staleness_max"] for line in lines] == [step - max(0, step - k) for step in range(STEPS)]
    far = [line["sampling/sampling_logp_difference/mean"] for line in lines]
    assert all((value > 1e-3) == (bool(k) and step > 0) for step, value in enumerate(far)), far


@pytest.mark.slow
@pytest.mark.parametrize("k", [0, 1])
def test_a_server_killed_while_it_answers_changes_nothing(undisturbed, model_folder, tmp_path, k):
    """Killed at the third, eighth, ... request, with what it was at, and back soon with its first weights."""
    requests, kills = itertools.count(1), []

    class Mortal(FakeVLLM):
        def generate(self, body):
            if next(requests) % 5 == 3:
                kills.append(threading.Thread(target=self.die))
                kills[-1].start()
            return super().generate(body)

        def die(self):
            self.stop()
            time.sleep(0.2)
            self.start()

    with Mortal(tiny()) as server:
        loop.train(settings(model_folder, tmp_path / "run", server.url, k))
        for thread in kills:
            thread.join()
    assert len(kills) > 2
    assert_same(undisturbed[k], tmp_path / "run")


@pytest.mark.parametrize("k", [0, 1])
def test_a_server_gone_for_good_ends_a_saved_run_that_goes_on_with_another(
    undisturbed, model_folder, tmp_path, monkeypatch, k
):
    server, journal = FakeVLLM(tiny()).start(), loop.Journal.write

    def write(self, step, *rest):
        journal(self, step, *rest)
        if step == 1:
            server.stop()

    monkeypatch.setattr(loop.Journal, "write", write)
    with pytest.raises(EngineError, match="no server has answered for"):
        loop.train(settings(model_folder, tmp_path / "run", server.url, k, server_timeout_s=0.5))
    done = 1 + k  # ahead, the answers to one more step are there
    assert [c.name for c in list_checkpoints(tmp_path / "run")] == [f"checkpoint-{done}"]
    monkeypatch.undo()
    with FakeVLLM(tiny()) as another:
        loop.train(settings(model_folder, tmp_path / "run", another.url, k))
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == list(range(1, STEPS + 1))
    if k == 0:  # ahead, what was lost is asked of newer weights
        assert_same(undisturbed[k], tmp_path / "run")
