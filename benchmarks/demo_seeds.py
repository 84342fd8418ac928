"""The demo over seeds: what GRPO does to the shipped tiny model on held-out questions, seed by seed.

    python benchmarks/demo_seeds.py                 # seeds 0 to 5, one after the other
    python benchmarks/demo_seeds.py --seeds 0 1     # some of them; finished seeds are kept

Writes docs/results/demo.json and demo.md, and demo.png from the first seed's run folder. Runs go to runs/demo-seeds/.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from _measure import commit

from vlm_r1.demo import run_demo
from vlm_r1.report.image import before_after_png
from vlm_r1.runtime.runlog import read_environment, read_eval, read_metrics

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
RUNS = Path("runs/demo-seeds")
SPLITS = ("in_domain", "out_of_domain")
MEASURES = ("mean_iou", "acc@0.5")


def run_seed(seed: int) -> dict[str, object]:
    """Run (or read) the demo of a seed: metrics before and after, and seconds."""
    folder = RUNS / f"seed-{seed}"
    started = time.perf_counter()
    if "after" not in read_eval(folder):
        run_demo(folder, seed)
        (folder / "seconds.txt").write_text(f"{time.perf_counter() - started:.1f}\n")
        (folder / "commit.txt").write_text(commit("src", "recipes") + "\n")
    found = read_eval(folder)
    steps = read_metrics(folder)
    row: dict[str, object] = {
        "seed": seed,
        "commit": (folder / "commit.txt").read_text().strip(),
        "seconds_total": float((folder / "seconds.txt").read_text()),
        "seconds_training": round(sum(step["time/step_s"] for step in steps), 1),
        "steps": len(steps),
    }
    for split in SPLITS:
        before, after = found["before"][split], found["after"][split]
        row[split] = {m: {"before": before[m], "after": after[m], "gain": after[m] - before[m]} for m in MEASURES} | {
            "n": before["n"]
        }
    return row


def table(rows: list[dict]) -> str:
    """The runs as Markdown."""
    lines = [
        "| seed | in-domain IoU | Acc@0.5 | out-of-domain IoU | Acc@0.5 | training, s |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [
            f"{row[s][m]['before']:.3f} → {row[s][m]['after']:.3f} ({row[s][m]['gain']:+.3f})"
            for s in SPLITS
            for m in MEASURES
        ]
        lines.append(f"| {row['seed']} | {' | '.join(cells)} | {row['seconds_training']:.0f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the seeds and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4, 5])
    seeds = parser.parse_args().seeds
    rows = [run_seed(seed) for seed in seeds]
    gains = [row["in_domain"]["mean_iou"]["gain"] for row in rows]  # type: ignore[index,call-overload]
    first = RUNS / f"seed-{seeds[0]}"
    result = {
        "command": "python " + " ".join(sys.argv),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": {"processor": platform.processor() or platform.machine(), **read_environment(first)},
        "headline": {
            "in_domain_mean_iou_gain": {"mean": statistics.mean(gains), "min": min(gains), "max": max(gains)},
            "seeds_with_gain_of_at_least_0.08": sum(gain >= 0.08 for gain in gains),
            "seeds": len(rows),
        },
        "runs": rows,
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "demo.json").write_text(json.dumps(result, indent=2) + "\n")
    head = (
        "# The demo over seeds\n\nMade by `benchmarks/demo_seeds.py`. Seconds depend on what else the machine did.\n\n"
    )
    (RESULTS / "demo.md").write_text(head + table(rows))
    before_after_png(first, RESULTS / "demo.png")
    print(table(rows))


if __name__ == "__main__":
    main()
