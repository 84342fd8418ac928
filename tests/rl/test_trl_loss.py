"""Our update's loss and gradients equal TRL's on the same completions; see `benchmarks/trl_loss.py` for the cases."""

import importlib
import sys
from pathlib import Path

import pytest
from support import FAMILIES, save_tiny

pytest.importorskip("trl", reason="TRL is not installed: make setup-bench")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
bench = importlib.import_module("trl_loss")


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("trl") / request.param, request.param)


@pytest.mark.parametrize("case", bench.CASES, ids=lambda case: case.name)
def test_loss_and_gradients_equal_trls(session_device, model, case, tmp_path):
    row = bench.compare(model, tmp_path, case)
    assert row["advantage_error"] <= 1e-6
    assert row["loss_error"] <= bench.LOSS_LIMIT
    assert row["gradient_error"] <= bench.GRADIENT_LIMIT, row["gradient_worst"]
    ours, trls = row["metrics"], row["metrics_trl"]
    if "kl" in ours:
        assert ours["kl"] == pytest.approx(trls["kl"], rel=1e-4) and ours["kl"] > 0
    if case.corrects != "off":
        name = "sampling/importance_sampling_ratio"
        assert ours[f"{name}/min"] < 0.9 and ours[f"{name}/max"] > 1.1 and trls[f"{name}/max"] > 1.1
    if case.iterations > 1:
        clipped = [value for name, value in trls.items() if "clip_ratio" in name]
        assert max(clipped) > 0, "nothing was clipped: the case shows nothing about clipping"


def test_the_differences_that_the_page_names_are_there(model, tmp_path):
    for number, case in enumerate(bench.UNEQUAL):
        row = bench.compare(model, tmp_path / str(number), case)
        assert row["gradient_error"] > 10 * bench.GRADIENT_LIMIT, case.name
