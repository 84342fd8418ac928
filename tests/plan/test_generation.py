"""The queue model of generation and training: timelines by hand, a simulation of events, splits, and the command."""

import heapq
import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import recipe

from vlm_r1.cli import main
from vlm_r1.config_file import resolved_yaml
from vlm_r1.errors import CheckpointError, ConfigError
from vlm_r1.plan.generation import GAIN, Cost, Phases, Split, divide, knee, step_seconds, timeline
from vlm_r1.plan.phase_times import line, read_phases

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "phase_times.yaml"
SECONDS = st.floats(0.01, 10)
STEP_TIMES = st.lists(st.tuples(SECONDS, SECONDS), min_size=1, max_size=8)


def simulate(generation_s, training_s, sync_s, k, trainer_waits):
    """When each version is there: a server, a trainer and a heap of the moments at which one of them finishes."""
    steps, moments, ready = len(generation_s), [], [0.0]
    state = {"begun": 0, "generated": 0, "updates": 0, "trained": 0, "server": None, "trainer": None}

    def finish(now, who):
        what, state[who] = state[who], None
        if what == "sync":
            ready.append(now)
        else:
            state[what] += 1

    def begin(now):
        version = len(ready) - 1
        if state["server"] is None and state["trained"] > version:
            state["server"] = "sync"
            heapq.heappush(moments, (now + sync_s, "server"))
        elif state["server"] is None and state["begun"] < steps and version >= state["begun"] - k:
            heapq.heappush(moments, (now + generation_s[state["begun"]], "server"))
            state["server"], state["begun"] = "generated", state["begun"] + 1
        free = version == state["trained"] or not trainer_waits
        if state["trainer"] is None and free and state["updates"] < min(steps, state["generated"]):
            heapq.heappush(moments, (now + training_s[state["updates"]], "trainer"))
            state["trainer"], state["updates"] = "trained", state["updates"] + 1

    begin(0.0)
    while moments:
        now, who = heapq.heappop(moments)
        finish(now, who)
        while moments and moments[0][0] == now:  # what ends at the same moment ends before anything begins
            finish(*heapq.heappop(moments))
        begin(now)
    return ready


def test_timelines_by_hand():
    """Generation 2, 2, 6; training 3, 5, 1; sync 1. G: generation, T: training, S: sync.

    k = 0: G 0-2, T -5, S -6; G -8, T -13, S -14; G -20, T -21, S -22.
    k = 1: G 0-2, G 2-4 beside T 2-5, S -6; G 6-12 beside T 6-11, S waits for it -13; T -14, S -15.
    k = 2: G 0-2, G 2-4, G 4-10 beside T 2-5, S waits for it -11; T -16, S -17; T -18, S -19.
    """
    times = [2, 2, 6], [3, 5, 1], 1
    assert timeline(*times, 0) == [0, 6, 14, 22]
    assert timeline(*times, 1) == [0, 6, 13, 15]
    assert timeline(*times, 2) == [0, 11, 17, 19]


def test_timelines_of_a_trainer_that_does_not_wait():
    """The same phases.

    k = 0 and 1: generation of a step needs the sync all the same, or the trainer has nothing to do meanwhile.
    k = 1: T 2-5, S 5-6 beside T 5-10, G 6-12, S of version 2 after it 12-13; T 12-13, S -14.
    k = 2: T 2-5, T 5-10, T 10-11; G 4-10, then the syncs of versions 1, 2 and 3 up to 11, 12 and 13.
    """
    times = [2, 2, 6], [3, 5, 1], 1
    assert timeline(*times, 0, trainer_waits=False) == [0, 6, 14, 22]
    assert timeline(*times, 1, trainer_waits=False) == [0, 6, 13, 14]
    assert timeline(*times, 2, trainer_waits=False) == [0, 11, 12, 13]


@given(STEP_TIMES, st.sampled_from([0.0, 0.5, 4.0]), st.integers(0, 4), st.booleans())
def test_the_recursion_is_a_simulation_of_events(times, sync_s, k, waits):
    generation, training = map(list, zip(*times, strict=True))
    expected = simulate(generation, training, sync_s, k, waits)
    assert timeline(generation, training, sync_s, k, trainer_waits=waits) == pytest.approx(expected)


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=8), st.integers(0, 3))
def test_a_sync_goes_first_where_update_and_generation_end_together(times, k):
    generation, training = map(list, zip(*times, strict=True))
    assert timeline(generation, training, 1, k) == simulate(generation, training, 1, k, True)


@given(STEP_TIMES, SECONDS)
def test_closed_forms(times, sync_s):
    """Staleness 0 adds up; with 1 a step is the longer of this update and the next generation."""
    generation, training = map(list, zip(*times, strict=True))
    steps = len(times)
    total = sum(generation) + sum(training) + steps * sync_s
    assert timeline(generation, training, sync_s, 0)[-1] == pytest.approx(total)
    overlapped = sum(max(g, t) for g, t in zip([*generation[1:], 0.0], training, strict=True))
    ahead = timeline(generation, training, sync_s, 1)[-1]
    assert ahead == pytest.approx(generation[0] + overlapped + steps * sync_s) and ahead <= total + 1e-9


@given(STEP_TIMES, SECONDS, st.floats(0.1, 1), st.integers(0, 1), st.booleans())
def test_faster_generation_never_makes_a_step_longer(times, sync_s, factor, k, waits):
    generation, training = map(list, zip(*times, strict=True))
    faster = timeline([factor * g for g in generation], training, sync_s, k, trainer_waits=waits)
    assert faster[-1] <= timeline(generation, training, sync_s, k, trainer_waits=waits)[-1] + 1e-9


@given(STEP_TIMES, st.integers(0, 3))
def test_more_staleness_is_never_slower_where_syncs_take_no_time_and_the_trainer_goes_on(times, k):
    generation, training = map(list, zip(*times, strict=True))
    less, more = (timeline(generation, training, 0.0, n, trainer_waits=False)[-1] for n in (k, k + 1))
    assert more <= less + 1e-9


VARIED = Phases(
    prompts=32,
    generation=Cost(fixed_s=2.0, prompt_s=0.5),
    training=Cost(fixed_s=1.0, prompt_s=0.75),
    sync_s=0.5,
    spread=((0.4, 1.1), (0.7, 0.9), (1.0, 1.0), (1.9, 1.0)),
)


def test_staleness_above_1_pays_where_the_trainer_does_not_wait():
    """The drain of a sync lets one generation fit into each step, however many the buffer has room for."""
    waiting = [step_seconds(VARIED, 8, 8, k) for k in (1, 2, 4)]
    assert waiting == pytest.approx([waiting[0]] * 3, rel=0.01)
    free = [step_seconds(VARIED, 8, 8, k, trainer_waits=False) for k in (1, 2, 4)]
    assert waiting[0] > free[0] > free[1] > free[2]


COSTS = st.builds(Cost, fixed_s=st.floats(0, 10), prompt_s=st.floats(0.01, 5))
PHASES = st.builds(Phases, prompts=st.integers(1, 64), generation=COSTS, training=COSTS, sync_s=st.floats(0, 5))


@given(PHASES, st.integers(1, 20), st.integers(1, 20), st.integers(0, 1))
def test_more_gpus_are_never_slower_until_each_costs_a_sync(phases, generation, training, k):
    fewer = step_seconds(phases, generation, training, k)
    assert step_seconds(phases, generation + 1, training, k) <= fewer + 1e-9
    assert step_seconds(phases, generation, training + 1, k) <= fewer + 1e-9
    many = phases.model_copy(update={"generation": Cost(prompt_s=1e-9), "sync_gpu_s": 1.0})
    assert step_seconds(many, generation + 1, training, 0) > step_seconds(many, generation, training, 0)


def test_a_step_is_no_shorter_than_its_longest_completion():
    phases = Phases(prompts=16, generation=Cost(fixed_s=5, prompt_s=1), training=Cost(prompt_s=0.01))
    assert step_seconds(phases, 16, 1, 1) == step_seconds(phases, 500, 1, 1) == pytest.approx(6)


def test_splits_of_eight_gpus_by_hand():
    """32 prompts; generation 0.5 s each and training 0.25 s each, so 2 to 1 but for whole groups."""
    phases = Phases(
        prompts=32, generation=Cost(prompt_s=0.5), training=Cost(prompt_s=0.25), sync_s=1.0, sync_gpu_s=0.1, wake_s=2.0
    )
    found = divide(phases, 8)
    assert found.colocated_s == pytest.approx(4 * 0.5 + 4 * 0.25 + 1.8 + 2)
    assert [s.generation_s for s in found.splits] == [16, 8, 5.5, 4, 3.5, 3, 2.5]
    assert [s.training_s for s in found.splits] == [1.25, 1.5, 1.75, 2, 2.75, 4, 8]
    assert found.splits[2].step_s == pytest.approx({0: 5.5 + 1.75 + 1.3, 1: 5.5 + 1.3})
    assert found.best.generation_gpus == found.knee.generation_gpus == 5 and found.unit == 1


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ([10, 5, 4.9, 4.8, 4.7], 2),
        ([10, 5, 4.9, 4.3, 4.2], 4),  # a plateau of whole groups is no knee: two more gain over 10 %
        ([4, 5, 6], 1),
        ([10, 9, 8], 3),
    ],
)
def test_the_knee(times, expected):
    splits = [
        Split(generation_gpus=n, training_gpus=1, generation_s=t, training_s=1, step_s={1: t})
        for n, t in enumerate(times, start=1)
    ]
    assert knee(splits, 1).generation_gpus == expected and GAIN == 0.05


def test_a_line_through_two_loads():
    assert line([(16, 10.0), (4, 4.0)]).model_dump() == pytest.approx({"fixed_s": 2.0, "prompt_s": 0.5})
    assert line([(16, 8.0)]).model_dump() == {"fixed_s": 0.0, "prompt_s": 0.5}
    assert line([(16, 8.0), (4, 1.0)]).fixed_s == 0.0  # not below 0


def write_run(folder: Path, prompts: int, gpus: int = 1, sync_s: float = 0.5, **changes) -> Path:
    """A run folder of four steps whose generation takes 1 s + 0.5 s a prompt, and training 0.25 s a prompt."""
    settings = recipe("model", folder, rl={"group_size": 2, "prompts_per_step": prompts}, **changes)
    folder.mkdir()
    (folder / "config.yaml").write_text(resolved_yaml(settings))
    rows = []
    for step, factor in enumerate((9.0, 0.8, 1.0, 1.2), start=1):
        rollout, update = (1 + 0.5 * prompts / gpus) * factor, 0.25 * prompts / gpus - 0.02
        row = {"time/rollout_s": rollout, "time/update_s": update, "time/reward_s": 0.01, "time/data_s": 0.01}
        row |= {"time/sync_s": sync_s, "time/step_s": rollout + update + sync_s + 0.02}
        tokens = {"tokens/prompt": 100.0, "tokens/answer": 50.0}
        row |= tokens | {"perf/throughput": (2 * 100 + 50) / row["time/step_s"] / gpus}
        rows.append({"step": step, **row})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_phase_times_of_runs(tmp_path):
    small, large = write_run(tmp_path / "small", 4), write_run(tmp_path / "large", 16, gpus=2)
    found = read_phases([small, large])
    assert found.prompts == 16 and found.sync_s == 0.5
    assert found.generation.model_dump() == pytest.approx({"fixed_s": 1.0, "prompt_s": 0.5})
    assert found.training.fixed_s == pytest.approx(0.0, abs=1e-9) and found.training.prompt_s == pytest.approx(0.25)
    assert [g for g, _ in found.spread] == pytest.approx([0.8, 1.0, 1.2])  # the first step warms up
    assert step_seconds(found, 2, 2, 0) == pytest.approx(5 + 2 + 0.5, rel=0.01)
    alone = read_phases([small], sync_s=2.0)
    assert (alone.prompts, alone.sync_s, alone.generation.fixed_s) == (4, 2.0, 0.0)
    assert alone.generation.prompt_s == pytest.approx(3 / 4)


def test_runs_that_cannot_be_put_together(tmp_path):
    first, other = write_run(tmp_path / "a", 4), write_run(tmp_path / "b", 8, rollout={"max_new_tokens": 99})
    with pytest.raises(ConfigError, match=r"rollout.max_new_tokens is 99"):
        read_phases([first, other])


@pytest.mark.parametrize("name", ["time/rollout_s", "time/sync_s", "perf/throughput"])
def test_runs_without_phase_times(tmp_path, name):
    folder = write_run(tmp_path / "run", 4)
    text = (folder / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").write_text(text.replace(f'"{name}"', '"other"'))
    with pytest.raises(CheckpointError, match=f"step 2 has no {name}"):
        read_phases([folder])


def test_phases_of_a_run_that_generates_ahead_are_refused(tmp_path):
    folder = write_run(tmp_path / "run", 4, rollout={"engine": "vllm", "staleness": 1})
    with pytest.raises(CheckpointError, match=r"measure with rollout.staleness=0"):
        read_phases([folder])


def call(*arguments) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(["plan", *map(str, arguments)])
    return stopped.value.code or 0


def test_the_command_prints_a_table_or_json(tmp_path, capsys):
    folder = write_run(tmp_path / "run", 16)
    assert call("--from-run", folder, "--gpus", 4, "--sync-s", 2) == 0
    said = capsys.readouterr().out
    assert "16 prompts a step, sync 2 s" in said and "best" in said and "knee" in said
    assert "add --from-run for a second run" in said and "give --sync-s" not in said
    assert call("--from-run", folder, "--gpus", 4, "--json", "--staleness", 2) == 0
    found = json.loads(capsys.readouterr().out)
    assert [split["generation_gpus"] for split in found["splits"]] == [1, 2, 3] and found["gpus"] == 4
    assert set(found["best"]["step_s"]) == {"0", "2"} and found["phases"]["sync_s"] == 0.5


def test_the_command_refuses_what_it_cannot_plan(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    broken = shutil.copy(EXAMPLE, tmp_path / "broken.yaml")
    Path(broken).write_text(EXAMPLE.read_text().replace("sync_s", "sink_s"))
    cases = [
        (("--from-run", tmp_path / "empty", "--gpus", 8), "no metrics.jsonl with steps"),
        (("--from-run", tmp_path / "nothing", "--gpus", 8), "no metrics.jsonl with steps"),
        (("--from-run", broken, "--gpus", 8), "sink_s"),
        (("--from-run", EXAMPLE), "write --gpus 8"),
        (("--from-run", EXAMPLE, "--gpus", 8, "--gpu-memory", 80), "without --gpu-memory"),
        (("recipe.yaml", "--from-run", EXAMPLE, "--gpus", 8), "without a recipe"),
        (("recipe.yaml", "--staleness", 1), "belong to --from-run"),
        ((), "give a recipe"),
    ]
    for arguments, message in cases:
        assert call(*arguments) == 2
        said = capsys.readouterr().err
        assert message in said and len(said.splitlines()) == 1, said


@pytest.mark.parametrize("gpus", [8, 64])
def test_the_tables_of_the_page_are_what_its_commands_print(monkeypatch, capsys, gpus):
    page = (EXAMPLE.parents[1] / "docs" / "scale-out.md").read_text(encoding="utf-8")
    line = f"vlm-r1 plan --from-run examples/phase_times.yaml --gpus {gpus}"
    assert line in page
    monkeypatch.chdir(EXAMPLE.parents[1])
    assert call(*line.split()[2:]) == 0
    assert f"```\n{capsys.readouterr().out}```\n" in page
