"""Run folders listed with their outcome: what state they are in, what they reached, what is wrong with them."""

import io
import json
import os
from datetime import datetime

import pytest
from rich.console import Console

from vlm_r1.cli import main
from vlm_r1.errors import CheckpointError
from vlm_r1.report.runs import as_json, list_runs, problem_lines, runs_table

NOW = 1_800_000_000.0


def make(folder, config="run: {steps: 4}\n", rewards=(0.25, 0.75), evaluation=None, age=0.0, final=False, **extra):
    """A run folder of small files, written `age` seconds before NOW."""
    folder.mkdir(parents=True)
    lines = [json.dumps({"step": i, "reward": r} | extra) + "\n" for i, r in enumerate(rewards, start=1)]
    files = {"config.yaml": config, "metrics.jsonl": "".join(lines)}
    files |= {"eval.json": json.dumps(evaluation)} if evaluation is not None else {}
    for name, text in files.items():
        (folder / name).write_text(text)
        os.utime(folder / name, (NOW - age, NOW - age))
    if final:
        (folder / "final").mkdir()
    return folder


def only(folder):
    [run] = list_runs(folder, NOW)
    return run


def test_a_real_run_folder(run_dir):
    run = only(run_dir)
    assert (run.name, run.method, run.model, run.steps_done, run.steps) == ("demo", "grpo", "tiny", 60, 100)
    last = [json.loads(line)["reward"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()[-10:]]
    assert run.reward == pytest.approx(sum(last) / 10)
    found = json.loads((run_dir / "eval.json").read_text())
    assert [(h.split, h.metric) for h in run.held_out] == [("in_domain", "acc@0.5"), ("out_of_domain", "acc@0.5")]
    for held in run.held_out:
        assert held.before == found["before"][held.split]["acc@0.5"]
        assert held.after == found["after"][held.split]["acc@0.5"]


@pytest.mark.parametrize(
    ("settings", "state"),
    [
        ({"rewards": [0.0] * 4, "final": True}, "finished"),
        ({"rewards": [0.0] * 4, "final": True, "age": 1e6}, "finished"),
        ({"rewards": [0.0] * 2, "final": True}, "running"),  # goes on with more steps
        ({"rewards": [0.0] * 4, "final": True, "evaluation": {"before": {"a": {"accuracy": 0.5}}}}, "running"),
        ({"rewards": [0.0] * 4, "final": True, "evaluation": {"before": {"a": {"n": 3}}}, "age": 1e6}, "finished"),
        ({"rewards": []}, "running"),
        ({"age": 599.0}, "running"),
        ({"age": 601.0}, "stopped"),
        ({"age": 601.0, "time/step_s": 200.0}, "running"),
        ({"age": 1001.0, "time/step_s": 200.0}, "stopped"),
        ({"rewards": [0.0] * 4, "age": 601.0}, "stopped"),
    ],
)
def test_the_state_follows_from_the_files(tmp_path, settings, state):
    make(tmp_path / "x", **settings)
    assert only(tmp_path).state == state


def test_rewards_warnings_and_evaluations_are_summed_up(tmp_path):
    evaluation = {
        "before": {"a": {"n": 4, "mean_iou": 0.5, "acc@0.5": 0.25}, "b": {"mAP": 0.125}, "d": {"accuracy": None}},
        "after": {"a": {"n": 4, "mean_iou": 0.75, "acc@0.5": 0.5}, "c": {"mean_iou": 0.625}},
    }
    config = "method: sft\nmodel: {init: scratch, scratch: {model_type: qwen3_vl}}\n"
    rewards = [9.0] * 5 + [None, *range(9)]  # the last ten: one without a number, and 0 to 8
    make(tmp_path / "x", config, rewards, evaluation, warnings=["odd", "odder"])
    run = only(tmp_path)
    assert (run.method, run.model, run.reward, run.warnings) == ("sft", "scratch qwen3_vl", 4.0, 30)
    told = [(h.split, h.metric, h.before, h.after) for h in run.held_out]
    assert told == [("a", "acc@0.5", 0.25, 0.5), ("b", "mAP", 0.125, None), ("c", "mean_iou", None, 0.625)]


def test_runs_are_found_below_and_the_last_written_comes_first(tmp_path):
    make(tmp_path / "old", age=900)
    make(tmp_path / "sweep" / "lr" / "seed-0", age=100)
    make(tmp_path / "sweep" / "lr" / "seed-1", age=50)
    (tmp_path / ".run.tmp").mkdir()
    (tmp_path / "old" / "checkpoint-3").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    assert [run.name for run in list_runs(tmp_path, NOW)] == ["sweep/lr/seed-1", "sweep/lr/seed-0", "old"]
    assert only(tmp_path / "old").name == "old"
    with pytest.raises(CheckpointError, match="there is no such folder"):
        list_runs(tmp_path / "none")


BROKEN = {
    "cut.config": ("config.yaml", "run: {steps: 4", "config.yaml:1"),
    "key": ("config.yaml", "rl: {group_sise: 3}", 'unknown key "rl.group_sise"'),
    "bytes": ("config.yaml", b"\xff\xfe\x00", "config.yaml"),
    "metrics": ("metrics.jsonl", '{"step": 1}\nbroken\n{"step": 2}\n', "metrics.jsonl: line 2: not a metrics line"),
    "step": ("metrics.jsonl", '{"step": "one"}\n', "metrics.jsonl: line 1: not a metrics line"),
    "list": ("metrics.jsonl", "[1]\n\n", "metrics.jsonl: line 1: not a metrics line"),
    "eval": ("eval.json", '{"before": {', "eval.json: not JSON"),
    "eval.list": ("eval.json", "[1, 2]", "eval.json: holds [1, 2], not names with values"),
    "eval.split": ("eval.json", '{"before": {"held": 0.5, "far": {}}}', 'eval.json: before: "held" is 0.5'),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_run_is_listed_with_what_is_wrong(tmp_path, kind):
    file, content, told = BROKEN[kind]
    make(tmp_path / "good", age=10)
    path = make(tmp_path / "bad") / file
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    by_name = {run.name: run for run in list_runs(tmp_path, NOW)}
    assert by_name["good"].state == "running" and by_name["bad"].state == "broken"
    [problem] = problem_lines(list(by_name.values()))
    assert told in problem and str(tmp_path / "bad") in problem


def test_folders_without_a_configuration_are_broken(tmp_path):
    (tmp_path / "empty").mkdir()
    (make(tmp_path / "lost") / "config.yaml").unlink()
    lost, empty = list_runs(tmp_path, NOW)
    assert (lost.name, lost.steps_done, lost.reward) == ("lost", 2, 0.5)
    assert empty.name == "empty" and "config.yaml: is missing" in empty.problems[0]


@pytest.mark.parametrize("width", [60, 80, 140])
def test_the_table_shows_every_run(tmp_path, width):
    evaluation = {"before": {"in_domain": {"acc@0.5": 0.25}}, "after": {"in_domain": {"acc@0.5": 0.5}}}
    make(tmp_path / "a[b]", evaluation=evaluation, age=3700, warnings=["odd"])
    console = Console(file=io.StringIO(), width=width)
    console.print(runs_table(list_runs(tmp_path, NOW), NOW))
    text = console.file.getvalue()
    wanted = ["a[b]", "stopped", "1 h ago", "2 warnings", "2/4", "0.500"]
    for part in wanted + (["In-domain 0.250 → 0.500", "grpo tiny"] if width >= 80 else []):
        assert part in text, part
    assert max(map(len, text.splitlines())) <= width


def test_the_command_prints_a_table_or_json(tmp_path, capsys):
    make(tmp_path / "good")
    (tmp_path / "empty").mkdir()

    def call(*arguments) -> str:
        with pytest.raises(SystemExit) as stopped:
            main(["runs", *map(str, arguments)])
        assert not stopped.value.code
        return capsys.readouterr().out

    lines = call(tmp_path).splitlines()
    assert lines[0].split() == ["run", "state", "steps", "reward", "held", "out", "model"]
    assert any(line.startswith("good ") for line in lines)
    assert lines[-1].startswith(f"broken: {tmp_path / 'empty'}")
    rows = json.loads(call(tmp_path, "--json"))
    assert rows == json.loads(json.dumps(as_json(list_runs(tmp_path))))
    assert datetime.fromisoformat(rows[0]["written"]).timestamp() == NOW
    assert rows[1]["state"] == "broken" and rows[1]["written"] is None
    assert json.loads(call(tmp_path / "empty", "--json")) == []
    assert call(tmp_path / "empty") == f"no runs in {tmp_path / 'empty'}\n"


def test_a_missing_folder_is_one_message(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["runs", str(tmp_path / "none")])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'none'}: there is no such folder")
