"""Our forward and backward pass over packed rows, in a process of its own. Usage: _packed.py JOB.json RESULT.json

What `_flash_pref.py` measures, on the same sizes: the mean log-prob of made-up answers and its gradient, weights and
gradients in `precision`, gradient checkpointing on.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from _measure import machine, now, peak_memory, versions
from _prompts import made_up
from _setting import Setting, prepare, read_job

from vlm_r1.config import ModelConfig, PromptConfig, RLConfig
from vlm_r1.models.load import load_policy
from vlm_r1.models.packing import cut_by_budget, pack
from vlm_r1.rl.batch import as_prefix_group


def measure(setting: Setting) -> dict[str, Any]:
    """Seconds of every forward and backward pass after the warm-up ones."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = ModelConfig(
        path=str(setting.model_path),
        precision=setting.precision,
        gradient_checkpointing=True,
    )
    loaded = load_policy(config, PromptConfig(template="plain"))
    policy = loaded.policy.to(device).train()
    groups = [as_prefix_group(group) for group in made_up(setting, loaded)]
    rows = [pack(piece).to(device) for piece in cut_by_budget(groups, RLConfig().token_budget)]
    total = sum(len(row.targets) for row in rows)
    steps = []
    for repetition in range(setting.warmup + setting.repetitions):
        started = now()
        for row in rows:
            (-policy(row)[0].sum() / total).backward()
        seconds = now() - started
        policy.zero_grad()
        if repetition >= setting.warmup:
            steps.append({"update_s": seconds, "answer_tokens": total})
    return {
        "steps": steps,
        "prompt_tokens": len(groups[0].token_ids),
        "versions": versions(),
        "machine": machine(),
        **peak_memory(),
    }


if __name__ == "__main__":
    given, _ = read_job(sys.argv[1])
    prepare(given)
    Path(sys.argv[2]).write_text(json.dumps(measure(given)), encoding="utf-8")
