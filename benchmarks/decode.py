"""Tokens a second of the native engine beside `transformers.generate` on a CPU, at 16, 64 and 256 answers at once.

    python benchmarks/decode.py

The tiny model of `grpo_step.py`, 256 image tokens, 64 answer tokens, G = 8, float32. Each side runs alone in a process
of its own, in turn; the prompts' own pass is part of the time. `generate` gets the faster of its dynamic and its static
cache. On a GPU: `gpu.py --stage decode`.

Writes `docs/results/decode.json` and `.md`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from _measure import commit, machine, run_process
from _setting import Setting, prepare
from grpo_step import required, say

ROOT = Path(__file__).resolve().parent.parent
BATCHES = (16, 64, 256)
SIDES: dict[str, tuple[str, dict[str, Any]]] = {
    "native": ("native", {}),
    "generate, dynamic cache": ("transformers", {}),
    "generate, static cache": ("transformers", {"cache_implementation": "static"}),
}


def measure(setting: Setting, side: str) -> dict[str, Any]:
    """One process of one side."""
    name, options = SIDES[side]
    job, result = Path(setting.folder, "job.json"), Path(setting.folder, "result.json")
    setting.write(job, side=name, options=options)
    return required(side, run_process("_decode.py", job, result, 1200.0))


def page(result: dict[str, Any]) -> str:
    """The rates as a Markdown table."""
    lines = ["# Tokens a second while decoding, on a CPU", "", f"| answers at once | {' | '.join(SIDES)} | ratio |"]
    lines.append("|---" * (len(SIDES) + 2) + "|")
    for row in result["rows"]:
        rates = [row["tokens_per_s"][side] for side in SIDES]
        shown = " | ".join(f"{rate:,.0f}" for rate in rates)
        lines.append(f"| {row['batch']} | {shown} | {rates[0] / max(rates[1:]):.1f} |")
    lines += ["", "Median of all repetitions; the ratio is to the faster of the others. " + __doc__.split("\n\n")[2]]
    lines += ["", f"`{result['command']}` at commit {result['commit']} on {result['date']}."]
    lines += ["", "Machine: " + ", ".join(f"{k} {v}" for k, v in result["machine"].items()) + "."]
    return "\n".join([*lines, ""])


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results")
    arguments = parser.parse_args()
    result: dict[str, Any] = {"rows": [], "machine": machine(), "commit": commit()}
    result |= {"command": "python benchmarks/decode.py", "date": datetime.datetime.now(datetime.UTC).date().isoformat()}
    with tempfile.TemporaryDirectory() as folder:
        for batch in BATCHES:
            setting = Setting(folder=folder, prompts=batch // 8, warmup=1, repetitions=3)
            prepare(setting)
            runs = [{side: measure(setting, side) for side in SIDES} for _ in range(arguments.rounds)]
            steps = {side: [step for run in runs for step in run[side]["steps"]] for side in SIDES}
            rates = {
                side: statistics.median(step["answer_tokens"] / step["rollout_s"] for step in found)
                for side, found in steps.items()
            }
            result["rows"].append({"batch": batch, "tokens_per_s": rates, "steps": steps})
            say(f"{batch} answers: {rates}")
    (arguments.out / "decode.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (arguments.out / "decode.md").write_text(page(result), encoding="utf-8")


if __name__ == "__main__":
    main()
