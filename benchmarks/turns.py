"""The update on answers with images in them: packed rows beside the padded whole exchanges.

    python benchmarks/turns.py            # G = 8, three calls that each show an image of 256 tokens
    python benchmarks/turns.py --quick    # does it run?

Both sides are one optimiser step (forward, backward, AdamW) on the same exchanges of the tiny model of `grpo_step.py`:
a prompt with an image, then three times 64 written tokens and a reply with an image, then 64 tokens. Padded:
transformers' own model, one row an answer with its whole history and all its images, as trainers with a tool loop
update. Three cases say how much the answers of a group have in common: every one shows images of its own; two and two
write and see the same until they answer; all do. Each with the tower trained and frozen (then ours keeps features: the
padded side runs it without a graph). They take turns in one process; gradients are compared first.

Writes `docs/results/turns.json`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _measure import commit, machine, versions
from _prompts import prompts_of
from _setting import Setting, prepare
from frozen_update import compare, timed
from PIL import Image
from transformers import AutoModelForImageTextToText

from vlm_r1.config import ModelConfig, PromptConfig, TrainConfig
from vlm_r1.models.freeze import freeze
from vlm_r1.models.load import load_policy
from vlm_r1.models.packing import cut_by_budget, pack
from vlm_r1.models.policy import merge_images
from vlm_r1.models.vision_cache import VisionCache
from vlm_r1.records import Rollout, RolloutGroup, SampleImage
from vlm_r1.rl.batch import as_prefix_group

ROOT = Path(__file__).resolve().parent.parent
CALLS, WRITTEN, BUDGET = 3, 64, 16_384
CASES = {"own": 1, "in pairs": 2, "all alike": 8}
"""Case -> how many answers write and see the same until they answer."""


def main() -> None:
    """Measure, compare, write."""
    arguments = parse_arguments()
    torch.set_flush_denormal(True)
    cells = []
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(folder=folder, prompts=1, group=arguments.group, image_tokens=arguments.image_tokens)
        prepare(setting)
        for tower in ("full", "frozen"):
            for case, alike in CASES.items():
                cells.append(measure(setting, tower, case, alike, 1 if arguments.quick else arguments.repetitions))
                told = ("tower", "case", "tokens", "padded_tokens", "images", "padded_images", "ratio_padded")
                print(json.dumps({name: cells[-1][name] for name in told}), flush=True)
    result = {
        "setting": {"group": arguments.group, "calls": CALLS, "image_tokens": arguments.image_tokens}
        | {"written_tokens": WRITTEN, "threads": torch.get_num_threads()},
        "cells": cells,
        "command": f"python benchmarks/turns.py {' '.join(sys.argv[1:])}".strip(),
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "machine": machine(),
        "versions": versions(),
    }
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"written: {arguments.out}")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--group", type=int, default=8, help="answers")
    parser.add_argument("--image-tokens", type=int, default=256, help="tokens of each image")
    parser.add_argument("--repetitions", type=int, default=5, help="measured steps of each side")
    parser.add_argument("--quick", action="store_true", help="one repetition: only to see it run")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "turns.json")
    return parser.parse_args()


def measure(setting: Setting, tower: str, case: str, alike: int, repetitions: int) -> dict[str, Any]:
    """Seconds of each side's steps, the ratio of their medians, and the largest difference of a gradient."""
    ours = Ours(setting, tower, alike)
    padded = Padded(setting, tower, ours)
    difference = compare(ours, padded)  # type: ignore[arg-type]
    seconds: dict[str, list[float]] = {"padded": [], "ours": []}
    for _ in range(repetitions):
        for name, side in (("padded", padded), ("ours", ours)):
            seconds[name].append(timed(side))  # type: ignore[arg-type]
    median = {name: statistics.median(values) for name, values in seconds.items()}
    row = ours.rows[0]
    return {
        "tower": tower,
        "case": case,
        "seconds": seconds,
        "median": median,
        "ratio_padded": median["padded"] / median["ours"],
        "tokens": sum(len(row.token_ids) for row in ours.rows),
        "padded_tokens": padded.ids.numel(),
        "images": len({image.key for image in row.images}),
        "padded_images": setting.group * (1 + CALLS),
        "largest_gradient_difference": difference,
    }


def exchanges(setting: Setting, loaded: Any, alike: int) -> RolloutGroup:
    """A group in which `alike` answers at a time are the same until their last part."""
    [prompt] = prompts_of(setting, loaded)
    random, family = torch.Generator().manual_seed(0), loaded.family
    suppressed = set(loaded.policy.suppressed.tolist())
    allowed = torch.tensor([i for i in range(len(loaded.tokenizer)) if i not in suppressed])
    side = prompt.sample.images[0].size[0]

    def written() -> tuple[int, ...]:
        return tuple(allowed[torch.randint(len(allowed), (WRITTEN,), generator=random)].tolist())

    rollouts = []
    for answer in range(setting.group):
        if answer % alike == 0:
            ids, turns, position = (), [], prompt.next_position
            for call in range(CALLS):
                ids, position = ids + written(), position + WRITTEN
                noise = np.random.default_rng([answer, call]).integers(0, 256, (side, side, 3), dtype=np.uint8)
                shown = SampleImage(image=Image.fromarray(noise))
                turn = family.tool_turn(prompt.sample, [shown], "", position=position)
                turns.append(replace(turn, at=len(ids)))
                position = turn.next_position
        whole = ids + written()
        rollouts.append(
            Rollout(token_ids=whole, logprobs=(0.0,) * len(whole), text="", finish="length", turns=tuple(turns))
        )
    return RolloutGroup(prompt=prompt, rollouts=tuple(rollouts))


class Ours:
    """Packed rows; with a frozen tower the features are kept."""

    def __init__(self, setting: Setting, tower: str, alike: int) -> None:
        self.loaded = load_policy(ModelConfig(path=str(setting.model_path)), PromptConfig(template="plain"))
        freeze(self.loaded.family, TrainConfig(vision=tower, connector=tower))
        self.group = exchanges(setting, self.loaded, alike)
        self.model = self.loaded.policy.model
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(parameters, lr=1e-6, fused=True)
        if tower == "frozen":
            parts = self.loaded.family.parameters()
            self.loaded.policy.cache_features(VisionCache(1 << 31), [*parts["vision"], *parts["connector"]])
        self.rows = [pack(piece) for piece in cut_by_budget([as_prefix_group(self.group)], BUDGET)]

    def backward(self) -> None:
        """The gradient of the mean log-prob, weighted by answer."""
        total = sum(len(row.completion_of_target) for row in self.rows)
        for row in self.rows:
            logprobs, _ = self.loaded.policy(row)
            (logprobs * (1 + row.completion_of_target % 3) / total).sum().backward()


class Padded:
    """transformers' model with SDPA: a row an answer, with its whole history and all its images."""

    def __init__(self, setting: Setting, tower: str, ours: Ours) -> None:
        self.model = AutoModelForImageTextToText.from_pretrained(setting.model_path, attn_implementation="sdpa")
        self.model.model.visual.requires_grad_(tower == "full")
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(parameters, lr=1e-6, fused=True)
        self.suppressed = ours.loaded.policy.suppressed
        rows, scored, images = [], [], []
        for rollout in ours.group.rollouts:
            ids, own, done = list(ours.group.prompt.token_ids), [], 0
            images += ours.group.prompt.images
            for at, context in [*((t.at, t.token_ids) for t in rollout.turns), (len(rollout.token_ids), ())]:
                own += range(len(ids), len(ids) + at - done)
                ids, done = [*ids, *rollout.token_ids[done:at], *context], at
            images += [image for turn in rollout.turns for image in turn.images]
            rows.append(ids)
            scored.append(own)
        self.ids, self.scored, self.tensors = torch.tensor(rows), torch.tensor(scored), merge_images(images)

    def backward(self) -> None:
        """The same gradient as `Ours.backward`."""
        kinds = (self.ids == self.model.config.image_token_id).int()
        hidden = self.model.model(input_ids=self.ids, mm_token_type_ids=kinds, **self.tensors).last_hidden_state
        before = hidden.gather(1, (self.scored - 1)[..., None].expand(-1, -1, hidden.shape[-1]))
        logits = self.model.lm_head(before).float().index_fill(-1, self.suppressed, -1e9)
        taken = logits.log_softmax(-1).gather(-1, self.ids.gather(1, self.scored)[..., None])[..., 0]
        weights = 1 + torch.arange(len(taken)) % 3
        (taken * weights[:, None] / taken.numel()).sum().backward()


if __name__ == "__main__":
    main()
