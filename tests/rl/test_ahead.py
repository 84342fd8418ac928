"""Answers ahead of the update: which weights write them, a run as a function of its recipe, faults and resuming."""

import json
import shutil
from collections import Counter
from dataclasses import replace

import pytest
import torch
from apart import SERVED, Apart, Late, install
from support import PLAIN, plain_logprobs, plain_model, recipe, untimed

from vlm_r1.cli import main
from vlm_r1.config import ModelConfig
from vlm_r1.config_file import resolved_yaml
from vlm_r1.data.mixture import SampleStream
from vlm_r1.data.source import load_source
from vlm_r1.distributed.checkpoints import read_weights_of
from vlm_r1.distributed.whole import list_checkpoints, read_state
from vlm_r1.errors import EngineError
from vlm_r1.models.load import load_policy
from vlm_r1.rl import loop
from vlm_r1.rl.rollouts import sampling_of
from vlm_r1.rollout.native import NativeEngine
from vlm_r1.runtime.runlog import read_eval, read_metrics, read_rollouts

STEPS = 6
MODES = (0, 1, 2)
EVAL = {"data": {"eval": {"held_out": {"scenes": {"split": "in_domain", "n": 3}}}}}


REWARD = "import zlib\ndef varied(sample, answer):\n    return zlib.crc32(answer.raw.encode()) % 1000 / 1000\n"


def settings(model_folder, run_dir, staleness, /, *, save_every=3, **sections):
    """Six steps of two prompts, whose weights change enough between two of them to change the answers."""
    plugin = model_folder.parent / "varied.py"
    plugin.write_text(REWARD)
    served = SERVED | {"staleness": staleness, "max_new_tokens": 6} | sections.pop("rollout", {})
    base = {
        "data": {"train": [{"scenes": {"n": 5}}, {"scenes": {"n": 7, "split": "base"}}]} | EVAL["data"],
        "eval": {"max_new_tokens": 3, "every": 2},
        "rewards": {"parts": {f"{plugin}:varied": 1.0}},
        "optim": {"lr": 1e-2},
        "run": {"steps": STEPS, "save_every": save_every, "keep": STEPS, "log_rollouts_every": 1},
    }
    return recipe(model_folder, run_dir, rollout=served, **(base | sections))


def answers(run_dir):
    return [read_rollouts(run_dir, step) for step in range(1, STEPS + 1)]


def weights(run_dir):
    return (run_dir / "final" / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def runs(model_folder, tmp_path_factory):
    """Staleness -> (run folder, engine) of a run never stopped."""
    folder, found = tmp_path_factory.mktemp("runs"), {}
    for k in MODES:
        with pytest.MonkeyPatch.context() as patch:
            opened = install(patch)
            loop.train(settings(model_folder, folder / str(k), k))
            found[k] = (folder / str(k), opened[0])
    return found


def test_in_step_a_run_is_that_of_the_trainers_own_engine(model_folder, tmp_path, monkeypatch):
    install(monkeypatch)
    loop.train(settings(model_folder, tmp_path / "served", 0, rollout={"importance_sampling": "off"}))
    monkeypatch.undo()
    own = {"engine": "native", "servers": []}
    loop.train(settings(model_folder, tmp_path / "own", 0, rollout=own))
    assert answers(tmp_path / "served") == answers(tmp_path / "own")
    added = {"rollout/staleness", "rollout/staleness_max", "rollout/stale_groups"}
    lines = [{k: v for k, v in line.items() if k not in added} for line in untimed(tmp_path / "served")]
    assert lines == untimed(tmp_path / "own")
    assert weights(tmp_path / "served") == weights(tmp_path / "own")
    assert read_eval(tmp_path / "served") == read_eval(tmp_path / "own")
    states = [read_state(tmp_path / name / f"checkpoint-{STEPS}") for name in ("served", "own")]
    assert states[0]["stream"] == states[1]["stream"] and not any("rollouts" in state for state in states)


@pytest.mark.parametrize("k", MODES)
def test_what_is_measured_of_it_is_told_in_the_docs(runs, root, k):
    page = (root / "docs" / "run-folder.md").read_text()
    names = {name for line in read_metrics(runs[k][0]) for name in line if name.startswith("rollout/")}
    assert len(names) == (5 if k else 3) and all(f"`{name}`" in page for name in names)


@pytest.mark.parametrize("k", MODES)
def test_a_step_is_answered_by_the_weights_of_so_many_steps_before(runs, k):
    run_dir, engine = runs[k]
    expected = [max(0, step - k) for step in range(STEPS)]
    assert [{row["version"] for row in rows} for rows in answers(run_dir)] == [{v} for v in expected]
    assert [(step, version) for step, _, version, _ in engine.asked] == list(enumerate(expected))
    assert {name for *_, name in engine.asked} == {"rollouts" if k else "MainThread"}
    for step, line in enumerate(read_metrics(run_dir)):
        assert line["rollout/staleness"] == line["rollout/staleness_max"] == step - expected[step]
        assert line["rollout/stale_groups"] == 0
        assert ("rollout/wait_s" in line) == ("rollout/generate_s" in line) == bool(k)
        far = line["sampling/sampling_logp_difference/mean"]
        assert far < 1e-5 if expected[step] == step else far > 1e-4
        assert (abs(line["sampling/importance_sampling_ratio/max"] - 1) > 1e-4) == (expected[step] < step)


def test_the_answers_are_those_that_the_older_weights_write(model_folder, tmp_path, monkeypatch):
    """Each step asked again, in the main thread, of the weights that the checkpoints hold; and the importance weights
    between those and the weights that are trained, by the plain padded forward."""
    install(monkeypatch)
    run = settings(model_folder, tmp_path / "run", 1, save_every=1)
    loop.train(run)
    loaded = load_policy(ModelConfig(path=str(model_folder)), PLAIN)
    stream = SampleStream([(s.weight, load_source(s, seed=0)) for s in run.data.train], seed=0)
    loaded.policy.eval()
    metrics = read_metrics(tmp_path / "run")
    for step in range(STEPS):
        if step > 1:
            read_weights_of(tmp_path / "run" / f"checkpoint-{step - 1}", loaded.policy)
        prompts = [replace(loaded.family.encode(s), number=i) for i, s in enumerate(stream.take(2))]
        groups = list(NativeEngine(loaded).generate(prompts, sampling_of(run, step), n=3))
        expected = [list(rollout.token_ids) for group in groups for rollout in group.rollouts]
        assert [row["token_ids"] for row in read_rollouts(tmp_path / "run", step + 1)] == expected
        if step:
            trained = load_policy(ModelConfig(path=str(model_folder)), PLAIN)
            read_weights_of(tmp_path / "run" / f"checkpoint-{step}", trained.policy)
            old_S = plain_logprobs(plain_model(trained), groups, trained.policy.suppressed, 1.0).detach()
            sampler_S = torch.tensor([p for group in groups for rollout in group.rollouts for p in rollout.logprobs])
            weights_S = (old_S - sampler_S).exp().clamp(max=3.0)
            name = "sampling/importance_sampling_ratio"
            assert metrics[step][f"{name}/mean"] == pytest.approx(float(weights_S.mean()), abs=1e-4)
            assert metrics[step][f"{name}/max"] == pytest.approx(float(weights_S.max()), abs=1e-4)


@pytest.mark.parametrize("k", [1, 2])
def test_a_run_is_a_function_of_its_recipe_whatever_the_speed_of_the_engine(
    runs, model_folder, tmp_path, monkeypatch, k
):
    install(monkeypatch, delay=0.05)
    loop.train(settings(model_folder, tmp_path / "run", k))
    run_dir, _ = runs[k]
    assert answers(run_dir) == answers(tmp_path / "run") and untimed(run_dir) == untimed(tmp_path / "run")
    assert weights(run_dir) == weights(tmp_path / "run") and read_eval(run_dir) == read_eval(tmp_path / "run")


@pytest.mark.parametrize("k", [1, 2])
def test_a_run_that_stopped_at_a_checkpoint_goes_on_bit_for_bit(runs, model_folder, tmp_path, monkeypatch, k):
    whole, _ = runs[k]
    shutil.copytree(whole, tmp_path / "run")
    for lost in ("checkpoint-6", "final"):
        shutil.rmtree(tmp_path / "run" / lost)
    opened = install(monkeypatch)
    loop.train(settings(model_folder, tmp_path / "run", k))
    assert answers(whole) == answers(tmp_path / "run") and untimed(whole) == untimed(tmp_path / "run")
    assert weights(whole) == weights(tmp_path / "run") and read_eval(whole) == read_eval(tmp_path / "run")
    states = [read_state(folder / "checkpoint-6") for folder in (whole, tmp_path / "run")]
    assert states[0] == states[1] and states[0]["rollouts"] == []
    kept = read_state(whole / "checkpoint-3")["rollouts"]
    assert Counter(row["step"] for row in kept) == dict.fromkeys(range(3, 3 + k), 2)
    assert [(s, n) for s, n, *_ in opened[0].asked] == [(s, [] if s < 3 + k else [0, 1]) for s in range(3, STEPS)]


@pytest.mark.parametrize("k", [0, 1])
def test_groups_that_are_too_old_are_dropped_counted_and_asked_again(model_folder, tmp_path, monkeypatch, k):
    opened = install(monkeypatch, Late)
    loop.train(settings(model_folder, tmp_path / "run", k))
    lines = read_metrics(tmp_path / "run")
    assert [line["rollout/stale_groups"] for line in lines] == [0, 0, 2, 0, 0, 0]
    again = [asked for asked in opened[0].asked if asked[0] == 2]
    assert [(numbers, version) for _, numbers, version, _ in again] == [([0, 1], 2 - k), ([0, 1], 2)]
    assert {row["version"] for row in read_rollouts(tmp_path / "run", 3)} == {2}
    assert lines[2]["rollout/staleness_max"] == 0 and lines[3]["rollout/staleness_max"] == k


def test_servers_that_stay_behind_end_the_run(model_folder, tmp_path, monkeypatch):
    install(monkeypatch, type("Behind", (Late,), {"times": 9}))
    with pytest.raises(EngineError, match=r"version 1 at step 2 .*rollout\.staleness: 0.*the same command"):
        loop.train(settings(model_folder, tmp_path / "run", 0))
    assert [c.name for c in list_checkpoints(tmp_path / "run")] == ["checkpoint-2"]


def lost_at(calls: int, error: Exception, after: int = 1):
    """An engine that fails at its call of that number for a step, after `after` groups."""

    class Lost(Apart):
        def generate(self, prompts, sampling, *, n):
            for number, group in enumerate(super().generate(prompts, sampling, n=n)):
                if len(self.asked) > calls and sampling.seed is not None and number >= after:
                    raise error
                yield group

    return Lost


@pytest.mark.parametrize("k", MODES)
def test_a_lost_engine_saves_the_steps_done_and_the_run_goes_on_later(
    runs, model_folder, tmp_path, monkeypatch, k, capsys
):
    run = settings(model_folder, tmp_path / "run", k)
    with pytest.MonkeyPatch.context() as patch:
        install(patch, lost_at(4, EngineError("no server has answered for 900 s")))
        with pytest.raises(EngineError, match="no server has answered"):
            loop.train(run)
    done = 4  # the fifth step's answers are lost, whenever they were asked for
    assert [c.name for c in list_checkpoints(tmp_path / "run")][-1] == f"checkpoint-{done - bool(k == 2)}"
    assert "saved checkpoint-" in capsys.readouterr().err
    opened = install(monkeypatch)
    loop.train(run)
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == list(range(1, STEPS + 1))
    if k == 0:
        assert untimed(tmp_path / "run") == untimed(runs[0][0]) and weights(tmp_path / "run") == weights(runs[0][0])
    else:  # the group that was there is not asked for again
        assert opened[0].asked[int(k == 2)][:3] == (4, [1], done - bool(k == 2))


def test_the_command_says_it_in_one_message_and_exits_with_2(model_folder, tmp_path, monkeypatch, capsys):
    install(monkeypatch, lost_at(1, EngineError("no server has answered for 900 s")))
    (tmp_path / "recipe.yaml").write_text(resolved_yaml(settings(model_folder, tmp_path / "run", 1)))
    with pytest.raises(SystemExit) as stopped:
        main(["train", str(tmp_path / "recipe.yaml")])
    told = capsys.readouterr().err
    assert stopped.value.code == 2 and "Traceback" not in told
    assert told.index("saved checkpoint-1") < told.index("no server has answered for 900 s")


def test_an_engine_lost_while_it_takes_over_weights_ends_the_run_after_the_step_is_written(
    model_folder, tmp_path, monkeypatch
):
    class Lost(Apart):
        def sync(self, weights, version):
            if version == 2:
                raise EngineError("gone")
            super().sync(weights, version)

    install(monkeypatch, Lost)
    with pytest.raises(EngineError, match="gone"):
        loop.train(settings(model_folder, tmp_path / "run", 1, eval={"max_new_tokens": 3}))
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [1, 2]
    assert [c.name for c in list_checkpoints(tmp_path / "run")] == ["checkpoint-2"]


def test_a_bug_in_the_thread_is_raised_by_the_run(model_folder, tmp_path, monkeypatch):
    install(monkeypatch, lost_at(3, KeyError("of the engine"), after=0))
    with pytest.raises(KeyError, match="of the engine"):
        loop.train(settings(model_folder, tmp_path / "run", 1))
    assert [c.name for c in list_checkpoints(tmp_path / "run")] == []
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 2


def test_an_evaluation_of_other_weights_is_refused_and_the_step_saved(model_folder, tmp_path, monkeypatch):
    class Forgetful(Apart):
        def sync(self, weights, version):
            super().sync(weights, min(version, 1))

    install(monkeypatch, Forgetful)
    with pytest.raises(EngineError, match=r"held_out: .*there are 2 \(1, 2\)"):
        loop.train(settings(model_folder, tmp_path / "run", 1))
    assert [c.name for c in list_checkpoints(tmp_path / "run")] == ["checkpoint-2"]


def test_the_state_is_plain_json_and_small(runs):
    run_dir, _ = runs[2]
    text = (run_dir / "checkpoint-3" / "state.json").read_text()
    assert len(json.loads(text)["rollouts"]) == 4 and len(text) < 10_000
