"""`grpo_step.py` and `grpo_sweep.py`: what they count, how rounds are joined, which sizes are left. No timing."""

import importlib
import json
import sys
from argparse import Namespace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
step, sweep, arithmetic, page, settings = map(
    importlib.import_module, ("grpo_step", "grpo_sweep", "_arithmetic", "_page", "_setting")
)


def result_of(seconds: list[float]) -> dict:
    """What a process of one side writes."""
    kept = ("moved", "attention", "trained", "optimizer", "settings")
    steps = [{"step_s": s, "rollout_s": s / 4, "update_s": s / 2, "prompt_tokens": 376} for s in seconds]
    return {"steps": steps, "peak_rss_mib": 1.0, "parameters": 7, "dtype": "torch.float32", **{key: {} for key in kept}}


def test_a_shared_prompt_is_run_in_rollout_and_update():
    """Both ways run everything once in the rollout and three times (forward, backward) in the update."""
    setting = settings.Setting(folder="", prompts=4, group=8)
    found, flops = arithmetic.limits(setting, 282), arithmetic.forward_flops(setting, 282)
    prompt, answer = flops["tower"] + flops["prompt"], flops["answer"] + flops["head"]
    assert found["step_gflop_padded"] == pytest.approx(4 * 32 * (prompt + answer) / 1e9)
    assert found["step_gflop_shared"] == pytest.approx(4 * (4 * prompt + 32 * answer) / 1e9)
    assert found["step_limit"] == pytest.approx(found["step_gflop_padded"] / found["step_gflop_shared"])


def test_what_is_predicted_for_3b_by_its_parameters():
    """2 FLOPs a weight and token, and attention of the language part: 3.09 billion weights without the embedding's 0.31
    are 2.77; the tower's 0.67 run for four patches an image token, a few blocks of it over the whole image."""
    rows = {(r["model"], r["image_tokens"], r["answer_tokens"]): r["step_limit"] for r in arithmetic.predicted()}
    assert len(rows) == 8
    for answers in (256, 1024):
        L = 1280 + arithmetic.TEXT_TOKENS
        tower = 2 * 0.62e9 * 5120 + 4 * 1280 * (4 * 5120**2 + 28 * 5120 * 64) + 2 * 0.04e9 * 1280
        prompt = 2 * 2.77e9 * L + 36 * 4 * 2048 * L * L / 2
        answer = 2 * (2.77e9 + 0.31e9) * answers + 36 * 4 * 2048 * (answers * L + answers**2 / 2)
        expected = 8 * (tower + prompt + answer) / (tower + prompt + 8 * answer)
        assert rows["3b", 1280, answers] == pytest.approx(expected, rel=0.02)


def test_rounds_count_alike_and_the_page_names_their_spread():
    """The median of rounds of medians: 2, 3 and 10, not that of all steps."""
    ours = step.joined([result_of([1, 2, 9]), result_of([3, 3, 3]), result_of([10, 10, 1])])
    assert ours["median"]["step_s"] == 3 and [r["step_s"] for r in ours["rounds"]] == [2, 3, 10]
    trl = step.joined([result_of([20.0]), result_of([33.0]), result_of([90.0])])
    ratios = [b["step_s"] / a["step_s"] for a, b in zip(ours["rounds"], trl["rounds"], strict=True)]
    setting = {
        "model": "tiny",
        "prompts": 4,
        "group": 8,
        "image_size": [448, 448],
        "image_tokens": 256,
        "prompt_tokens_each": 94,
        "answer_tokens": 64,
    }
    text = page.markdown(
        {
            "setting": setting,
            "ours": ours,
            "trl": trl | {"tried": []},
            "ratio_vs_trl": 11.0,
            "ratio_of_rounds": ratios,
            "arithmetic": arithmetic.limits(settings.Setting(folder=""), 282),
            "predicted": arithmetic.predicted(),
            "machine": {},
            "versions": {"trl": "1"},
            "command": "",
            "commit": "",
            "date": "",
        }
    )
    assert "takes 11.0 times as long" in text and "Medians of 3 rounds" in text
    assert "from 9.00 to 11.00" in text and "| 3B | 1,280 | 1,024 | 2.5 |" in text


def test_fewer_than_three_rounds_are_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["grpo_step.py", "--rounds", "2"])
    with pytest.raises(SystemExit):
        step.parse_arguments()
    assert "3 at least" in capsys.readouterr().err


def test_trl_keeps_its_patches_and_long_steps_are_few():
    base = settings.Setting(folder="")
    arithmetic_here = arithmetic.limits(base, 256 + arithmetic.TEXT_TOKENS)
    trl = {"settings": {"micro_batch": 16, "workers": 1}, "median": {"step_s": 4.0}}
    headline = {"trl": trl, "setting": {"image_tokens": 256}, "arithmetic": arithmetic_here}
    assert sweep.settings_of(base.changed(image_tokens=1024), headline) == {"micro_batch": 4, "workers": 1}
    assert sweep.settings_of(base.changed(image_tokens=64, group=2), headline)["micro_batch"] == 8  # all that there are
    assert sweep.predict(base, headline) == pytest.approx(4.0)
    assert sweep.predict(base.changed(group=32), headline) == pytest.approx(16.0)


def test_a_sweep_goes_on_with_what_has_no_result_at_this_commit(tmp_path, monkeypatch):
    measured = []

    def measure(setting, headline):
        measured.append((setting.image_tokens, setting.group))
        steps = {"ours": [1.0] * 6, "trl": [2.0] * 3}
        row = {"image_tokens": setting.image_tokens, "group": setting.group, "ours_s": 1.0, "trl_s": 2.0, "ratio": 2.0}
        return row | {"step_limit": 1.5, "steps": steps, "trl_settings": {}, "machine": {}, "versions": {}, "wall_s": 0}

    namespace = Namespace(tokens=[64, 1024], groups=[4, 16], missing=True, quick=False, out=tmp_path)
    monkeypatch.setattr(sweep, "parse_arguments", lambda: namespace)
    monkeypatch.setattr(sweep, "measure", measure)
    monkeypatch.setattr(sweep, "commit_of_code", lambda: "abc")
    namespace.tokens = [64]
    sweep.main()
    namespace.tokens = [64, 1024]
    sweep.main()
    assert measured == [(64, 4), (64, 16), (1024, 4), (1024, 16)]
    text = (tmp_path / "grpo_sweep.md").read_text()
    assert text.count("| 6, 3 | abc |") == 4 and "time(G = 16) / time(G = 4) = **1.00**" in text
    assert (tmp_path / "grpo_sweep.png").stat().st_size > 0
    monkeypatch.setattr(sweep, "commit_of_code", lambda: "def")
    sweep.main()
    assert len(measured) == 8 and len(json.loads((tmp_path / "grpo_sweep.json").read_text())["sweep"]) == 4
