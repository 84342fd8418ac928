"""What `vlm-r1 plan` says beside what a real step takes, on models of some ten million parameters (CPU).

    python benchmarks/plan.py [--quick]

The plan runs the step on shapes alone; the real step runs with torch's profiler, which sees every allocation
(`_memory.py`), in one process and, started by torchrun, in two and four (gloo). Prompts, answer lengths and rows are
the same on both sides. Writes `docs/results/plan.json`: bytes by phase, and planned over measured.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from _measure import commit, machine, versions
from _memory import measure

from vlm_r1.config import ModelConfig, PromptConfig, Recipe
from vlm_r1.models.load import load_policy
from vlm_r1.plan.machine import Machine
from vlm_r1.plan.make import make_plan
from vlm_r1.plan.trace import GRADIENTS
from vlm_r1.runtime.model_folder import save_model

ROOT = Path(__file__).resolve().parent.parent
LAYERS, WIDTH = 8, 256
PROMPT = PromptConfig(template="plain")

BAR = 0.15
"""How far a planned peak may be from the measured one."""

SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "one row": {"rl": {"token_budget": 20_000}},
    "reference model": {"rl": {"beta": 0.04}},
    "gradient checkpointing": {"model": {"gradient_checkpointing": True}},
    "bfloat16": {"model": {"precision": "bfloat16"}},
    "frozen tower": {"train": {"vision": "frozen", "connector": "frozen"}},
    "LoRA": {"train": {"language": "lora"}, "lora": {"rank": 8}},
    "supervised": {"method": "sft"},
}
PROCESSES = {2: tuple(SETTINGS), 4: ("plain", "bfloat16", "LoRA")}
"""Processes -> the settings that are also measured with so many."""


def main() -> None:
    """Plan, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "plan.json")
    parser.add_argument("--quick", action="store_true", help="one family, two settings; writes nothing without --out")
    arguments = parser.parse_args()
    families = ("qwen3_vl",) if arguments.quick else ("qwen3_vl", "qwen2_5_vl")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for family in families:
            model = _save(Path(folder) / family, family)
            for processes, name in _cases(arguments.quick):
                run = Path(folder) / f"run-{len(rows)}"
                case = {"family": family, "setting": name, "processes": processes}
                rows.append(case | compare(_recipe(model, run, SETTINGS[name], processes), processes))
                print(json.dumps(rows[-1]), flush=True)
    ratios = [ratio for row in rows for ratio in row["ratio"].values()]
    result = {
        "rows": rows,
        "lowest_ratio": min(ratios),
        "highest_ratio": max(ratios),
        "bar": BAR,
        "command": f"python benchmarks/plan.py {' '.join(sys.argv[1:])}".strip(),
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "machine": machine(),
        "versions": versions(),
    }
    print(f"planned / measured: {min(ratios):.3f} to {max(ratios):.3f}")
    if not arguments.quick or arguments.out != parser.get_default("out"):
        arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        print(f"written: {arguments.out}")
    if not 1 - BAR <= min(ratios) <= max(ratios) <= 1 + BAR:
        sys.exit(f"a planned peak is more than {BAR:.0%} away from the measured one")


def _cases(quick: bool) -> list[tuple[int, str]]:
    """Numbers of processes with settings."""
    if quick:
        return [(1, "bfloat16"), (2, "bfloat16")]
    return [(1, name) for name in SETTINGS] + [(n, name) for n, names in PROCESSES.items() for name in names]


def compare(recipe: Recipe, processes: int) -> dict[str, Any]:
    """Planned and measured peaks of every phase in bytes, their ratios, and the seconds the plan took.

    `states` are weights and optimizer states (and the reference model) alone.
    """
    started = time.process_time()
    plan = make_plan(recipe, machine=Machine(processes=processes))
    seconds = time.process_time() - started
    measured = measure(recipe, processes)
    states = plan.phases["optimizer step"].total() - plan.phases["optimizer step"][GRADIENTS]
    planned = {name: plan.phases[name].total() if name in plan.phases else states for name in measured}
    return {
        "parameters": sum(plan.parameters.values()),
        "trained": sum(plan.trained.values()),
        "row_tokens": max(plan.rows),
        "rows": len(plan.rows),
        "planned": planned,
        "measured": measured,
        "ratio": {name: planned[name] / size for name, size in measured.items()},
        "plan_cpu_seconds": seconds,
    }


def _save(folder: Path, family: str) -> Path:
    """A model of random weights as a folder."""
    folder.mkdir()
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [8, 4, 4]}
    text = {"hidden_size": WIDTH, "intermediate_size": 3 * WIDTH, "num_hidden_layers": LAYERS}
    text |= {"num_attention_heads": 8, "num_key_value_heads": 4}
    vision = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "depth": LAYERS, "num_heads": 4}
    vision |= {"out_hidden_size": WIDTH, "patch_size": 8, "spatial_merge_size": 2}
    if family == "qwen3_vl":
        extra = {"head_dim": 32, "rope_parameters": rope | {"mrope_interleaved": True}}
        seen = {"num_position_embeddings": 144, "deepstack_visual_indexes": [1, 3, 5]}
    else:
        extra, seen = {"rope_parameters": rope}, {"window_size": 32, "fullatt_block_indexes": [3, 7]}
    scratch = {"model_type": family, "vocab_size": 640, "text_config": text | extra, "vision_config": vision | seen}
    loaded = load_policy(ModelConfig(init="scratch", scratch=scratch), PROMPT)
    save_model(folder, loaded.policy.model, loaded.processor, PROMPT)
    return folder


def _recipe(model: Path, run: Path, sections: dict[str, Any], processes: int = 1) -> Recipe:
    """A recipe of these sections; as many held-out questions as all processes answer at once."""
    method = sections.get("method", "grpo")
    held = {"split": "in_domain", "n": 16 * processes}
    scenes = {"split": "train", "n": 40, "per_image": 4 if method == "sft" else 1}
    base: dict[str, Any] = {
        "method": method,
        "model": {"path": str(model), "precision": "float32"},
        "data": {"train": [{"scenes": scenes}], "eval": {"held": {"scenes": held}}},
        "prompt": PROMPT.model_dump(),
        "rollout": {"max_new_tokens": 96},
        "rl": {"group_size": 8, "prompts_per_step": 6, "token_budget": 3000},
        "sft": {"images_per_step": 16, "token_budget": 3000},
        "eval": {"batch_size": 16, "max_new_tokens": 24},
        "run": {"dir": str(run), "threads": torch.get_num_threads()},
    }
    if method == "sft":
        base["data"].pop("eval")
    return Recipe.model_validate(base | {k: base.get(k, {}) | v for k, v in sections.items() if k != "method"})


if __name__ == "__main__":
    main()
