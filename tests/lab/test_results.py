"""Quantities from run folders, and the pages made of them."""

import json
from pathlib import Path

import numpy as np
import pytest

from vlm_r1.errors import StudyError
from vlm_r1.lab.grid import arm_jobs
from vlm_r1.lab.page import page, summary, told
from vlm_r1.lab.results import measured, questions_per_step, take_quantity
from vlm_r1.lab.study import Quantity
from vlm_r1.runtime.runlog import RunLog, eval_path, read_samples


@pytest.fixture
def runs(done, study):
    return [measured(job) for job in arm_jobs("mini", study, Path("runs"), False, {"lr": 0.02})]


def mean_iou(run, phase) -> float:
    return float(np.mean([row["iou"] for row in read_samples(eval_path(run.job.folder, phase))]))


def test_a_difference_is_the_mean_over_seeds_of_the_runs_differences(runs, study):
    found = take_quantity(study.quantities["difference"], study, runs)
    by_arm = {arm: [mean_iou(r, "after") for r in runs if r.job.arm == arm] for arm in ("rl", "sft")}
    assert found.value == pytest.approx(np.mean(by_arm["rl"]) - np.mean(by_arm["sft"])) and found.seeds == 3
    low, high = found.interval()
    # Question effects (0.1) are shared and cancel; what is left is the runs' own noise (0.01 over 60 questions).
    assert 0 < high - low < 0.02 and low < 0.12 < high
    gain = take_quantity(study.quantities["gain"], study, runs)
    assert gain.value == pytest.approx(np.mean(by_arm["rl"]) - mean_iou(runs[0], "before"))


def test_only_seeds_that_all_arms_have_are_compared(runs, study):
    some = [run for run in runs if (run.job.arm, run.job.seed) != ("sft", 2)]
    assert take_quantity(study.quantities["difference"], study, some).seeds == 2
    assert take_quantity(study.quantities["gain"], study, some).seeds == 3
    assert take_quantity(study.quantities["difference"], study, some[:1]) is None


def test_different_questions_are_not_subtracted(runs, study):
    other = next(run for run in runs if run.job.arm == "sft")
    rows = [row | {"question": "another"} for row in read_samples(eval_path(other.job.folder, "after"))]
    RunLog(other.job.folder).evaluation("after", {"val": {"mean_iou": 0.5}}, rows)
    with pytest.raises(StudyError, match=r'sft/seed-1 and .*rl/seed-1 were asked different questions in split "val"'):
        take_quantity(study.quantities["difference"], study, runs)


def test_equal_budgets_stop_at_what_the_shortest_arm_used(runs, study):
    rl, sft = (next(run for run in runs if run.job.arm == arm) for arm in ("rl", "sft"))
    # 4 steps of 16 prompts, of 16 images with one question; 100 tokens and half a second a step in the fake trainer.
    assert [(p.phase, p.samples, p.tokens, p.seconds) for p in rl.points] == [
        ("before", 0, 0, 0),
        ("after", 64, 400, 2.0),
    ]
    assert questions_per_step(sft.job.settings()) == 16
    assert rl.at("equal_samples", 64).phase == "after" and rl.at("equal_samples", 63).phase == "before"
    assert rl.at("equal_seconds", 1.9995).phase == "after" and rl.at("end", 0).phase == "after"
    equal = Quantity(measure="iou", terms={"rl": 1, "sft": -1}, at="equal_tokens")
    assert take_quantity(equal, study, runs).value == take_quantity(study.quantities["difference"], study, runs).value


def test_a_metric_of_the_log_has_an_interval_over_seeds(runs, study):
    found = take_quantity(Quantity(measure="reward", terms={"rl": 1}), study, runs)
    assert found.value == pytest.approx(0.25) and found.interval() == pytest.approx((0.25, 0.25))


def test_the_files_hold_every_run_and_the_page_says_what_they_say(done):
    found = json.loads((done / "out" / "mini.json").read_text())
    assert [(r["arm"], r["seed"]) for r in found["runs"]][:2] == [("rl", 1), ("sft", 1)]
    run = found["runs"][0]
    assert run["commits"] and run["machine"]["cores"] and "optim.lr=0.02" in run["overrides"]
    assert [point["step"] for point in run["curve"]] == [0, 4]
    assert run["curve"][1]["measures"]["iou"] == pytest.approx(0.62, abs=0.03)
    text = (done / "out" / "mini.md").read_text()
    difference = found["quantities"]["difference"]
    assert f"| {told(difference)} | 3 |" in text
    assert "table 2" in text and "Verdict: **shown**" in text and "`vlm-r1 lab mini`" in text
    assert "![iou](mini-1.png)" in text and (done / "out" / "mini-1.png").read_bytes().startswith(b"\x89PNG")
    assert "rl, its first seed:\n\n![rl](mini-rl.png)" in text and (done / "out" / "mini-rl.png").is_file()
    assert "0.001: 0." in text and "largest that was tried" in text
    index = (done / "out" / "README.md").read_text()
    assert "| [mini](mini.md) | RL is better | table 2 | **shown** |" in index


def test_the_verdict_on_the_page_is_the_rules_and_a_missing_arm_is_not_run(runs, study, settings, done):
    from vlm_r1.lab.lab import write_results

    jobs = [run.job for run in runs if run.job.arm == "rl"]
    found = write_results("mini", study, settings, jobs, {})
    assert found["claims"][0]["verdict"] == "not run" and "difference" in found["claims"][0]["why"][0]
    assert "| `difference` | mean IoU | iou: +1 rl -1 sft (end) |  |  |" in page(found)
    assert "**not run**" in summary([found])


def test_runs_of_uncommitted_code_are_named_as_a_limit(done, study, settings):
    from vlm_r1.lab.lab import rewrite

    before = rewrite("mini", study, settings)["limits"]
    for seed in (1, 2):
        mark = done / f"runs/mini/rl/seed-{seed}/lab.json"
        content = json.loads(mark.read_text())
        mark.write_text(json.dumps(content | {"commits": ["abc", "def+changes"]}))
    assert [text for text in rewrite("mini", study, settings)["limits"] if text not in before] == [
        "2 of 6 runs were made with code or recipes that were not committed: that the rule came before them is not on "
        "record."
    ]
