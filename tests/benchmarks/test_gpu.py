"""`benchmarks/gpu.py`: every stage runs on a CPU at tiny size, its arithmetic is right, and a call goes on later."""

import importlib
import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
gpu, cells, page, arithmetic, settings = map(
    importlib.import_module, ("gpu", "_gpu_cells", "_gpu_page", "_arithmetic", "_setting")
)


def call(*arguments: str) -> str:
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--device", "cpu", "--tiny", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_every_stage_runs_on_a_cpu_and_a_second_call_finds_nothing_left(tmp_path):
    assert "nothing is left" in call("--out", str(tmp_path))
    found = json.loads((tmp_path / "gpu.json").read_text())["cells"]
    assert {cell["stage"] for cell in found.values()} == set(cells.STAGES)
    missing = {name: cell["missing"] for name, cell in found.items() if "missing" in cell}
    assert {stage.split("/")[0] for stage in missing} <= {"trl", "flash-pref"}
    for name, cell in found.items():
        if name in missing:
            assert cell["error"] == f"{cell['missing'][0]} is not installed"
            continue
        assert len(cell["steps"]) == 1 and cell["commit"] and cell["machine"]["cpu"] and "torch" in cell["versions"], (
            cell
        )
        numbers = page.numbers(cell)
        assert (
            numbers["peak_gib"] > 0 and (numbers.get("step_s") or numbers.get("update_s") or numbers["rollout_s"]) > 0
        )
    if (trl := "trl/tiny/20/8/lora/checkpointing") not in missing:
        assert found[trl]["trained"] == found["ours/tiny/20/8/lora/checkpointing"]["trained"]
        assert min(found[trl]["moved"].values()) > 0
    text = (tmp_path / "gpu.md").read_text()
    assert text.startswith("# benchmarks/gpu.py --tiny") and text.count("| tiny | 20 | 8 |") >= 3
    assert "measured" not in call("--out", str(tmp_path), *(["--only", "ours"] if missing else []))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_so():
    done = subprocess.run([sys.executable, str(BENCHMARKS / "gpu.py")], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stderr.strip() == "no CUDA device is there: try --device cpu --tiny"


def test_tiny_numbers_do_not_get_among_the_results():
    arguments = ["--device", "cpu", "--tiny", "--out", str(BENCHMARKS.parent / "docs" / "results")]
    done = subprocess.run([sys.executable, str(BENCHMARKS / "gpu.py"), *arguments], capture_output=True, text=True)
    assert done.returncode == 1 and "give --out another folder" in done.stderr


def test_the_cells_are_those_of_the_page():
    names = [cell.name for stage in cells.STAGES for cell in cells.cells_of(stage, "", tiny=False)]
    assert len(names) == len(set(names))
    assert names[0] == "ours/3b/1280/256/full/plain" and sum(name.startswith("ours/") for name in names) == 2 * 16
    assert {name.split("/")[2] for name in names if name.startswith("ours/7b")} == {"1280", "400"}
    assert {name.split("/")[4] for name in names if name.startswith("decode/")} == {"batch-16", "batch-64", "batch-256"}
    for stage in cells.STAGES:
        for cell in cells.cells_of(stage, "", tiny=False):
            width, height = cell.setting.size
            assert width * height == cell.setting.image_tokens * 28**2 and max(width, height) < 2 * min(width, height)


def arguments(**values) -> Namespace:
    return Namespace(**{"budget_s": 100.0, "retry": False, "out": None, "flash_pref": None, "only": "", **values})


def test_a_call_stops_at_its_budget_and_the_next_goes_on(monkeypatch, tmp_path):
    """A clock of our own: every cell takes 40 of the 100 seconds, the third would not end in time."""
    clock, ran = [0.0], []

    def run(script, job, result, timeout, packages):
        ran.append((script, timeout))
        clock[0] += 40
        return {"error": "out of memory"} if len(ran) == 2 else {"steps": [{"step_s": 1.0, "answer_tokens": 32}]}

    monkeypatch.setattr(gpu, "run_process", run)
    monkeypatch.setattr(gpu.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(gpu, "commit", lambda: "abc")
    base = settings.Setting(folder=str(tmp_path), prompts=2, group=2, answer_tokens=8)
    todo = [cells.Cell(stage="ours", name=str(n), script=f"{n}.py", setting=base) for n in range(4)]
    result = {"tiny": False, "cells": {}}
    assert gpu.work_through(todo, result, tmp_path, arguments()) == 2
    assert [timeout for _, timeout in ran] == [100, 60] and result["cells"]["1"]["error"] == "out of memory"
    assert gpu.work_through(todo, result, tmp_path, arguments()) == 0
    assert [script for script, _ in ran] == ["0.py", "1.py", "2.py", "3.py"]
    assert gpu.work_through(todo, result, tmp_path, arguments(retry=True)) == 0
    assert [script for script, _ in ran[4:]] == ["1.py"] and "error" not in result["cells"]["1"]


def test_the_command_names_no_folder():
    given = ["--stage", "ours", "--out", "there", "--tiny", "--work", "here"]
    assert gpu.command(given) == "python benchmarks/gpu.py --stage ours --tiny"


def test_a_cell_with_answers_that_are_cut_is_an_error():
    cell = next(cells.cells_of("ours", "", tiny=True))
    assert "steps" in gpu.checked(cell, {"steps": [{"answer_tokens": 32}]})
    assert gpu.checked(cell, {"steps": [{"answer_tokens": 31}]}) == {"error": "answers are cut: 31 of 32 tokens"}


def test_forward_arithmetic_equals_what_torch_counts(tmp_path):
    from _packed import made_up

    from vlm_r1.config import ModelConfig, PromptConfig
    from vlm_r1.models.cpu_layers import HAS_ONEDNN
    from vlm_r1.models.load import load_policy
    from vlm_r1.models.packing import pack
    from vlm_r1.rl.batch import as_prefix_group

    setting = settings.Setting(
        folder=str(tmp_path), prompts=2, group=3, image_tokens=64, answer_tokens=24, repetitions=1
    )
    settings.prepare(setting)
    config = ModelConfig(path=str(setting.model_path), precision="float32")
    loaded = load_policy(config, PromptConfig(template="plain"))
    groups = made_up(setting, loaded)
    onednn = {}  # of which torch's counter knows nothing, and which runs larger layers on some CPUs
    if HAS_ONEDNN:
        onednn[torch.ops.mkldnn._linear_pointwise] = lambda x, weight, *_, **__: 2 * x[0] * x[1] * weight[0]
    with FlopCounterMode(display=False, custom_mapping=onednn) as counted, torch.no_grad():
        loaded.policy(pack([as_prefix_group(group) for group in groups]))
    names = ("aten.mm", "aten.addmm", "mkldnn._linear_pointwise")
    linear = sum(n for op, n in counted.get_flop_counts()["Global"].items() if str(op).startswith(names))
    # Attended pairs, 4 x width each, of the tower (one layer whole images, three windows of 64), prompts and answers
    L = len(groups[0].prompt.token_ids)
    pairs = 2 * (256 * 256 + 3 * 256 * 64) + 2 * 4 * L * L / 2 + 6 * 4 * (23 * L + 23 * 23 / 2)
    flops = arithmetic.phase_flops(setting, L)
    linear += 2 * 6 * 24 * 128 * (500 - 493)  # the small tokenizer has seven words less than were asked for
    assert flops["rollout_shared"] == pytest.approx(linear + 4 * 128 * pairs, rel=1e-9)
    assert flops["update_shared"] == pytest.approx(3 * flops["rollout_shared"])


def test_a_frozen_tower_and_an_adapter_cost_less_by_hand():
    base = settings.Setting(folder="", model="3b", image_tokens=400, answer_tokens=256, prompts=2, group=8)
    one = arithmetic.forward_flops(base, 426)
    tower, prompt, answer = one["tower"], one["prompt"], one["answer"] + one["head"]
    frozen = arithmetic.phase_flops(base.changed(vision="frozen"), 426)
    assert frozen["update_shared"] == pytest.approx(2 * 3 * prompt + 16 * 3 * answer)
    assert frozen["update_padded"] == pytest.approx(16 * (tower + 3 * prompt + 3 * answer))
    lora = arithmetic.phase_flops(base.changed(vision="lora", language="lora"), 426)
    assert lora["update_shared"] == pytest.approx(2 * 2 * (tower + prompt) + 16 * 2 * answer)
    # 3B: 36 layers of 77,070,336 weights in matrices (attention 9,437,184 and 67,633,152), and the head of 151,936
    assert one["head"] == 2 * 256 * 2048 * 151_936
    assert one["answer"] > 2 * 36 * (9_437_184 + 67_633_152) * 255


def test_mfu_by_hand():
    """An update of exactly as many FLOPs as an H100 does in two seconds, in four: half of its peak."""
    setting = settings.Setting(folder="", model="3b", image_tokens=400, answer_tokens=256, prompts=2, group=8)
    flops = arithmetic.phase_flops(setting, 426)
    seconds = flops["update_shared"] / 989e12 * 2
    step = {"step_s": 4 * seconds, "rollout_s": 2 * seconds, "update_s": seconds, "prompt_tokens": 852}
    cell = {
        "setting": gpu.asdict(setting),
        "steps": [step],
        "machine": {"gpu": "NVIDIA H100 80GB HBM3"},
        "peak_rss_mib": 1.0,
        "peak_cuda_mib": 2048.0,
    }
    found = page.numbers(cell)
    assert found["mfu_shared"] == pytest.approx(0.5) and found["peak_gib"] == 2
    assert found["mfu_padded"] == pytest.approx(0.5 * flops["update_padded"] / flops["update_shared"])
    assert found["answer_tokens_per_s"] == pytest.approx(16 * 256 / (2 * seconds))
    assert found["trained_tokens_per_s"] == pytest.approx((852 + 16 * 256) / seconds)
    assert page.peak_of({"cpu": "a CPU"}) is None and page.peak_of({"gpu": "NVIDIA H200"}) == 989e12
