import errno
import json
import os
import platform

import numpy
import pytest
from support import file_limit

from vlm_r1.errors import CheckpointError, writing_remedy
from vlm_r1.records import LabelledBox
from vlm_r1.runtime.runlog import (
    RunLog,
    boxes_from_json,
    boxes_to_json,
    eval_path,
    read_environment,
    read_eval,
    read_metrics,
    read_rollouts,
    read_samples,
    rollout_steps,
)


def test_metrics_lines_come_back_and_nan_is_null(tmp_path):
    log = RunLog(tmp_path / "new" / "run")
    log.metrics(1, {"reward": 0.5, "kl": float("nan")})
    log.metrics(2, {"reward": float("inf"), "tokens/answer": 120})
    text = (tmp_path / "new" / "run" / "metrics.jsonl").read_text()
    assert text == '{"step": 1, "reward": 0.5, "kl": null}\n{"step": 2, "reward": null, "tokens/answer": 120}\n'
    assert read_metrics(tmp_path / "new" / "run") == [json.loads(line) for line in text.splitlines()]


def test_warnings_are_kept_as_sentences(tmp_path):
    RunLog(tmp_path).metrics(1, {"reward": 0.5, "warnings": ["the shadow reward fell"]})
    assert read_metrics(tmp_path) == [{"step": 1, "reward": 0.5, "warnings": ["the shadow reward fell"]}]


def test_cut_last_line_is_tolerated_and_dropped_on_restart(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "reward": 0.5}\n{"step": 2, "rew')
    assert read_metrics(tmp_path) == [{"step": 1, "reward": 0.5}]
    RunLog(tmp_path).metrics(2, {"reward": 0.75})
    assert read_metrics(tmp_path) == [{"step": 1, "reward": 0.5}, {"step": 2, "reward": 0.75}]


def test_broken_line_in_the_middle_names_file_and_line(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nbroken\n{"step": 3}\n')
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl:2: .*'broken'.*remove"):
        read_metrics(tmp_path)


def test_rollouts_keep_every_column(tmp_path):
    row = {
        "group": 0,
        "sample_id": "s1",
        "task": "rec",
        "source": "scenes",
        "question": "the red circle",
        "completion": "<think>é</think>",
        "think": "é",
        "answer": None,
        "finish": "stop",
        "n_tokens": 3,
        "token_ids": [5, 399, 7],
        "logprobs": [-0.5, -(2.0**-20), 0.0],
        "version": 11,
        "reward": None,
        "parts": '{"iou": 0.5}',
        "advantage": -1.25,
        "failure": "no_answer",
        "true_boxes": "[]",
        "pred_boxes": "[]",
        "image": b"\x89PNG",
        "image_width": 96,
        "image_height": 64,
        "calls": "[]",
        "shown": [b"\xff\xd8", b"\xff\xd8"],
    }
    RunLog(tmp_path).rollouts(12, [row, {"group": 0, "reward": 1.0}])
    assert (tmp_path / "rollouts" / "step-000012.parquet").is_file()
    first, second = read_rollouts(tmp_path, 12)
    assert first == {"step": 12, **row}
    assert second["reward"] == 1.0 and second["image"] is None
    assert [p.name for p in (tmp_path / "rollouts").iterdir()] == ["step-000012.parquet"]


def test_unknown_column_is_refused(tmp_path):
    with pytest.raises(ValueError, match="rewrad"):
        RunLog(tmp_path).rollouts(1, [{"rewrad": 1.0}])


def test_missing_and_broken_rollouts_say_what_to_do(tmp_path):
    log = RunLog(tmp_path)
    with pytest.raises(CheckpointError, match="log_rollouts_every"):
        read_rollouts(tmp_path, 3)
    log.rollouts(2, [{"group": 0}])
    with pytest.raises(CheckpointError, match="steps 2 to 2"):
        read_rollouts(tmp_path, 3)
    path = tmp_path / "rollouts" / "step-000002.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CheckpointError, match=r"step-000002\.parquet: not a whole Parquet file"):
        read_rollouts(tmp_path, 2)


def test_truncate_after_drops_later_steps_only(tmp_path):
    log = RunLog(tmp_path)
    for step in range(1, 6):
        log.metrics(step, {"reward": step / 10})
        log.rollouts(step, [{"group": 0, "reward": step / 10}])
    before = (tmp_path / "metrics.jsonl").read_bytes()
    log.truncate_after(5)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    log.truncate_after(3)
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3]
    assert rollout_steps(tmp_path) == [1, 2, 3]
    for step in (4, 5):
        log.metrics(step, {"reward": step / 10})
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_evaluation_merges_phases_and_replaces_one(tmp_path):
    log = RunLog(tmp_path)
    log.evaluation("before", {"in_domain": {"n": 2, "mean_iou": 0.25, "acc@0.5": 0.0}}, [{"split": "in_domain"}])
    log.evaluation("after", {"in_domain": {"n": 2, "mean_iou": float("nan")}}, [{"split": "x", "correct": True}])
    log.evaluation("after", {"in_domain": {"n": 2, "mean_iou": 0.75, "acc@0.5": 1.0}}, [{"split": "y", "iou": 0.75}])
    assert read_eval(tmp_path) == {
        "before": {"in_domain": {"n": 2, "mean_iou": 0.25, "acc@0.5": 0.0}},
        "after": {"in_domain": {"n": 2, "mean_iou": 0.75, "acc@0.5": 1.0}},
    }
    (row,) = read_samples(eval_path(tmp_path, "after"))
    assert (row["split"], row["iou"], row["correct"]) == ("y", 0.75, None)
    with pytest.raises(ValueError, match="file name"):
        log.evaluation("../before", {}, [])


def test_empty_folder_reads_as_nothing(tmp_path):
    assert read_metrics(tmp_path) == [] and read_eval(tmp_path) == {} and rollout_steps(tmp_path) == []


def test_boxes_survive_json():
    boxes = [LabelledBox(box=(1, 2.5, 3, 4), label="cat"), LabelledBox(box=(0, 0, float("nan"), 1))]
    assert boxes_from_json(boxes_to_json(boxes)) == [LabelledBox(box=(1, 2.5, 3, 4), label="cat")]
    assert boxes_from_json(None) == []


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EDQUOT, "free some space"),
        (errno.EACCES, "make the folder writable"),
        (errno.EROFS, "make the folder writable"),
        (errno.ENOTDIR, "set run.dir to a folder"),
    ],
)
def test_the_remedy_is_about_what_the_system_refused(tmp_path, monkeypatch, number, remedy):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    with pytest.raises(CheckpointError, match=rf"run: cannot be written \({os.strerror(number)}\); {remedy}"):
        RunLog(tmp_path / "run")
    rust = Exception(f"Error while serializing: I/O error: {os.strerror(number)} (os error {number})")
    assert writing_remedy(rust).startswith(remedy)


def test_full_disk_names_path_and_leaves_earlier_files_whole(tmp_path):
    log = RunLog(tmp_path)
    log.metrics(1, {"reward": 0.5})
    log.rollouts(1, [{"group": 0, "image": bytes(10)}])
    log.evaluation("before", {"in_domain": {"n": 1}}, [])
    noise = bytes(range(256)) * 40
    with file_limit(60):
        with pytest.raises(CheckpointError, match=r"metrics\.jsonl: cannot be written .*free some space"):
            log.metrics(2, {f"reward/{i}": 0.5 for i in range(10)})
        with pytest.raises(CheckpointError, match=r"step-000001\.parquet: cannot be written .*run\.dir"):
            log.rollouts(1, [{"group": 0, "image": noise}])
        with pytest.raises(CheckpointError, match=r"eval.*: cannot be written"):
            log.evaluation("after", {"in_domain": {"n": 1}}, [])
    assert read_metrics(tmp_path) == [{"step": 1, "reward": 0.5}]
    assert (tmp_path / "metrics.jsonl").read_bytes().endswith(b"\n")
    assert read_rollouts(tmp_path, 1)[0]["image"] == bytes(10)
    assert read_eval(tmp_path) == {"before": {"in_domain": {"n": 1}}}
    assert not [p for p in tmp_path.rglob("*") if p.name.endswith(".tmp")]


def test_full_device_is_one_clear_message(tmp_path):
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(CheckpointError, match="No space left on device"):
        RunLog(tmp_path).metrics(1, {"reward": 0.5})


def test_environment_names_versions(tmp_path):
    assert read_environment(tmp_path) == {}
    RunLog(tmp_path).environment()
    found = read_environment(tmp_path)
    assert found["python"] == platform.python_version()
    assert found["numpy"] == numpy.__version__
    (tmp_path / "environment.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"environment\.json: not JSON"):
        read_environment(tmp_path)
