"""What `vlm-r1 plan` says beside what a real step takes, on models of some ten million parameters (CPU).

    python benchmarks/plan.py

The plan runs the step on shapes alone; the real step runs with torch's profiler, which sees every allocation
(`_memory.py`). Prompts, answer lengths and rows are the same on both sides. Writes `docs/results/plan.json`: bytes by
phase, and planned over measured.
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
from vlm_r1.plan.make import make_plan
from vlm_r1.runtime.model_folder import save_model

ROOT = Path(__file__).resolve().parent.parent
LAYERS, WIDTH = 8, 256
PROMPT = PromptConfig(template="plain")

SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "one row, prompts' graph kept": {"rl": {"token_budget": 20_000}},
    "reference model": {"rl": {"beta": 0.04}},
    "gradient checkpointing": {"model": {"gradient_checkpointing": True}},
    "bf16 autocast": {"model": {"autocast": "bf16"}},
    "frozen tower": {"train": {"vision": "frozen", "connector": "frozen"}},
    "bf16 weights, float32 masters": {"model": {"dtype": "bfloat16"}, "optim": {"master_weights": True}},
    "LoRA": {"train": {"language": "lora"}, "lora": {"rank": 8}},
    "supervised": {"method": "sft"},
}


def main() -> None:
    """Plan, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "plan.json")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for family in ("qwen3_vl", "qwen2_5_vl"):
            model = _save(Path(folder) / family, family)
            for name, sections in SETTINGS.items():
                rows.append(
                    {"family": family, "setting": name, **compare(_recipe(model, Path(folder) / "run", sections))}
                )
                print(json.dumps(rows[-1]), flush=True)
    ratios = [ratio for row in rows for ratio in row["ratio"].values()]
    result = {
        "rows": rows,
        "lowest_ratio": min(ratios),
        "highest_ratio": max(ratios),
        "command": f"python benchmarks/plan.py {' '.join(sys.argv[1:])}".strip(),
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "machine": machine(),
        "versions": versions(),
    }
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"planned / measured: {min(ratios):.3f} to {max(ratios):.3f}; written: {arguments.out}")


def compare(recipe: Recipe) -> dict[str, Any]:
    """Planned and measured peaks of every phase in bytes, their ratios, and the seconds the plan took."""
    started = time.process_time()
    plan = make_plan(recipe)
    seconds = time.process_time() - started
    measured = measure(recipe)
    planned = {name: plan.phases[name].total() for name in measured}
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


def _recipe(model: Path, run: Path, sections: dict[str, Any]) -> Recipe:
    method = sections.get("method", "grpo")
    scenes = {"split": "train", "n": 40, "per_picture": 4 if method == "sft" else 1}
    base: dict[str, Any] = {
        "method": method,
        "model": {"path": str(model)},
        "data": {"train": [{"scenes": scenes}], "eval": {"held": {"scenes": {"split": "in_domain", "n": 16}}}},
        "prompt": PROMPT.model_dump(),
        "rollout": {"max_new_tokens": 96},
        "rl": {"group_size": 8, "prompts_per_step": 6, "token_budget": 3000},
        "sft": {"pictures_per_step": 24, "token_budget": 3000},
        "eval": {"batch_size": 16, "max_new_tokens": 24},
        "run": {"dir": str(run), "threads": torch.get_num_threads()},
    }
    if method == "sft":
        base["data"].pop("eval")
    return Recipe.model_validate(base | {k: base.get(k, {}) | v for k, v in sections.items() if k != "method"})


if __name__ == "__main__":
    main()
