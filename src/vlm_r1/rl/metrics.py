"""What a step looked like: its metrics, over all processes, and what a person should be warned of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from vlm_r1.config import Recipe
from vlm_r1.records import Rollout
from vlm_r1.rewards.diagnostics import ShadowWatch, Trend, diagnostic_sums, kinds_that_occur
from vlm_r1.rewards.rubric import Rubric
from vlm_r1.rl.advantage import mean_only
from vlm_r1.rl.batch import TrainBatch, as_prefix_group
from vlm_r1.rl.experience import Experience
from vlm_r1.rl.mismatch import MismatchWatch
from vlm_r1.rl.step import Trainer
from vlm_r1.runtime.clock import Clock
from vlm_r1.runtime.tally import Tally, merged
from vlm_r1.runtime.throughput import Shape, Throughput


class Monitor:
    """Follows a run over its steps: the trend of answer length, shadow metrics that fall while the reward rises, and,
    where servers answer, how far they are from the trainer."""

    def __init__(self, recipe: Recipe) -> None:
        self.shadow_names = recipe.rewards.shadow
        self.watch, self.trend = ShadowWatch(), Trend()
        rollout = recipe.rollout
        self.mismatch = MismatchWatch(rollout.max_mismatch) if rollout.engine == "vllm" else None

    def observe(self, step: int, metrics: dict[str, float]) -> list[str]:
        """Add the trend to the metrics of a step and return the warnings that are due."""
        metrics["completions/length_trend"] = self.trend.update(metrics["completions/mean_length"])
        shadow = {name: metrics.get(f"shadow/{name}/mean") for name in self.shadow_names}
        warnings = self.watch.update(step, metrics.get("reward", float("nan")), shadow)
        if self.mismatch is not None:
            warnings += self.mismatch.update(step, metrics.get("sampling/sampling_logp_difference/mean"))
        return warnings

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON data that `load_state_dict` takes."""
        kept: dict[str, Any] = {"watch": self.watch.state(), "trend": self.trend.state()}
        return kept if self.mismatch is None else kept | {"mismatch": self.mismatch.state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken."""
        self.watch.restore(state["watch"])
        self.trend.restore(state["trend"])
        if self.mismatch is not None:
            self.mismatch.restore(state["mismatch"])


def step_metrics(
    trainer: Trainer,
    throughput: Throughput,
    experience: Experience,
    batch: TrainBatch,
    rubric: Rubric,
    update: Tally,
    clock: Clock,
) -> dict[str, float]:
    """The metrics of a step, over all processes, the same on each."""
    rl, world = trainer.rl, trainer.session.world
    tally = experience_tally(experience, batch, rubric)
    tally.add(update)
    tally.add(clock.tally())
    groups = [Shape.of(as_prefix_group(group)) for group in experience.groups]
    trained = [Shape.of(prefix_group) for prefix_group in batch.prefix_groups]
    elsewhere = trainer.rollout.engine == "replay" or bool(trainer.rollout.servers)
    sampled, forwards = not elsewhere, int(trainer.reference is not None)
    throughput.count(tally, groups, trained, rollout=sampled, steps=rl.iterations, forwards=forwards)
    values = kinds_that_occur(merged(world.gather(tally)).values())
    values.setdefault("reward", float("nan"))
    return values | throughput.rates(values, rl.group_size)


def experience_tally(experience: Experience, batch: TrainBatch, rubric: Rubric) -> Tally:
    """What a step's answers looked like on this process, under TRL's names where it has them."""
    tally = Tally()
    rewards_PG = experience.rewards_PG
    scored = rewards_PG[~rewards_PG.isnan()]
    rollouts = [r for group in experience.groups for r in group.rollouts]
    lengths = [len(r.token_ids) for r in rollouts]
    flat = [
        (group.prompt.sample, answer, score)
        for group, answers, scores in zip(experience.groups, experience.answers, experience.scores, strict=True)
        for answer, score in zip(answers, scores, strict=True)
    ]
    tally.mean("reward", float(scored.double().sum()), len(scored))
    tally.mean("reward_std", group_stds(rewards_PG), len(rewards_PG))
    tally.mean("frac_reward_zero_std", float((mean_only(rewards_PG) == 0).all(-1).sum()), len(rewards_PG))
    tally.mean("completions/mean_length", sum(lengths), len(lengths))
    tally.maximum("completions/max_length", max(lengths, default=0))
    tally.mean("completions/clipped_ratio", sum(r.finish == "length" for r in rollouts), len(rollouts))
    tally.total("tokens/prompt", sum(len(g.prompt.token_ids) for g in experience.groups))
    tally.total("tokens/answer", sum(lengths))
    tally.total("tokens/update_prompt", batch.n_prompt_tokens)
    tally.total("tokens/update_answer", batch.n_answer_tokens)
    if any(group.sampling is not None and group.sampling.max_calls for group in experience.groups):
        count_calls(tally, rollouts)
    for name, (total, count) in diagnostic_sums(flat).items():
        tally.mean(name, total, count)
    for _, _, score in flat:
        for part, value in score.parts.items():
            if value is not None:
                tally.mean(f"rewards/{part}/mean", value, 1)
    for shadow in (row for rows in experience.shadows for row in rows):
        for name, value in shadow.items():
            if value is not None:
                tally.mean(f"shadow/{name}/mean", value, 1)
    for name, count in rubric.counts.items():
        tally.total(f"rewards/counts/{name}", count)
    return tally


def count_calls(tally: Tally, rollouts: Sequence[Rollout]) -> None:
    """What answers asked of their environment: calls an answer, answers with any, what went wrong, what was read."""
    calls = [turn.call for rollout in rollouts for turn in rollout.turns]
    tally.mean("tools/calls", len(calls), len(rollouts))
    tally.mean("tools/used", sum(bool(rollout.turns) for rollout in rollouts), len(rollouts))
    tally.mean("tools/tokens", sum(rollout.n_context for rollout in rollouts), len(rollouts))
    for kind, count in Counter(call.failure for call in calls if call.failure).items():
        tally.total(f"tools/failures/{kind}", count)


def group_stds(rewards_PG: Tensor) -> float:
    """Sum over groups of the standard deviation of their scored rewards; groups with fewer than two count as 0."""
    scored = [row[~row.isnan()] for row in rewards_PG]
    return sum(float(row.std()) if len(row) > 1 else 0.0 for row in scored)
