"""The share of wrong labels stands beside results on the splits that have them."""

import json

import pytest

from vlm_r1.cli.evaluate import _show_metrics
from vlm_r1.eval.label_noise import ERRORS, noise_notes
from vlm_r1.report.compare import compare
from vlm_r1.report.html import write_report
from vlm_r1.runtime.runlog import RunLog


@pytest.mark.parametrize(
    ("split", "name", "share"),
    [
        ("refcoco_val", "RefCOCO", "14 %"),
        ("RefCOCO+_testA", "RefCOCO+", "24 %"),
        ("refcocoplus_val", "RefCOCO+", "24 %"),
        ("refcocog_test", "RefCOCOg", "5 %"),
    ],
)
def test_each_set_has_its_own_share(split, name, share):
    [note] = noise_notes([split, split, "lisa"])
    assert note.startswith(f"{name}: {share} of its expressions are labelled wrongly")


def test_reviewed_rows_and_other_sets_have_none():
    assert noise_notes(["refcoco+_val_reviewed", "lisa", "ref_l4_val", "held_out"]) == []
    assert len(noise_notes(["refcoco_val", "refcoco+_val", "refcocog_val"])) == len(ERRORS)


def test_the_notes_are_where_results_are_read(tmp_path, capsys):
    metrics = {"refcoco+_val": {"n": 2.0, "acc@0.5": 0.5}}
    log = RunLog(tmp_path / "run")
    log.evaluation("before", metrics)
    log.evaluation("after", metrics)
    _show_metrics(metrics)
    shown = " ".join(capsys.readouterr().out.split())
    table = compare([str(tmp_path / "run")])
    page = write_report([tmp_path / "run"]).read_text()
    (tmp_path / "other.json").write_text(json.dumps({"held_out": {"n": 2.0, "acc@0.5": 0.5}}))
    for text in (shown, table, page):
        assert "RefCOCO+: 24 % of its expressions are labelled wrongly (5,201 of 21,373" in text
    assert "labelled wrongly" not in compare([str(tmp_path / "other.json")])
