"""One GRPO step of ours beside TRL's over group and image sizes, without tuning TRL again.

    python benchmarks/grpo_sweep.py                       # all sizes: about half an hour on two cores
    python benchmarks/grpo_sweep.py --missing             # those without a result at this commit: goes on after a stop
    python benchmarks/grpo_sweep.py --tokens 64 --groups 2 4
    python benchmarks/grpo_sweep.py --quick --out FOLDER  # does it run?

TRL's settings are those that `grpo_step.py` found fastest (docs/results/grpo_step.json); its micro-batch holds as many
patches, and `torch_compile` is left out. Each size is ours, TRL, ours, each alone in a process of its own, and has
fewer steps where one of TRL's takes long, as its time at the headline and the counted arithmetic predict. A size is
written to docs/results/grpo_sweep.json, .md and .png as soon as it is measured.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from _arithmetic import TEXT_TOKENS, limits
from _measure import commit, machine
from _setting import Setting, prepare
from _sweep_page import page, plot
from grpo_step import ROOT, assert_equal_work, required, run_side, say

GROUPS = (2, 4, 8, 16, 32)
IMAGE_TOKENS = (64, 256, 1024)
RESULTS = ROOT / "docs" / "results"
STEPS = ((5.0, 3), (50.0, 2))
"""Up to so many seconds of a step of TRL, so many steps of it are measured; beyond, 1. One before is dropped."""
Row = dict[str, Any]


def main() -> None:
    """Measure the sizes asked for and write."""
    arguments = parse_arguments()
    headline = json.loads((RESULTS / "grpo_step.json").read_text(encoding="utf-8"))
    file = arguments.out / "grpo_sweep.json"
    result: Row = {"benchmark": "grpo_sweep", "sweep": []}
    if file.is_file() and not arguments.quick:
        rows = json.loads(file.read_text(encoding="utf-8"))["sweep"]
        result["sweep"] = [row for row in rows if "steps" in row]
    measured_at = commit_of_code()
    for tokens in arguments.tokens:
        for group in arguments.groups:
            others = [row for row in result["sweep"] if (row["image_tokens"], row["group"]) != (tokens, group)]
            there = [row for row in result["sweep"] if row not in others]
            if arguments.missing and any(row["commit"] == measured_at for row in there):
                continue
            with tempfile.TemporaryDirectory() as folder:
                base = Setting(folder=folder, warmup=1, image_tokens=tokens, group=group)
                row = measure(base.changed(prompts=1, answer_tokens=8) if arguments.quick else base, headline)
            row |= {"commit": measured_at, "date": datetime.datetime.now(datetime.UTC).date().isoformat()}
            row["command"] = command(sys.argv[1:])
            result["sweep"] = sorted([*others, row], key=lambda r: (r["image_tokens"], r["group"]))
            write(result, arguments.out)
            say(
                f"image tokens {tokens}, G {group}: ours {row['ours_s']:.3f} s, TRL {row['trl_s']:.3f} s, "
                f"{row['ratio']:.2f} times; {row['wall_s']:.0f} s"
            )


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=list(IMAGE_TOKENS), help="image tokens")
    parser.add_argument("--groups", type=int, nargs="+", default=list(GROUPS), help="group sizes")
    parser.add_argument("--missing", action="store_true", help="leave out sizes with a result at this commit")
    parser.add_argument("--quick", action="store_true", help="one small size: only to see it run")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the results")
    arguments = parser.parse_args()
    if arguments.quick:
        if arguments.out.resolve() == RESULTS:
            parser.error("--quick measures nothing: give --out another folder than docs/results")
        arguments.tokens, arguments.groups = [64], [2]
    return arguments


def commit_of_code() -> str:
    """The commit, marked where files differ from it other than the results, which this program writes."""
    return commit(":(top)", ":(top,exclude)docs/results")


def command(arguments: list[str]) -> str:
    """The command as another person would type it: without folders of this machine."""
    kept = [a for a, before in zip(arguments, ["", *arguments], strict=False) if "--out" not in (a, before)]
    return " ".join(["python benchmarks/grpo_sweep.py", *kept])


def measure(setting: Setting, headline: Row) -> Row:
    """One size: every step of both sides, and their medians."""
    started = datetime.datetime.now(datetime.UTC)
    predicted_s = predict(setting, headline)
    steps = next((n for seconds, n in STEPS if predicted_s <= seconds), 1)
    setting = setting.changed(repetitions=steps)
    prepare(setting)
    options = settings_of(setting, headline)
    ours = [required("ours", run_side("_ours.py", setting))]
    trl = required("TRL", run_side("_trl.py", setting, options))
    ours.append(required("ours", run_side("_ours.py", setting)))
    assert_equal_work(setting, ours, [trl])
    times = {
        "ours": [step["step_s"] for result in ours for step in result["steps"]],
        "trl": [step["step_s"] for step in trl["steps"]],
    }
    ours_s, trl_s = (statistics.median(times[side]) for side in ("ours", "trl"))
    prompt_tokens = round(trl["steps"][0]["prompt_tokens"] / setting.prompts)
    return {
        "image_tokens": setting.image_tokens,
        "group": setting.group,
        "ours_s": ours_s,
        "trl_s": trl_s,
        "ratio": trl_s / ours_s,
        "step_limit": limits(setting, prompt_tokens)["step_limit"],
        "steps": times,
        "trl_settings": options,
        "machine": machine() | {"threads": trl["threads"]},
        "versions": ours[0]["versions"] | trl["versions"],
        "wall_s": (datetime.datetime.now(datetime.UTC) - started).total_seconds(),
    }


def predict(setting: Setting, headline: Row) -> float:
    """Seconds of a step of TRL, from those at the headline and the arithmetic of both."""
    flops = limits(setting, setting.image_tokens + TEXT_TOKENS)["step_gflop_padded"]
    return float(headline["trl"]["median"]["step_s"] * flops / headline["arithmetic"]["step_gflop_padded"])


def settings_of(setting: Setting, headline: Row) -> Row:
    """TRL's fastest settings at the headline, with as many patches in a micro-batch: the largest divisor of a step's
    answers that has no more.

    Without `torch_compile`, whose compilation takes longer than a size's steps; the headline has what it is worth.
    """
    best, answers = dict(headline["trl"]["settings"]), setting.prompts * setting.group
    best.pop("torch_compile", None)
    most = max(1, best["micro_batch"] * headline["setting"]["image_tokens"] // setting.image_tokens)
    return best | {"micro_batch": max(n for n in range(1, answers + 1) if answers % n == 0 and n <= most)}


def write(result: Row, out: Path) -> None:
    """The JSON file, and the page and plot made from it."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "grpo_sweep.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (out / "grpo_sweep.md").write_text(page(result), encoding="utf-8")
    plot(result, out / "grpo_sweep.png")


if __name__ == "__main__":
    main()
