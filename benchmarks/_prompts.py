"""The prompts of a setting's first step, and made-up answers to them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch
from _setting import Setting

from vlm_r1.models.load import LoadedPolicy
from vlm_r1.records import Prompt, Rollout, RolloutGroup, Sample, SampleImage, Truth


def prompts_of(setting: Setting, loaded: LoadedPolicy) -> list[Prompt]:
    """As many prompts as a step has, encoded."""
    lines = setting.data_path.read_text(encoding="utf-8").splitlines()[: setting.prompts]
    prompts = []
    for number, row in enumerate(map(json.loads, lines)):
        images = (SampleImage(path=Path(row["image"])),)
        sample = Sample(id=str(number), images=images, question=row["problem"], truth=Truth())
        prompts.append(replace(loaded.family.encode(sample), number=number))
    return prompts


def made_up(setting: Setting, loaded: LoadedPolicy) -> list[RolloutGroup]:
    """Answers of `setting.answer_tokens` random tokens to questions about the setting's images."""
    random = torch.Generator().manual_seed(setting.seed)
    suppressed = set(loaded.policy.suppressed.tolist())
    allowed = torch.tensor([i for i in range(len(loaded.tokenizer)) if i not in suppressed])
    groups = []
    for prompt in prompts_of(setting, loaded):
        rollouts = []
        for _ in range(setting.group):
            drawn = allowed[torch.randint(len(allowed), (setting.answer_tokens,), generator=random)]
            ids = tuple(drawn.tolist())
            rollouts.append(Rollout(token_ids=ids, logprobs=(0.0,) * len(ids), text="", finish="length"))
        groups.append(RolloutGroup(prompt=prompt, rollouts=tuple(rollouts)))
    return groups
