"""One GRPO step of ours beside TRL's over group and picture sizes, without tuning TRL again.

    python benchmarks/grpo_sweep.py                       # all sizes: about an hour on two cores
    python benchmarks/grpo_sweep.py --tokens 64 --groups 2 4 8 16 32
    python benchmarks/grpo_sweep.py --tokens 1024 --groups 4 16 --ours-only

TRL's settings are those that `grpo_step.py` found fastest (docs/results/grpo_step.json). Each size is added to
docs/results/grpo_sweep.json as it is measured, so the table can be made in several calls; grpo_sweep.md and .png are
made from it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import tempfile
from typing import Any

from _arithmetic import limits
from _measure import commit, machine
from _page import plot
from _setting import Setting, prepare
from grpo_step import GROUPS, IMAGE_TOKENS, ROOT, _micro, assert_equal_work, median_step, required, run_side, say

RESULTS = ROOT / "docs" / "results"


def measure(setting: Setting, settings_of_trl: dict[str, Any], ours_only: bool) -> dict[str, Any]:
    """One size: median step seconds of three steps of each side."""
    ours = required("ours", run_side("_ours.py", setting))
    row = {"image_tokens": setting.image_tokens, "group": setting.group, "ours_s": median_step(ours)}
    row["step_limit"] = limits(setting, round(ours["steps"][0]["prompt_tokens"] / setting.prompts))["step_limit"]
    if not ours_only:
        patches = settings_of_trl["micro_batch"] * 256
        options = settings_of_trl | {"micro_batch": _micro(setting, patches)}
        trl = required("TRL", run_side("_trl.py", setting, options))
        assert_equal_work(setting, [ours], [trl])
        row |= {"trl_s": median_step(trl), "ratio": median_step(trl) / row["ours_s"], "trl_settings": options}
    return row


def page(result: dict[str, Any]) -> str:
    """The sizes as a Markdown table."""
    lines = [
        "# One GRPO step over group and picture sizes",
        "",
        "Made by `benchmarks/grpo_sweep.py`; median of 3 steps.",
    ]
    lines += ["", "| image tokens | G | ours, s | TRL, s | ratio |", "|---|---|---|---|---|"]
    for row in result["sweep"]:
        trl = f"{row['trl_s']:.2f} | **{row['ratio']:.1f}**" if "trl_s" in row else "not measured | "
        lines.append(f"| {row['image_tokens']} | {row['group']} | {row['ours_s']:.2f} | {trl} |")
    if "growth" in result:
        lines += ["", f"Ours at 1,024 image tokens: time(G = 16) / time(G = 4) = **{result['growth']:.2f}**."]
    return "\n".join([*lines, ""])


def main() -> None:
    """Measure the sizes asked for and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=list(IMAGE_TOKENS))
    parser.add_argument("--groups", type=int, nargs="+", default=list(GROUPS))
    parser.add_argument("--ours-only", action="store_true", help="leave TRL out")
    arguments = parser.parse_args()
    best = json.loads((RESULTS / "grpo_step.json").read_text())["trl"]["settings"]
    best = {name: value for name, value in best.items() if name in ("micro_batch", "workers", "cache", "torch_compile")}
    file = RESULTS / "grpo_sweep.json"
    result: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {"sweep": []}
    result |= {"machine": machine(), "commit": commit(), "command": "python benchmarks/grpo_sweep.py"}
    result["date"] = datetime.datetime.now(datetime.UTC).date().isoformat()
    for tokens in arguments.tokens:
        for group in arguments.groups:
            with tempfile.TemporaryDirectory() as folder:
                start = Setting(
                    folder=folder, model="tiny", precision="float32", lr=1e-6, warmup=1, repetitions=3, threads=None
                )
                setting = start.changed(image_tokens=tokens, group=group)
                prepare(setting)
                row = measure(setting, best, arguments.ours_only)
            others = [r for r in result["sweep"] if (r["image_tokens"], r["group"]) != (tokens, group)]
            result["sweep"] = sorted([*others, row], key=lambda r: (r["image_tokens"], r["group"]))
            times = {r["group"]: r["ours_s"] for r in result["sweep"] if r["image_tokens"] == 1024}
            if {4, 16} <= set(times):
                result["growth"] = times[16] / times[4]
            file.write_text(json.dumps(result, indent=1) + "\n")
            (RESULTS / "grpo_sweep.md").write_text(page(result))
            say(str(row))
    compared = result | {"sweep": [row for row in result["sweep"] if "ratio" in row]}
    if compared["sweep"]:
        plot(compared, RESULTS / "grpo_sweep.png")


if __name__ == "__main__":
    main()
