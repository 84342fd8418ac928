"""Suites named in a recipe, and outcomes of every kind in the table of an evaluation."""

import json

import pytest
from support import Scripted, noise_image, recipe, sample, tiny

from vlm_r1.errors import ConfigError
from vlm_r1.eval import run
from vlm_r1.records import LabelledBox, Truth
from vlm_r1.runtime.inputs import read_inputs
from vlm_r1.runtime.runlog import read_samples, write_eval_samples

CAT = LabelledBox(box=(0.0, 0.0, 32.0, 32.0), label="cat")
ANSWERS = {
    "found": '[{"bbox_2d": [0, 0, 500, 1000], "label": "cat"}]',
    "twice": '[{"bbox_2d": [0, 0, 500, 1000], "label": "dog"}, {"bbox_2d": [0, 0, 500, 1000], "label": "cat"}]',
}


@pytest.fixture
def measured(tmp_path):
    """`measured(samples, **eval)`: metrics and rows of a model that writes `ANSWERS` by the sample's id."""

    def _measured(samples, **options):
        engine = Scripted(lambda prompt, _: f"<think></think><answer>{ANSWERS[prompt.sample.id]}</answer>")
        settings = recipe(tmp_path, tmp_path / "run", eval=options)
        metrics, rows = run.evaluate(engine, tiny().family, {"val": samples}, settings)
        return metrics["val"], rows

    return _measured


def asked(name, source="ovdeval/color"):
    return sample("cat", noise_image(64, 32), id=name, task="ovd", truth=Truth(boxes=(CAT,)), source=source)


def test_the_named_suite_is_measured(measured):
    samples = [asked("found"), asked("twice")]
    both, _ = measured(samples)
    assert (both["mAP"], both["nms_ap"]) == (1.0, pytest.approx(51 / 101))
    only, _ = measured(samples, suites={"val": "ovd"})
    assert "mAP" in only and "nms_ap" not in only
    assert "mAP/low" in only and "mAP/low" not in measured(samples, resamples=0)[0]


def test_every_outcome_is_in_the_table(measured, tmp_path):
    _, rows = measured([asked("found"), asked("twice")])
    write_eval_samples(tmp_path / "rows.parquet", rows)
    first, second = read_samples(tmp_path / "rows.parquet")
    assert (first["source"], first["correct"], first["score"], first["n_tokens"]) == ("ovdeval/color", True, 1.0, 2)
    assert (second["correct"], second["score"], second["iou"]) == (False, 0.5, None)
    assert json.loads(second["pred_boxes"])[0] == {"box": [0, 0, 32, 32], "label": "dog"}


def test_a_suite_for_a_split_that_is_not_there_is_said(tmp_path):
    settings = recipe(
        tmp_path,
        tmp_path / "run",
        data={"eval": {"val": {"scenes": {"split": "in_domain", "n": 1}}}},
        eval={"suites": {"vall": "rec"}},
    )
    with pytest.raises(ConfigError, match=r'eval\.suites: "vall" is not a split .*did you mean "val"'):
        read_inputs(settings)
