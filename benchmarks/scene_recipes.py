"""The recipes of recipes/scenes over seeds: what each does to the shipped tiny model on held-out questions.

    python benchmarks/scene_recipes.py                   # every recipe, seeds 1 to 3, one after the other
    python benchmarks/scene_recipes.py ovd --seeds 1 2   # some of them; finished runs are kept

Writes docs/results/scenes_NAME.json, and scenes_ovd.png from the first seed's run. Runs go to runs/scene-recipes/.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from _measure import commit, machine, versions

from vlm_r1.config_file import load_config
from vlm_r1.report.image import before_after_png
from vlm_r1.rl.loop import train
from vlm_r1.runtime.runlog import read_eval, read_metrics

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"
RUNS = Path("runs/scene-recipes")
METRICS = {"ovd": "mAP", "lora": "mean_iou", "custom_reward": "mean_iou"}
"""Recipe -> the metric of its headline, on the split `in_domain`."""
SPLIT = "in_domain"
ENDS = 10
"""Steps at the begin and at the end whose rewards are averaged."""


def run_seed(name: str, seed: int) -> dict[str, Any]:
    """Run (or read) a recipe with a seed."""
    folder = RUNS / name / f"seed-{seed}"
    if "after" not in read_eval(folder):
        train(load_config(ROOT / f"recipes/scenes/{name}.yaml", [f"run.seed={seed}", f"run.dir={folder}"]))
        (folder / "commit.txt").write_text(commit("src", "recipes") + "\n")
    found, steps = read_eval(folder), read_metrics(folder)
    names = [key for key in steps[0] if key.startswith(("rewards/", "shadow/")) and key.endswith("/mean")]
    return {
        "seed": seed,
        "commit": (folder / "commit.txt").read_text().strip(),
        "held_out": {end: found[end][SPLIT] for end in ("before", "after")},
        "seconds_training": round(sum(step["time/step_s"] for step in steps), 1),
        "rewards": {
            key: [statistics.mean(step[key] for step in part) for part in (steps[:ENDS], steps[-ENDS:])]
            for key in names
        },
    }


def main() -> None:
    """Run the recipes and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", choices=[*METRICS, []], default=list(METRICS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    arguments = parser.parse_args()
    for name in arguments.recipes:
        runs = [run_seed(name, seed) for seed in arguments.seeds]
        after = [run["held_out"]["after"][METRICS[name]] for run in runs]
        result = {
            "recipe": f"recipes/scenes/{name}.yaml",
            "command": "python " + " ".join(sys.argv),
            "date": datetime.now(UTC).date().isoformat(),
            "machine": machine(),
            "versions": versions(),
            "metric": METRICS[name],
            "questions": runs[0]["held_out"]["before"]["n"],
            "before": runs[0]["held_out"]["before"][METRICS[name]],
            "after": {"mean": statistics.mean(after), "min": min(after), "max": max(after)},
            "runs": runs,
        }
        (RESULTS / f"scenes_{name}.json").write_text(json.dumps(result, indent=2) + "\n")
        if name == "ovd":
            before_after_png(RUNS / name / f"seed-{arguments.seeds[0]}", RESULTS / "scenes_ovd.png", SPLIT)
        print(f"{name}: {METRICS[name]} {result['before']:.3f} to {result['after']}")


if __name__ == "__main__":
    main()
