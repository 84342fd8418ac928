"""The demo's recipe with its rollouts by the model itself, by vLLM in step, and by vLLM one step ahead, over seeds.

    python benchmarks/vllm_learning.py                       # three ways, seeds 0 to 2; finished runs are kept
    python benchmarks/vllm_learning.py --ways vllm --seeds 3
    python benchmarks/vllm_learning.py --time                # seconds a step, the ways in turn, on a quiet machine

Writes docs/results/vllm_learning.json and .md. Runs go to runs/vllm-learning/. Needs vLLM's environment: make vllm-env.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

from _measure import commit, machine

from vlm_r1.runtime.runlog import read_eval, read_metrics

ROOT = Path(__file__).resolve().parent.parent
RESULTS, RUNS = ROOT / "docs" / "results", Path("runs/vllm-learning")
RECIPE = ROOT / "src" / "vlm_r1" / "assets" / "demo.yaml"
WAYS = {
    "native": [],
    "vllm": ["rollout.engine=vllm"],
    "vllm, staleness 1": ["rollout.engine=vllm", "rollout.staleness=1"],
}
SPLITS = ("in_domain", "out_of_domain")
TIMED_STEPS, TIMED_ROUNDS, WARM = 14, 3, 4
"""Steps of a timed run, rounds over the ways, and steps that are left out because caches and clocks are cold."""


def train(way: str, folder: Path, *more: str) -> None:
    """Run the recipe in a process of its own; the same folder continues."""
    arguments = ["train", str(RECIPE), *WAYS[way], f"run.dir={folder}", *more]
    subprocess.run([sys.executable, "-m", "vlm_r1", *arguments], check=True)


def run_seed(way: str, seed: int) -> dict[str, object]:
    """One run, or what it left: mean IoU before and after, and what the sampler differed by."""
    folder = RUNS / f"{way.replace(', ', '-').replace(' ', '-')}-{seed}"
    if "after" not in read_eval(folder):
        train(way, folder, f"run.seed={seed}")
        (folder / "commit.txt").write_text(commit(":/src", ":/benchmarks"))
    evaluated, steps = read_eval(folder), read_metrics(folder)
    row: dict[str, object] = {"way": way, "seed": seed, "commit": (folder / "commit.txt").read_text()}
    for split in SPLITS:
        row[split] = {phase: evaluated[phase][split]["mean_iou"] for phase in ("before", "after")}
    names = ("sampling/sampling_logp_difference/mean", "sampling/importance_sampling_ratio/mean", "rollout/staleness")
    return row | {name: statistics.mean(step[name] for step in steps) for name in names if name in steps[-1]}


def time_ways() -> list[dict[str, object]]:
    """Seconds of a step, by way and round: the ways in turn, each in a fresh folder."""
    found: list[dict[str, object]] = []
    for number in range(TIMED_ROUNDS):
        for way in WAYS:
            folder = RUNS / "timed"
            shutil.rmtree(folder, ignore_errors=True)
            train(way, folder, f"run.steps={TIMED_STEPS}", "run.save_every=100", "data.eval={}")
            steps = read_metrics(folder)[WARM:]
            parts = {name: statistics.median(step[f"time/{name}_s"] for step in steps) for name in ("step", "update")}
            waits = statistics.median(step["time/rollout_s"] for step in steps)
            found.append({"way": way, "round": number, **parts, "rollout": waits})
    return found


def page(result: dict) -> str:
    """The results as Markdown."""
    lines = ["# Learning with rollouts by vLLM", "", "Made by `benchmarks/vllm_learning.py`.", ""]
    lines += ["| rollouts | seed | in-domain IoU | out-of-domain IoU |", "|---|---|---|---|"]
    for row in result["runs"]:
        cells = [f"{row[s]['before']:.3f} → {row[s]['after']:.3f}" for s in SPLITS]
        lines.append(f"| {row['way']} | {row['seed']} | {' | '.join(cells)} |")
    lines += [
        "",
        "| rollouts | runs | in-domain IoU after: mean (lowest to highest) | seconds a step |",
        "|---|---|---|---|",
    ]
    for way, summary in result["summary"].items():
        after = summary["in_domain_after"]
        seconds = f"{summary['seconds']:.2f}" if "seconds" in summary else "not measured"
        spread = f"{after['mean']:.3f} ({after['min']:.3f} to {after['max']:.3f})"
        lines.append(f"| {way} | {after['n']} | {spread} | {seconds} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run what is missing and write everything that is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--time", action="store_true")
    given = parser.parse_args()
    file = RESULTS / "vllm_learning.json"
    result = json.loads(file.read_text()) if file.is_file() else {"runs": [], "times": []}
    if given.time:
        result["times"] = time_ways()
        result["times_commit"] = commit(":/src", ":/benchmarks")
    else:
        runs = {(row["way"], row["seed"]): row for row in result["runs"]}
        runs |= {(way, seed): run_seed(way, seed) for seed in given.seeds for way in given.ways}
        result["runs"] = [runs[key] for key in sorted(runs, key=lambda key: (list(WAYS).index(key[0]), key[1]))]
    result["summary"] = {}
    for way in WAYS:
        after = [row["in_domain"]["after"] for row in result["runs"] if row["way"] == way]
        seconds = [row["step"] for row in result["times"] if row["way"] == way]
        if after:
            spread = {"n": len(after), "mean": statistics.mean(after), "min": min(after), "max": max(after)}
            result["summary"][way] = {"in_domain_after": spread}
            if seconds:
                result["summary"][way]["seconds"] = statistics.median(seconds)
    result |= {"command": "python " + " ".join(sys.argv), "date": datetime.now(UTC).date().isoformat()}
    result["machine"] = machine()
    file.write_text(json.dumps(result, indent=1) + "\n")
    (RESULTS / "vllm_learning.md").write_text(page(result))
    print(page(result))


if __name__ == "__main__":
    main()
