"""The update with a frozen tower: ours, with the features kept, beside the padded one that runs every answer's image.

    python benchmarks/frozen_update.py                     # 1,024 image tokens, G = 8: the setting of the claim
    python benchmarks/frozen_update.py --image-tokens 256
    python benchmarks/frozen_update.py --quick             # does it run?

Both sides are one optimiser step (forward, backward, AdamW) on the same prompts, images and made-up answers of the
tiny model of `grpo_step.py`, tower and connector frozen. Padded: transformers' own model, image and prompt G times,
one group in a forward pass, log-probs at the answers' positions only, the tower without a graph. Ours: packed rows; the
tower runs in the first epoch and never again. They take turns in one process; gradients are compared first.

Writes `docs/results/frozen_update.json`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from _measure import commit, machine, now, versions
from _prompts import made_up
from _setting import Setting, prepare
from torch import Tensor
from transformers import AutoModelForImageTextToText

from vlm_r1.config import ModelConfig, PromptConfig, TrainConfig
from vlm_r1.models.freeze import freeze
from vlm_r1.models.load import LoadedPolicy, load_policy
from vlm_r1.models.packing import PackedRow, PrefixGroup, cut_by_budget, pack
from vlm_r1.models.vision_cache import VisionCache
from vlm_r1.rl.batch import as_prefix_group

ROOT = Path(__file__).resolve().parent.parent
BUDGET = 16_384


def main() -> None:
    """Measure, compare, write."""
    arguments = parse_arguments()
    torch.set_flush_denormal(True)
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(
            folder=folder, prompts=arguments.prompts, group=arguments.group, image_tokens=arguments.image_tokens
        )
        prepare(setting)
        result = measure(setting, 1 if arguments.quick else arguments.repetitions)
    result |= {
        "command": f"python benchmarks/frozen_update.py {' '.join(sys.argv[1:])}".strip(),
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "machine": machine(),
        "versions": versions(),
    }
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps({k: result[k] for k in ("ratio_cached", "ratio_first_epoch", "tower_calls_second_epoch")}))
    print(f"written: {arguments.out}")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=2, help="prompts in the step")
    parser.add_argument("--group", type=int, default=8, help="answers a prompt")
    parser.add_argument("--image-tokens", type=int, default=1024, help="image tokens of a prompt")
    parser.add_argument("--repetitions", type=int, default=5, help="measured steps of each side")
    parser.add_argument("--quick", action="store_true", help="one repetition: only to see it run")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "frozen_update.json")
    return parser.parse_args()


def measure(setting: Setting, repetitions: int) -> dict[str, Any]:
    """Seconds of each side's steps, the ratios of their medians, and the largest difference of a gradient."""
    ours = Ours(setting)
    padded = Padded(setting, ours.loaded)
    ours.forget()
    difference = compare(ours, padded)
    seconds: dict[str, list[float]] = {"padded": [], "ours_first_epoch": [], "ours_cached": []}
    calls = 0
    for _ in range(repetitions):
        seconds["padded"].append(timed(padded))
        ours.forget()
        seconds["ours_first_epoch"].append(timed(ours))
        before = ours.calls
        seconds["ours_cached"].append(timed(ours))
        calls += ours.calls - before
    median = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "setting": {"prompts": setting.prompts, "group": setting.group, "image_tokens": setting.image_tokens}
        | {"answer_tokens": setting.answer_tokens, "prompt_tokens": len(ours.groups[0].prompt.token_ids)},
        "seconds": seconds,
        "median": median,
        "ratio_cached": median["padded"] / median["ours_cached"],
        "ratio_first_epoch": median["padded"] / median["ours_first_epoch"],
        "tower_calls_second_epoch": calls,
        "largest_gradient_difference": difference,
    }


class Ours:
    """Packed rows with the features of a frozen tower kept."""

    def __init__(self, setting: Setting) -> None:
        self.loaded = load_policy(ModelConfig(path=str(setting.model_path)), PromptConfig(template="plain"))
        freeze(self.loaded.family, TrainConfig(vision="frozen", connector="frozen"))
        self.groups = made_up(setting, self.loaded)
        self.model = self.loaded.policy.model
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-6, fused=True)
        self.calls = 0
        self.model.model.visual.register_forward_hook(self._count)
        prefix_groups: list[PrefixGroup] = [as_prefix_group(group) for group in self.groups]
        self.rows: list[PackedRow] = [pack(piece) for piece in cut_by_budget(prefix_groups, BUDGET)]

    def _count(self, *_: Any) -> None:
        self.calls += 1

    def forget(self) -> None:
        """Start an epoch whose features are not known."""
        parts = self.loaded.family.parameters()
        self.loaded.policy.cache_features(VisionCache(1 << 31), [*parts["vision"], *parts["connector"]])

    def backward(self) -> None:
        """The gradient of the mean log-prob, weighted by answer."""
        total = sum(len(row.targets) for row in self.rows)
        for row in self.rows:
            logprobs, _ = self.loaded.policy(row)
            (logprobs * (1 + row.completion_of_target % 3) / total).sum().backward()


class Padded:
    """transformers' model with SDPA: every answer has its own prompt and image, one group at a time."""

    def __init__(self, setting: Setting, loaded: LoadedPolicy) -> None:
        self.model = AutoModelForImageTextToText.from_pretrained(setting.model_path, attn_implementation="sdpa")
        self.model.model.visual.requires_grad_(False)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-6, fused=True)
        self.suppressed = loaded.policy.suppressed
        self.groups = made_up(setting, loaded)

    def backward(self) -> None:
        """The same gradient as `Ours.backward`."""
        total = sum(len(r.token_ids) for g in self.groups for r in g.rollouts)
        completion = 0
        for group in self.groups:
            n, prompt = len(group.rollouts), group.prompt
            answers = torch.tensor([r.token_ids for r in group.rollouts])
            ids = torch.cat([torch.tensor(prompt.token_ids).expand(n, -1), answers], 1)
            tensors = {
                name: value.repeat(n, *(1 for _ in value.shape[1:])) for name, value in prompt.images[0].tensors.items()
            }
            kinds = (ids == self.model.config.image_token_id).int()
            keep = answers.shape[1] + 1
            logits = self.model(input_ids=ids, mm_token_type_ids=kinds, logits_to_keep=keep, **tensors).logits[:, :-1]
            logprobs = logits.float().index_fill(-1, self.suppressed, -1e9).log_softmax(-1)
            taken = logprobs.gather(-1, answers[..., None])[..., 0]
            weights = 1 + (completion + torch.arange(n)) % 3
            (taken * weights[:, None] / total).sum().backward()
            completion += n


def timed(side: Ours | Padded) -> float:
    """Seconds of one optimiser step."""
    started = now()
    side.backward()
    side.optimizer.step()
    side.optimizer.zero_grad()
    return now() - started


def compare(ours: Ours, padded: Padded) -> float:
    """Largest relative difference of a parameter's gradient; both sides start from the same weights."""
    ours.backward()
    padded.backward()
    theirs = dict(padded.model.named_parameters())
    largest = 0.0
    for name, parameter in ours.model.named_parameters():
        if parameter.grad is not None:
            expected: Tensor = theirs[name].grad  # type: ignore[assignment]
            largest = max(largest, float((parameter.grad - expected).norm() / expected.norm()))
    for side in (ours, padded):
        side.optimizer.zero_grad()
    assert largest < 1e-3, f"the two sides differ by {largest}"
    return largest


if __name__ == "__main__":
    main()
