"""What a step looked like: its metrics, over all processes, and what a person should be warned of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from vlm_r1.config import Recipe
from vlm_r1.rewards.diagnostics import ShadowWatch, Trend, step_diagnostics
from vlm_r1.rewards.rubric import Rubric
from vlm_r1.rl.advantage import zero_variance_share
from vlm_r1.rl.batch import TrainBatch
from vlm_r1.rl.experience import Experience


class Monitor:
    """Follows a run over its steps: the trend of answer length, and shadow metrics that fall while the reward rises."""

    def __init__(self, recipe: Recipe) -> None:
        self.shadow_names = recipe.rewards.shadow
        self.watch, self.trend = ShadowWatch(), Trend()

    def observe(self, step: int, metrics: dict[str, float]) -> list[str]:
        """Add the trend to the metrics of a step and return the warnings that are due."""
        metrics["completions/length_trend"] = self.trend.update(metrics["completions/mean_length"])
        shadow = {name: metrics.get(f"shadow/{name}/mean") for name in self.shadow_names}
        return self.watch.update(step, metrics["reward"], shadow)

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON data that `load_state_dict` takes."""
        return {"watch": self.watch.state(), "trend": self.trend.state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken."""
        self.watch.restore(state["watch"])
        self.trend.restore(state["trend"])


def mean_over_processes(accelerator: Accelerator, metrics: dict[str, float]) -> dict[str, float]:
    """Each metric as its mean over the processes that have it; token counts as sums."""
    if accelerator.num_processes == 1:
        return metrics
    rows: list[dict[str, float]] = gather_object([metrics])
    merged = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row[name] for row in rows if name in row]
        merged[name] = sum(values) if name.startswith("tokens/") else sum(values) / len(values)
    return merged


def mean_group_std(rewards_PG: Tensor) -> float:
    """Mean over groups of the standard deviation of their scored rewards; groups with fewer than two count as 0."""
    scored = [row[~row.isnan()] for row in rewards_PG]
    return sum(float(row.std()) if len(row) > 1 else 0.0 for row in scored) / max(1, len(scored))


def step_metrics(experience: Experience, batch: TrainBatch, rubric: Rubric, recipe: Recipe) -> dict[str, float]:
    """What a step looked like, under TRL's names where it has them."""
    rewards = experience.rewards_PG[~experience.rewards_PG.isnan()]
    rollouts = [r for group in experience.groups for r in group.rollouts]
    lengths = torch.tensor([len(r.token_ids) for r in rollouts], dtype=torch.float)
    flat = [
        (group.prompt.sample, answer, score)
        for group, answers, scores in zip(experience.groups, experience.answers, experience.scores, strict=True)
        for answer, score in zip(answers, scores, strict=True)
    ]
    metrics = {
        "reward": float(rewards.mean()) if len(rewards) else float("nan"),
        "reward_std": mean_group_std(experience.rewards_PG),
        "frac_reward_zero_std": zero_variance_share(experience.rewards_PG),
        "completions/mean_length": float(lengths.mean()),
        "completions/max_length": float(lengths.max()),
        "completions/clipped_ratio": sum(r.finish == "length" for r in rollouts) / len(rollouts),
        "tokens/prompt": float(sum(len(g.prompt.token_ids) for g in experience.groups)),
        "tokens/answer": float(lengths.sum()),
        "tokens/update_prompt": float(batch.n_prompt_tokens),
        "tokens/update_answer": float(batch.n_answer_tokens),
        **step_diagnostics(flat),
        **experience.seconds,
    }
    for name in sorted({name for _, _, score in flat for name in score.parts}):
        values = [v for _, _, score in flat if (v := score.parts.get(name)) is not None]
        if values:
            metrics[f"rewards/{name}/mean"] = sum(values) / len(values)
    for name in recipe.rewards.shadow:
        values = [v for row in experience.shadows if (v := row[name]) is not None]
        if values:
            metrics[f"shadow/{name}/mean"] = sum(values) / len(values)
    metrics |= {f"rewards/counts/{name}": float(count) for name, count in rubric.counts.items()}
    return metrics
