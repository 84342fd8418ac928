from vlm_r1.report.html import write_report
from vlm_r1.report.warnings import concerns, logged
from vlm_r1.runtime.runlog import RunLog


def test_a_run_without_trouble_has_none():
    metrics = [{"step": step, "reward": 0.5, "parse/failed": 0.01, "loss": 0.0} for step in range(1, 31)]
    assert concerns(metrics, planned=30) == [] and concerns([]) == []


def test_a_run_cut_off_is_not_finished():
    assert concerns([{"step": 1}, {"step": 2}], planned=600) == ["Not finished: 2 of 600 steps are done."]
    assert concerns([], planned=5) == ["Not finished: 0 of 5 steps are done."]


def test_logged_warnings_come_latest_first_and_earlier_ones_by_their_step():
    metrics = [{"step": step, "warnings": [f"step {step}: beware"]} for step in (20, 40, 60)]
    assert logged(metrics) == [
        "Step 60: beware.",
        "Step 40: beware.",
        "1 earlier warning: steps 20 (metrics.jsonl).",
    ]
    assert logged([{"step": 3, "warnings": ["the disk is nearly full."]}]) == ["Step 3: the disk is nearly full."]
    many = logged([{"step": step, "warnings": ["x"]} for step in range(1, 21)])
    assert many[-1] == "18 earlier warnings: steps 1, 2, 3, 4, 5, 6, 7, 8 and later (metrics.jsonl)."


def test_values_that_are_no_numbers_are_told_of(tmp_path):
    log = RunLog(tmp_path)
    for step in (1, 2, 3):
        log.metrics(step, {"loss": float("nan") if step > 1 else 0.5, "grad_norm": float("inf") if step == 3 else 1.0})
    text = write_report([tmp_path]).read_text()
    assert "The metric loss was not a finite number in 2 steps, first in step 2." in text
    assert "The metric grad_norm was not a finite number in step 3." in text


def test_reward_errors_are_counted_over_restarts():
    """Counts grow over a process and begin again with the next: 3, then 2 more."""
    counts = [1, 3, 0, 2]
    metrics = [{"step": i, "rewards/counts/errors/iou": float(n)} for i, n in enumerate(counts, start=1)]
    metrics[0]["rewards/counts/timeouts/math"] = 1.0
    assert concerns(metrics) == ["The reward iou raised an error 5 times.", "The reward math ran out of time 1 time."]


def test_shares_are_those_of_the_last_tenth():
    metrics = [{"step": step, "answers/truncated": 0.5 if step <= 18 else 0.04} for step in range(1, 21)]
    assert concerns(metrics) == []
    metrics[-1]["answers/truncated"], metrics[-1]["frac_reward_zero_std"] = 0.07, 0.75
    assert concerns(metrics) == [
        "5.5 % of the answers were cut at the token limit, over the last 2 steps.",
        "75 % of the groups taught nothing, as all their answers scored alike, over the last 2 steps.",
    ]


def test_warnings_of_several_runs_carry_their_names(tmp_path):
    for name, truncated in (("a", 0.0), ("b", 0.5)):
        for step in (1, 2):
            RunLog(tmp_path / name).metrics(step, {"reward": 0.5, "answers/truncated": truncated})
    text = write_report([tmp_path / "a", tmp_path / "b"]).read_text()
    assert "<li>b: 50 % of the answers were cut at the token limit, in the last step.</li>" in text
    assert "<li>a:" not in text
    assert "The diagnostics warn of nothing." in write_report([tmp_path / "a"]).read_text()
