"""The peak memory of one GPU that `vlm-r1 plan` finds for every recipe of recipes/paper, as their headers state it.

    python benchmarks/plan_recipes.py            # writes the result, and the numbers into the recipes' headers

The models' folders are made here: the published configurations of Qwen2.5-VL-3B, 7B and 32B with a small tokenizer and
without weights, which a plan does not read. Without the data an image of 640 x 480 pixels is assumed.

Writes `docs/results/plan_recipes.json` and `.md`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import tempfile
from pathlib import Path
from typing import Any

from _measure import commit, versions
from _setting import published

from vlm_r1.config_file import load_config
from vlm_r1.plan.fit import settle
from vlm_r1.plan.machine import GIB, Machine
from vlm_r1.plan.prompts import find_questions

ROOT = Path(__file__).resolve().parent.parent
RECIPES = ROOT / "recipes" / "paper"
SIZES = ("3B", "7B", "32B")
STATED = re.compile(r"`vlm-r1 plan (recipes/paper/\S+) --gpus (\d+) --gpu-memory (\d+)`: (\S+) GiB")
LARGER = re.compile(r"run\.shard_size=8 \((\S+) GiB of 126\.9\)")


def write_model(folder: Path, size: str) -> Path:
    """Configuration, tokenizer and processor of a model of published size."""
    config, processor = published(size.lower())
    config.save_pretrained(folder / size)
    processor.save_pretrained(folder / size)
    return folder / size


def main() -> None:
    """Plan every recipe, write the results, and put the numbers into the headers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    measured_at = commit()  # before the headers are written
    with tempfile.TemporaryDirectory() as name:
        models = {size: write_model(Path(name), size) for size in SIZES}
        for file in sorted(RECIPES.glob("*.yaml")):
            text = file.read_text(encoding="utf-8")
            found = STATED.search(text)
            if found is None:
                raise SystemExit(f"{file}: its header names no plan")
            size = next(s for s in SIZES if f"Qwen2.5-VL-{s}-" in text)
            rows.append(planned(file, models[size], size, int(found[2]), int(found[3])))
            text = STATED.sub(lambda m, peak=rows[-1]["peak_gib"]: m[0].replace(f"{m[4]} GiB", f"{peak} GiB"), text)
            if LARGER.search(text):
                rows.append(planned(file, models[size], size, 16, 141, "run.shard_size=8"))
                text = LARGER.sub(lambda m, peak=rows[-1]["peak_gib"]: m[0].replace(m[1], str(peak)), text)
            file.write_text(text, encoding="utf-8")
    write(rows, arguments.out, measured_at)


def planned(file: Path, model: Path, size: str, gpus: int, memory: int, *overrides: str) -> dict[str, Any]:
    """The plan of a recipe on so many GPUs."""
    recipe = load_config(file, [f"model.path={model}", *overrides])
    machine = Machine(processes=gpus, memory=memory * GIB)
    recipe, plan = settle(recipe, find_questions(recipe), machine)
    row = {
        "recipe": f"recipes/paper/{file.name}",
        "overrides": list(overrides),
        "model": f"Qwen2.5-VL-{size}",
        "gpus": gpus,
        "gpu_memory_gib": memory,
        "peak_gib": round(plan.peak / GIB, 1),
        "usable_gib": round(machine.room / GIB, 1),
        "fits": plan.peak <= machine.room,
        "peak_phase": plan.peak_phase,
        "gradient_checkpointing": recipe.model.gradient_checkpointing,
        "phases_gib": {name: round(phase.total() / GIB, 2) for name, phase in plan.phases.items()},
    }
    print(row["recipe"], *overrides, row["peak_gib"], "of", row["usable_gib"], flush=True)
    return row


def recorded(name: str, rows: list[dict[str, Any]], measured_at: str) -> dict[str, Any]:
    """The rows of benchmarks/NAME.py with what they were made by."""
    return {
        "benchmark": name,
        "rows": rows,
        "versions": versions(),
        "commit": measured_at,
        "date": datetime.date.today().isoformat(),
        "command": f"python benchmarks/{name}.py",
    }


def write(rows: list[dict[str, Any]], out: Path, measured_at: str) -> None:
    """The results, and a page about them."""
    result = recorded("plan_recipes", rows, measured_at)
    (out / "plan_recipes.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    lines = [
        "# What the paper's recipes take, by plan",
        "",
        "| recipe | GPUs | peak of one GPU, GiB | usable, GiB | in | checkpointing |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        name = " ".join([row["recipe"], *row["overrides"]])
        gpus = f"{row['gpus']} x {row['gpu_memory_gib']} GiB"
        on = "on" if row["gradient_checkpointing"] else "off"
        lines.append(f"| {name} | {gpus} | {row['peak_gib']} | {row['usable_gib']} | {row['peak_phase']} | {on} |")
    lines += ["", f"`{result['command']}` at commit {result['commit']} on {result['date']}; no GPU has confirmed it."]
    (out / "plan_recipes.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
