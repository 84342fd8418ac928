"""The fewest GPUs on which `vlm-r1 plan` finds room: Qwen2.5-VL in three sizes; full, LoRA, 4-bit LoRA; 24 and 80 GB.

    python benchmarks/plan_table.py

The recipe is recipes/paper/rec.yaml (8 answers of 512 tokens at most, a reference model); checkpointing and
the gathering of layers are left to `auto`. An image of 640 x 480 pixels is assumed. Weights are not read.

Writes `docs/results/plan_table.json` and `.md`.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from _measure import commit
from plan_recipes import SIZES, recorded, write_model

from vlm_r1.config_file import load_config
from vlm_r1.plan.fit import settle
from vlm_r1.plan.machine import GIB, Machine
from vlm_r1.plan.prompts import find_questions

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "recipes" / "paper" / "rec.yaml"
MEMORIES = (24, 80)
GPUS = (1, 2, 4, 8, 16)
METHODS: dict[str, list[str]] = {
    "full": [],
    "LoRA": ["train.language=lora", "lora.rank=64"],
    "4-bit LoRA": ["train.language=lora", "lora.rank=64", "model.quantize=nf4"],
}


def fewest(model: Path, overrides: list[str], memory: int) -> dict[str, Any]:
    """The smallest number of GPUs that the recipe fits, with its peak in GiB; `gpus` is None where 16 are too few."""
    recipe = load_config(RECIPE, [f"model.path={model}", *overrides])
    questions = find_questions(recipe)
    for gpus in GPUS:
        machine = Machine(processes=gpus, memory=memory * GIB)
        settled, plan = settle(recipe, questions, machine)
        if plan.peak <= machine.room:
            checkpointing = settled.model.gradient_checkpointing
            return {"gpus": gpus, "peak_gib": round(plan.peak / GIB, 1), "gradient_checkpointing": checkpointing}
    return {"gpus": None}


def main() -> None:
    """Plan every cell, and write the table."""
    rows: list[dict[str, Any]] = []
    measured_at = commit()
    with tempfile.TemporaryDirectory() as name:
        for size in SIZES:
            model = write_model(Path(name), size)
            for method, overrides in METHODS.items():
                for memory in MEMORIES:
                    cell = {"model": f"Qwen2.5-VL-{size}", "method": method, "gpu_memory_gib": memory}
                    rows.append(cell | fewest(model, overrides, memory))
                    print(rows[-1], flush=True)
    out = ROOT / "docs" / "results"
    result = recorded("plan_table", rows, measured_at)
    (out / "plan_table.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    (out / "plan_table.md").write_text(page(result), encoding="utf-8")


def page(result: dict[str, Any]) -> str:
    """The table: a row a model, a column a method and a size of GPU."""
    cells = {(row["model"], row["method"], row["gpu_memory_gib"]): row for row in result["rows"]}
    columns = [(method, memory) for method in METHODS for memory in MEMORIES]
    lines = ["# The fewest GPUs, by plan", "", "Number of GPUs, and the peak of one of them in GiB.", ""]
    lines.append("| | " + " | ".join(f"{method}, {memory} GB" for method, memory in columns) + " |")
    lines.append("|---" * (len(columns) + 1) + "|")
    for size in SIZES:
        model = f"Qwen2.5-VL-{size}"
        found = [cells[model, *column] for column in columns]
        told = [f"{row['gpus']} ({row['peak_gib']})" if row["gpus"] else "over 16" for row in found]
        lines.append(f"| {model} | " + " | ".join(told) + " |")
    lines += ["", f"`{result['command']}` at commit {result['commit']} on {result['date']}; no GPU has confirmed it."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
