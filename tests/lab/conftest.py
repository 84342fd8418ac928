"""A small study whose runs are made by `fake_trainer.py`."""

import io
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image

from vlm_r1.lab.lab import Settings, run_study
from vlm_r1.lab.study import load_study

RECIPE = """
method: {method}
model: {{path: tiny}}
data:
  train: [{{scenes: {{n: 100}}}}]
  eval: {{val: {{scenes: {{split: in_domain, n: 60}}}}}}
optim: {{lr: 1e-6}}
run: {{steps: 4}}
"""
STUDY = """
title: RL against SFT
question: which is better
bases:
  b: [rl.yaml, "sft.yaml optim.lr=1e-5"]
arms:
  rl: {recipe: rl.yaml, base: b, tune: lr, set: ["data.train.0.scenes.start={seed}00"]}
  sft: {recipe: sft.yaml, base: b}
seeds: [1, 2, 3]
tune:
  lr: {arm: rl, values: [0.001, 0.02, 0.01], split: val, seeds: [11, 12]}
measures:
  iou: {metric: mean_iou, splits: [val], means: mean IoU}
  reward: {metric: "log:reward", means: reward}
quantities:
  difference: {measure: iou, terms: {rl: 1, sft: -1}}
  gain: {measure: iou, terms: {rl: 1, "rl@before": -1}}
claims:
  - claim: RL is better
    paper: table 2
    shown: {all: [difference > 0, gain > 0]}
    refuted: {any: [difference < 0.01]}
plots:
  - {measure: iou, arms: [rl, sft]}
images: {rl: val}
reduced:
  arms: {rl: ["run.steps=3"], sft: []}
  seeds: [1, 2]
"""


TRAINER = (sys.executable, str(Path(__file__).with_name("fake_trainer.py")))


def image_bytes() -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (96, 96), "white").save(sink, "PNG")
    return sink.getvalue()


def furnish(folder: Path, monkeypatch) -> None:
    """Two recipes and the study `mini`, and the fake trainer's controls in `control/`; work goes on in this folder."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("FAKE_CONTROL", "control")
    monkeypatch.setenv("FAKE_GAIN_RL", "0.2")
    monkeypatch.setenv("FAKE_IMAGE", image_bytes().hex())
    (folder / "control").mkdir(exist_ok=True)
    (folder / "mini.yaml").write_text(STUDY)
    for name, method in (("rl", "grpo"), ("sft", "sft")):
        (folder / f"{name}.yaml").write_text(RECIPE.format(method=method))


def settings_of() -> Settings:
    return Settings(runs=Path("runs"), out=Path("out"), at_once=2, threads=3, command=TRAINER)


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """A folder in which the study has been run; tests work on copies of it."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patched:
        furnish(folder, patched)
        run_study("mini", load_study(folder / "mini.yaml"), settings_of(), lambda text: None)
    return folder


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """An empty working folder with the study."""
    furnish(tmp_path, monkeypatch)
    return tmp_path


@pytest.fixture
def done(finished, tmp_path, monkeypatch) -> Path:
    """A working folder in which the study has been run."""
    folder = tmp_path / "done"
    shutil.copytree(finished, folder)
    furnish(folder, monkeypatch)
    return folder


@pytest.fixture
def study(tmp_path):
    file = tmp_path / "study.yaml"
    file.write_text(STUDY)
    return load_study(file)


@pytest.fixture
def settings() -> Settings:
    return settings_of()
