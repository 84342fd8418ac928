"""Runs as processes: what is done is skipped, what was interrupted continues, what fails is named."""

import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from vlm_r1.errors import StudyError
from vlm_r1.lab.grid import Job, arm_jobs, base_jobs, tuning_jobs
from vlm_r1.lab.lab import differences, rewrite, run_study, status
from vlm_r1.lab.runner import best_value, is_done, run_jobs
from vlm_r1.runtime.runlog import read_metrics


def silent(_: str) -> None:
    pass


def calls(folder: Path) -> list[str]:
    """What the fake trainer was called for so far."""
    return (folder / "control" / "calls.txt").read_text().splitlines()


def test_a_study_runs_its_bases_searches_and_arms_in_that_order(done):
    made = [line.split()[0] + " " + line.split()[1].split("/")[0] for line in calls(done)]
    assert len(made) == 2 + 3 * 2 + 2 * 3
    # Two at once with three threads each; the two bases come one after the other and have all six.
    assert [line.split("=")[1] for line in calls(done)] == ["6"] * 2 + ["3"] * 12
    assert made[0].startswith("train rl-") and made[1].startswith("sft sft-")
    assert {m.split()[1] for m in made[2:8]} == {"0.001", "0.02", "0.01"}
    assert sorted(made[8:]) == ["sft sft"] * 3 + ["train rl"] * 3
    found = json.loads((done / "out" / "mini.json").read_text())
    # The fake trainer's IoU rises with the learning rate: the search finds the highest, which is not the last.
    assert found["tuned"]["lr"]["best"] == 0.02
    assert any("largest that was tried (0.02)" in text for text in found["limits"])
    overrides = json.loads((done / "runs/mini/rl/seed-2/what.json").read_text())
    (last,) = [folder.name for folder in (done / "runs" / "bases").iterdir() if folder.name.startswith("sft-")]
    assert f"model.path=runs/bases/{last}/final" in overrides
    assert {"data.train.0.scenes.start=200", "run.seed=2", "optim.lr=0.02", "run.threads=3"} <= set(overrides)


def test_what_is_done_is_skipped_and_a_new_call_only_writes_again(done, study, settings):
    before, said = calls(done), []
    again = run_study("mini", study, settings, said.append)
    assert calls(done) == before and [c["verdict"] for c in again["claims"]] == ["shown"]
    assert "6 of 6 runs are done already" in said


def test_a_run_with_the_same_settings_in_another_study_is_not_made_again(done, study, settings):
    before = calls(done)
    found = run_study("other", study, settings, silent)
    searched = 3 * 2  # searches are a study's own
    assert len(calls(done)) == len(before) + searched
    first = json.loads((done / "out" / "mini.json").read_text())
    assert found["quantities"] == first["quantities"] and len(found["runs"]) == 6
    assert set(dict(status("other", study, settings)).values()) == {"done"}


def test_a_killed_run_is_named_the_others_go_on_and_the_same_command_continues_it(done, study, settings):
    shutil.rmtree(done / "runs" / "mini" / "sft")
    (done / "control" / "die-sft").touch()
    with pytest.raises(StudyError, match=r"1 of 3 runs failed"):
        run_study("mini", study, settings, silent)
    assert len(json.loads((done / "out" / "mini.json").read_text())["runs"]) == 5
    states = dict(status("mini", study, settings))
    (stopped,) = [name for name, state in states.items() if state == "at step 2 of 4"]
    before = len(calls(done))
    found = run_study("mini", study, settings, silent)
    assert len(calls(done)) == before + 1 and len(found["runs"]) == 6
    assert [row["step"] for row in read_metrics(done / "runs" / stopped)] == [1, 2, 3, 4]
    assert set(dict(status("mini", study, settings)).values()) == {"done"}


def test_a_run_that_ends_without_a_model_has_failed_and_shows_its_log(done, study, settings):
    shutil.rmtree(done / "runs" / "mini" / "sft")
    shutil.rmtree(done / "runs" / "mini" / "rl")
    shutil.rmtree(done / "out")
    (done / "control" / "crash-sft").touch()
    (done / "control" / "empty-rl").touch()
    with pytest.raises(StudyError, match="6 of 6 runs failed") as failed:
        run_study("mini", study, settings, silent)
    told = str(failed.value)
    assert "    error: something broke" in told and told.count("lab.log") == 6
    assert not (done / "out").exists()


def test_a_folder_with_other_settings_is_refused_by_name(done, study, settings):
    arms = study.arms | {"sft": study.arms["sft"].model_copy(update={"set": ["run.steps=5"]})}
    changed = study.model_copy(update={"arms": arms})
    with pytest.raises(StudyError, match=r"runs/mini/sft/seed-1: holds a run with other settings.*Remove that folder"):
        run_study("mini", changed, settings, silent)


def test_a_setting_at_its_default_and_another_number_of_threads_are_the_same_run(place):
    job = Job(name="a", folder=Path("runs/a"), recipe="rl.yaml", overrides=("run.seed=1",))
    same = Job(name="a", folder=Path("runs/b"), recipe="rl.yaml", overrides=("run.seed=1", "rl.beta=0.0"))
    other = Job(name="a", folder=Path("runs/a"), recipe="rl.yaml", overrides=("run.seed=2",))
    assert job.fingerprint() == same.fingerprint() != other.fingerprint()
    assert job.command(4) == ["train", "rl.yaml", "run.seed=1", "run.dir=runs/a", "run.threads=4"]


def test_the_reduced_grid_has_its_own_arms_seeds_steps_model_and_folder(place, study, settings):
    found = run_study("mini", study, replace(settings, reduced=True), silent)
    assert len(calls(place)) == 4 and found["reduced"] and found["tuned"] == {}
    overrides = json.loads((place / "runs/reduced/mini/rl/seed-1/what.json").read_text())
    assert "model.path=tiny" in overrides and "run.steps=3" in overrides
    assert (place / "out/mini.reduced.json").is_file() and (place / "out/mini.reduced.md").is_file()


def test_studies_share_the_stages_of_their_bases(study):
    stages = base_jobs(study, Path("runs"), False)
    longer = study.model_copy(update={"bases": {"b": [*study.bases["b"], "sft.yaml run.steps=2"]}})
    other = base_jobs(longer, Path("runs"), False)
    assert [len(stage) for stage in other] == [1, 1, 1] and other[:2] == stages
    assert other[2][0].overrides[0] == f"model.path={stages[1][0].folder.as_posix()}/final"


def test_arms_are_run_seed_by_seed(study):
    names = [job.name for job in arm_jobs("mini", study, Path("runs"), False, {"lr": 0.1})]
    assert names[:3] == ["mini/rl/seed-1", "mini/sft/seed-1", "mini/rl/seed-2"]
    assert [job.seed for jobs in tuning_jobs("mini", study, Path("r"), False)["lr"].values() for job in jobs] == [
        *(11, 12, 11, 12, 11, 12)
    ]


def test_a_search_without_its_metric_is_named(done, study, settings):
    jobs = tuning_jobs("mini", study, settings.runs, False)["lr"]
    with pytest.raises(StudyError, match=r"tune-lr/0.001/seed-11: no acc of split val"):
        best_value(jobs, "val", "acc")
    best, means = best_value(jobs, "val", "mean_iou")
    assert best == 0.02 and list(means) == [0.001, 0.02, 0.01]


def test_an_interrupted_lab_ends_its_processes(place):
    jobs = [Job(name=f"j{i}", folder=Path(f"runs/j{i}"), recipe="rl.yaml") for i in range(2)]
    code = "import os, time; open(f'pid-{os.getpid()}', 'w').close(); time.sleep(60)"

    def interrupt(text: str) -> None:
        if "j1" in text:
            deadline = time.monotonic() + 30
            while len(list(place.glob("pid-*"))) < 2 and time.monotonic() < deadline:
                time.sleep(0.05)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_jobs(jobs, at_once=2, threads=1, say=interrupt, command=(sys.executable, "-c", code))
    pids = [int(file.name.removeprefix("pid-")) for file in place.glob("pid-*")]
    assert len(pids) == 2 and not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert not any(is_done(job) for job in jobs)


def test_a_folder_in_which_a_run_goes_on_is_left_alone(place):
    job = Job(name="j", folder=Path("runs/j"), recipe="rl.yaml")
    job.folder.mkdir(parents=True)
    # Started by another lab that was killed: the run alone still holds its log.
    code = "import fcntl, sys, time; fcntl.flock(sys.stdout, fcntl.LOCK_EX); print('.', flush=True); time.sleep(60)"
    with open(job.folder / "lab.log", "ab") as log:
        running = subprocess.Popen([sys.executable, "-c", code], stdout=log)
    try:
        deadline = time.monotonic() + 30
        while not (job.folder / "lab.log").stat().st_size and time.monotonic() < deadline:
            time.sleep(0.05)
        with pytest.raises(StudyError, match=r"runs/j: another process is running j"):
            run_jobs([job], at_once=1, threads=1, say=silent, command=(sys.executable, "-c", "pass"))
    finally:
        running.kill()
        running.wait()


def test_results_are_compared_with_those_of_a_folder(done, study, settings):
    found = json.loads((done / "out/mini.json").read_text())
    assert differences(found, done / "out") == []
    old = found["quantities"]["difference"]
    reach = (old["high"] - old["low"]) / 2
    for times, said in ((1.3, 0), (1.5, 1)):  # sqrt(2) half widths are allowed
        moved = old | {key: old[key] + times * reach for key in ("value", "low", "high")}
        other = found | {"quantities": found["quantities"] | {"difference": moved}}
        assert len(differences(other, done / "out")) == said
    with pytest.raises(StudyError, match=r"mini.reduced.json: is missing"):
        differences(found | {"reduced": True}, done / "out")


def test_without_runs_the_page_is_made_from_the_json(done, study, settings):
    page = (done / "out/mini.md").read_text()
    (done / "runs").rename(done / "elsewhere")
    (done / "out/mini.md").unlink()
    rewrite("mini", study, settings)
    assert (done / "out/mini.md").read_text() == page
    (done / "out/mini.json").unlink()
    with pytest.raises(StudyError, match=r"out/mini.json: is missing"):
        rewrite("mini", study, settings)
