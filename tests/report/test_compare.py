import json
from io import BytesIO

import pytest
from detection_oracle import box
from PIL import Image

from vlm_r1.cli import main
from vlm_r1.errors import CheckpointError, ConfigError
from vlm_r1.eval.measures import summary
from vlm_r1.eval.outcomes import outcome_of_row
from vlm_r1.report.compare import compare
from vlm_r1.report.evaluations import compare_rows, load_evaluations
from vlm_r1.runtime.runlog import RunLog, boxes_to_json, write_eval_samples

MINUS = "\N{MINUS SIGN}"


def rec_rows(ious, split="val"):
    return [
        {"split": split, "sample_id": str(i), "task": "rec", "question": "q", "iou": iou, "correct": iou >= 0.5}
        for i, iou in enumerate(ious)
    ]


def detection_rows(found):
    """Questions about one cat each, found or answered by a box elsewhere."""
    true, far = boxes_to_json([box(0, 0, 10, 10)]), boxes_to_json([box(50, 50, 60, 60)])
    shared = {"split": "ovd", "task": "ovd", "question": "q", "true_boxes": true}
    return [{**shared, "sample_id": str(i), "pred_boxes": true if hit else far} for i, hit in enumerate(found)]


def write(folder, name, rows, **extra):
    splits = dict.fromkeys(row["split"] for row in rows)
    metrics = {s: summary([outcome_of_row(r) for r in rows if r["split"] == s]) | extra for s in splits}
    (folder / f"{name}.json").write_text(json.dumps(metrics))
    write_eval_samples(folder / f"{name}.parquet", rows)
    return str(folder / f"{name}.json")


def rows_of(*inputs):
    return {(row.split, row.metric): row for row in compare_rows([m for i in inputs for m in load_evaluations(i)])}


def test_values_and_paired_differences(tmp_path):
    """Every question gains 0.25: the paired interval has no width though the values' intervals overlap."""
    a = write(tmp_path, "a", rec_rows([0.0, 0.25, 0.5, 0.75] * 5))
    b = write(tmp_path, "b", rec_rows([0.25, 0.5, 0.75, 1.0] * 5))
    row = rows_of(a, b)["val", "mean_iou"]
    first, second = row.cells
    assert (row.n, first.value, second.value, first.difference) == (20, 0.375, 0.625, None)
    assert first.high >= second.low
    told = (second.difference, second.difference_low, second.difference_high)
    assert told == pytest.approx((0.25, 0.25, 0.25))
    share = rows_of(a, b)["val", "acc@0.5"].cells[1]
    assert share.difference == 0.25 and share.difference_low >= 0 and share.difference_high > 0.25


def test_map_is_compared_on_resampled_images(tmp_path):
    a = write(tmp_path, "a", detection_rows([False] * 8))
    b = write(tmp_path, "b", detection_rows([True] * 8))
    cell = rows_of(a, b)["ovd", "mAP"].cells[1]
    assert (cell.difference, cell.difference_low, cell.difference_high) == pytest.approx((1.0, 1.0, 1.0))


def test_other_questions_give_a_difference_without_an_interval(tmp_path):
    a = write(tmp_path, "a", rec_rows([0.5] * 4))
    b = write(tmp_path, "b", rec_rows([1.0] * 5))
    cell = rows_of(a, b)["val", "mean_iou"].cells[1]
    assert (cell.difference, cell.difference_low) == (0.5, None)
    (tmp_path / "b.parquet").unlink()
    assert rows_of(a, b)["val", "mean_iou"].cells[1].difference_low is None


def test_rows_that_do_not_give_the_metric_give_no_interval(tmp_path):
    a = write(tmp_path, "a", rec_rows([0.5] * 4), mean_iou=0.9)
    b = write(tmp_path, "b", rec_rows([1.0] * 4))
    rows = rows_of(a, b)
    assert rows["val", "mean_iou"].cells[1].difference_low is None
    assert rows["val", "acc@0.5"].cells[1].difference_low == 0


def test_a_split_or_metric_that_one_lacks_stays_empty(tmp_path):
    a = write(tmp_path, "a", rec_rows([0.5] * 2))
    b = write(tmp_path, "b", [*rec_rows([1.0] * 2, "other"), *rec_rows([0.5] * 2)])
    cells = rows_of(a, b)["other", "mean_iou"].cells
    assert (cells[0].value, cells[1].value, cells[1].difference) == (None, 1.0, None)
    assert not {metric for _, metric in rows_of(a, b)} - {"mean_iou", "acc@0.5"}


def test_a_run_folder_holds_its_phases(tmp_path):
    run = tmp_path / "run"
    log = RunLog(run)
    for phase, iou in (("before", 0.25), ("after", 0.75)):
        rows = rec_rows([iou] * 4)
        log.evaluation(phase, {"val": summary([outcome_of_row(r) for r in rows])}, rows)
    assert [m.name for m in load_evaluations(str(run))] == ["run before", "run after"]
    assert [m.name for m in load_evaluations(str(run / "eval.json"))] == ["run before", "run after"]
    assert [m.name for m in load_evaluations(f"{run}:after")] == ["run after"]
    assert rows_of(str(run))["val", "mean_iou"].cells[1].difference_low == 0.5
    with pytest.raises(ConfigError, match=r'no phase "aftr": did you mean "after"'):
        load_evaluations(f"{run}:aftr")


def test_markdown_by_hand(tmp_path):
    a = write(tmp_path, "a|b", rec_rows([0.5]))
    b = write(tmp_path, "b", rec_rows([0.25]))
    assert compare([a, b, b]).splitlines() == [
        f"| split | metric | questions | a\\|b | b #1 | b #1 {MINUS} a\\|b | b #2 | b #2 {MINUS} a\\|b |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        f"| val | mean IoU | 1 | 0.500 | 0.250 | {MINUS}0.250 | 0.250 | {MINUS}0.250 |",
        f"| val | Acc@0.5 | 1 | 1.000 | 0.000 | {MINUS}1.000 | 0.000 | {MINUS}1.000 |",
    ]


def test_a_sure_difference_is_bold(tmp_path):
    a = write(tmp_path, "a", rec_rows([0.5] * 3))
    b = write(tmp_path, "b", rec_rows([0.75] * 3))
    text = compare([a, b])
    assert "| 0.750 (0.750 to 0.750) | **+0.250 (+0.250 to +0.250)** |" in text
    assert "| 1.000 (1.000 to 1.000) | +0.000 (+0.000 to +0.000) |" in text
    assert text.endswith("paired over the same questions.\n")


def test_the_command_writes_all_three_forms(tmp_path, capsys):
    a = write(tmp_path, "a", [*rec_rows([0.5, 1.0]), *detection_rows([True, False])])
    b = write(tmp_path, "b", [*rec_rows([0.25, 1.0]), *detection_rows([True, True])])
    for name in ("t.md", "t.json", "t.png"):
        with pytest.raises(SystemExit) as stopped:
            main(["compare", a, b, "--out", str(tmp_path / "out" / name)])
        assert stopped.value.code == 0
    assert (tmp_path / "out" / "t.md").read_text() in capsys.readouterr().out
    content = json.loads((tmp_path / "out" / "t.json").read_text())
    assert content["models"] == ["a", "b"]
    row = next(r for r in content["rows"] if r["metric"] == "mean_iou")
    assert (row["split"], row["n"], row["cells"][1]["value"], row["cells"][1]["difference"]) == (
        "val",
        2,
        0.625,
        -0.125,
    )
    image = Image.open(BytesIO((tmp_path / "out" / "t.png").read_bytes()))
    # Dots of both models' colours are drawn.
    colours = {pixel for _, pixel in image.convert("RGB").getcolors(1 << 20)}
    assert {(0x4A, 0x6F, 0xA5), (0xE0, 0x7A, 0x3F)} <= colours


def test_what_is_no_evaluation_is_said(tmp_path):
    file = tmp_path / "x.json"
    for text in ("[]", "not json", "{}", '{"val": 3}'):
        file.write_text(text)
        with pytest.raises(CheckpointError, match="not an evaluation"):
            load_evaluations(str(file))
    with pytest.raises(CheckpointError, match="there is no"):
        load_evaluations(str(tmp_path / "gone"))
    a = write(tmp_path, "a", rec_rows([0.5]))
    with pytest.raises(ConfigError, match="without phases"):
        load_evaluations(f"{a}:after")
    with pytest.raises(ConfigError, match=r"--out t\.pdf: end the name with"):
        from pathlib import Path

        compare([a], Path("t.pdf"))
    file.write_text('{"val": {"n": 2}}')
    with pytest.raises(ConfigError, match="no metrics"):
        compare([str(file)])
