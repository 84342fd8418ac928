"""A run folder read while it grows: lines once, tables on demand, nothing outside it."""

import json
import os
import shutil

import pytest

from vlm_r1.errors import CheckpointError
from vlm_r1.runtime.runlog import RunLog
from vlm_r1.view.folder import RunFolder


def steps(run):
    return [row["step"] for row in run.metrics()]


def test_a_growing_file_is_read_on_and_a_half_written_line_waits(tmp_path):
    log = RunLog(tmp_path / "run")
    log.metrics(1, {"reward": 0.5})
    run = RunFolder(tmp_path / "run")
    assert steps(run) == [1]
    with open(run.path / "metrics.jsonl", "a") as file:
        file.write('{"step": 2, "rew')
        file.flush()
        assert steps(run) == [1] and run.problems == []
        file.write('ard": 0.75}\n')
    assert steps(run) == [1, 2] and run.metrics()[1]["reward"] == 0.75


def test_a_resumed_run_is_read_again_from_the_start(tmp_path):
    log = RunLog(tmp_path)
    for step in range(1, 6):
        log.metrics(step, {"reward": step / 4})
    run = RunFolder(tmp_path)
    assert steps(run) == [1, 2, 3, 4, 5]
    log.truncate_after(2)
    log.metrics(3, {"reward": 9.0})
    assert steps(run) == [1, 2, 3] and run.thinned()[-1]["reward"] == 9.0


def test_lines_that_are_no_metrics_are_named_and_left_out(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nnonsense\n[]\n{"step": "x"}\n\n{"step": 2}\n')
    run = RunFolder(tmp_path)
    assert steps(run) == [1, 2]
    [problem] = run.problems
    assert problem.count("not a metrics line") == 3 and '"nonsense"' in problem


def test_tables_are_read_once_until_they_change(make_run, tmp_path):
    run = RunFolder(make_run(tmp_path / "run"))
    assert run.steps() == [1, 2, 5, 6]
    rows = run.rollouts(2)
    assert len(rows) == 12 and run.rollouts(2) is rows
    RunLog(run.path).rollouts(2, rows[:4])
    assert len(run.rollouts(2)) == 4
    with pytest.raises(CheckpointError, match="no rollout table for step 3"):
        run.rollouts(3)
    (run.path / "rollouts" / "step-000005.parquet").write_bytes(b"PAR1 and then the power went")
    with pytest.raises(CheckpointError, match="not a whole Parquet file"):
        run.rollouts(5)


def test_evaluations_come_in_the_order_of_training(make_run, tmp_path):
    run = RunFolder(make_run(tmp_path / "run", phases=("after", "step-2", "before")))
    assert list(run.evaluations()) == ["before", "step-2", "after"]
    content = {"in_domain": {"n": 2, "mean_iou": 0.5}}
    (run.path / "mine.json").write_text(json.dumps(content))
    (run.path / "mine.parquet").write_bytes((run.path / "eval-after.parquet").read_bytes())
    assert list(run.evaluations()) == ["before", "step-2", "after", "mine"]
    assert len(run.samples("mine")) == 2 and run.samples("nothing") == []
    (run.path / "eval.json").write_text(json.dumps(content))
    assert list(run.evaluations()) == ["eval", "mine"]
    for odd, shown in (({"../../outside": {"a": {}}}, []), ({"a": {"b": 1}, "odd": 3}, ["eval"]), ({}, [])):
        (run.path / "eval.json").write_text(json.dumps(odd))
        assert list(run.evaluations()) == [*shown, "mine"]
    (run.path / "eval.json").write_text("[1")
    assert list(run.evaluations()) == ["mine"] and "eval.json: not JSON" in run.problems[-1]


def test_nothing_outside_the_folder_is_read(make_run, run_dir, tmp_path):
    folder = make_run(tmp_path / "run")
    os.unlink(folder / "rollouts" / "step-000001.parquet")
    os.symlink(run_dir / "rollouts" / "step-000001.parquet", folder / "rollouts" / "step-000001.parquet")
    os.unlink(folder / "config.yaml")
    os.symlink(run_dir / "config.yaml", folder / "config.yaml")
    run = RunFolder(folder)
    for read in (lambda: run.rollouts(1), lambda: run.text("config.yaml"), lambda: run.samples("../first/x")):
        with pytest.raises(CheckpointError, match="leads outside the run folder"):
            read()


def test_what_is_no_run_folder_is_refused_with_a_hint(tmp_path):
    with pytest.raises(CheckpointError, match="no such run folder"):
        RunFolder(tmp_path / "nothing")
    with pytest.raises(
        CheckpointError, match=r"not a run folder, and there is none inside; it has none of config\.yaml"
    ):
        RunFolder(tmp_path)


def test_a_folder_that_is_deleted_while_it_is_looked_at_is_empty(make_run, tmp_path):
    run = RunFolder(make_run(tmp_path / "run"))
    before = run.version()
    shutil.rmtree(run.path)
    assert run.metrics() == [] and run.steps() == [] and run.evaluations() == {} and run.version() != before
