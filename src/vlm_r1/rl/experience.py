"""Everything of a step before its update: samples, rollouts, answers, scores and advantages."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vlm_r1.data.mixture import SampleStream
from vlm_r1.eval.run import read_rollouts
from vlm_r1.records import Answer, Prompt, RolloutGroup, Score
from vlm_r1.rewards.rubric import Rubric
from vlm_r1.rl.advantage import overlong_penalty
from vlm_r1.rl.algorithms import Algorithm
from vlm_r1.rl.batch import TrainBatch
from vlm_r1.rollout.cache import Prefill
from vlm_r1.rollout.native import decode
from vlm_r1.runtime.session import Session

RESAMPLE_ROUNDS = 3
"""Dynamic sampling asks for prompts at most so many times in a step."""
REUSE_SHARE = 2 / 3
"""Least share of a step's groups that must be trained on for the rollout's prompt graph to be worth its backward
pass."""


@dataclass(slots=True, kw_only=True)
class Experience:
    """The scored rollouts of a step; lists run over prompts, then over answers."""

    groups: list[RolloutGroup] = field(default_factory=list)
    answers: list[list[Answer]] = field(default_factory=list)
    scores: list[list[Score]] = field(default_factory=list)
    shadows: list[dict[str, float | None]] = field(default_factory=list)
    rewards_PG: Tensor
    advantages_PG: Tensor
    prefill: Prefill | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    def prefill_for(self, batch: TrainBatch) -> Prefill | None:
        """The rollout's prompt graph, where running its backward for all prompts beats running the kept ones again."""
        enough = len(batch.group_numbers) >= REUSE_SHARE * len(self.groups) > 0
        return self.prefill if enough else None


def collect(session: Session, stream: SampleStream, rubric: Rubric, algorithm: Algorithm, step: int) -> Experience:
    """The experience of a step. With dynamic sampling, groups that teach nothing are replaced, within limits."""
    per_process = session.share_of(session.recipe.rl.prompts_per_step, "rl.prompts_per_step")
    kept: Experience | None = None
    for attempt in range(RESAMPLE_ROUNDS if algorithm.dynamic_sampling else 1):
        missing = per_process - (len(kept.groups) if kept else 0)
        new = _collect_once(session, stream, rubric, algorithm, step, attempt, missing)
        if not algorithm.dynamic_sampling:
            return new
        kept = _join(kept, _only(new, new.advantages_PG.any(-1)) if attempt + 1 < RESAMPLE_ROUNDS else new)
        if len(kept.groups) >= per_process:
            break
    assert kept is not None
    return kept


def _collect_once(
    session: Session, stream: SampleStream, rubric: Rubric, algorithm: Algorithm, step: int, attempt: int, count: int
) -> Experience:
    recipe, accelerator = session.recipe, session.accelerator
    started = time.perf_counter()
    rank, world = accelerator.process_index, accelerator.num_processes
    samples = stream.take(count * world)[rank::world]
    prompts = [session.loaded.family.encode(sample) for sample in samples]
    encoded = time.perf_counter()
    seed = ((recipe.run.seed * 1_000_003 + step) * 31 + attempt) * 1009 + rank
    session.loaded.policy.train()
    with accelerator.autocast():
        groups, prefill = roll_out(session, prompts, seed)
    rolled = time.perf_counter()
    answers = [read_rollouts(group) for group in groups]
    flat = [(group.prompt.sample, answer) for group, row in zip(groups, answers, strict=True) for answer in row]
    scores = rubric.score_all([s for s, _ in flat], [a for _, a in flat])
    shadows = rubric.shadow_all([s for s, _ in flat], [a for _, a in flat]) if recipe.rewards.shadow else []
    G = recipe.rl.group_size
    rewards_PG = torch.tensor([float("nan") if s.total is None else s.total for s in scores]).view(-1, G)
    shaped_PG = rewards_PG
    if algorithm.overlong_shaping:
        lengths_PG = torch.tensor([a.n_tokens for _, a in flat]).view(-1, G)
        shaped_PG = rewards_PG + overlong_penalty(lengths_PG, recipe.rollout.max_new_tokens)
    return Experience(
        groups=groups,
        answers=answers,
        scores=[scores[i : i + G] for i in range(0, len(scores), G)],
        shadows=shadows,
        rewards_PG=rewards_PG,
        advantages_PG=algorithm.advantage(shaped_PG),
        prefill=prefill,
        seconds={
            "time/data_s": encoded - started,
            "time/rollout_s": rolled - encoded,
            "time/reward_s": time.perf_counter() - rolled,
        },
    )


def roll_out(session: Session, prompts: Sequence[Prompt], seed: int) -> tuple[list[RolloutGroup], Prefill | None]:
    """Rollouts of a step, and the prompts' graph where the update can go on from it.

    Prompts are run in pieces of at most `rl.token_budget` tokens. The graph is kept only where all prompts and the
    longest possible answers fit in one row, nothing is recomputed (gradient checkpointing), and one process trains.
    """
    recipe, policy = session.recipe, session.loaded.policy
    most = sum(len(p.token_ids) for p in prompts) + len(prompts) * recipe.rl.group_size * recipe.rollout.max_new_tokens
    reuse = (
        recipe.rl.reuse_prefill
        and most <= recipe.rl.token_budget
        and not recipe.model.gradient_checkpointing
        and session.accelerator.num_processes == 1
    )
    groups: list[RolloutGroup] = []
    prefill: Prefill | None = None
    for number, piece in enumerate(_pieces(prompts, recipe.rl.token_budget)):
        context: Any = nullcontext() if reuse else torch.no_grad()
        with context:
            prefill = Prefill(policy, piece)
        groups += decode(
            session.loaded, piece, prefill, recipe.rl.group_size, recipe.rollout, seed=seed * 65_537 + number
        )
    return groups, prefill if reuse else None


def _pieces(prompts: Sequence[Prompt], budget: int) -> list[list[Prompt]]:
    pieces: list[list[Prompt]] = []
    used = 0
    for prompt in prompts:
        if not pieces or used + len(prompt.token_ids) > budget:
            pieces.append([])
            used = 0
        pieces[-1].append(prompt)
        used += len(prompt.token_ids)
    return pieces


def _only(experience: Experience, keep_P: Tensor) -> Experience:
    """The groups where `keep_P` is True; the prompts' graph is dropped with the others."""
    numbers = keep_P.nonzero()[:, 0].tolist()
    G = experience.rewards_PG.shape[1]
    shadows = experience.shadows
    return Experience(
        groups=[experience.groups[n] for n in numbers],
        answers=[experience.answers[n] for n in numbers],
        scores=[experience.scores[n] for n in numbers],
        shadows=[s for n in numbers for s in shadows[n * G : (n + 1) * G]] if shadows else [],
        rewards_PG=experience.rewards_PG[numbers],
        advantages_PG=experience.advantages_PG[numbers],
        seconds=experience.seconds,
    )


def _join(first: Experience | None, second: Experience) -> Experience:
    if first is None:
        return second
    return Experience(
        groups=first.groups + second.groups,
        answers=first.answers + second.answers,
        scores=first.scores + second.scores,
        shadows=first.shadows + second.shadows,
        rewards_PG=torch.cat([first.rewards_PG, second.rewards_PG]),
        advantages_PG=torch.cat([first.advantages_PG, second.advantages_PG]),
        seconds={name: first.seconds[name] + second.seconds[name] for name in first.seconds},
    )


def answer_weights(session: Session, experience: Experience, algorithm: Algorithm) -> Tensor:
    """Weight of each token of each answer `(P, G)` in the step's loss, over the answers of all processes."""
    lengths_B = torch.tensor([len(r.token_ids) for group in experience.groups for r in group.rollouts])
    limit = session.recipe.rollout.max_new_tokens
    if session.accelerator.num_processes == 1:
        return algorithm.token_weight(lengths_B, limit).view_as(experience.rewards_PG)
    accelerator = session.accelerator
    padded = accelerator.pad_across_processes(lengths_B.to(accelerator.device), pad_index=-1)
    all_lengths = accelerator.gather(padded).cpu()
    sizes = accelerator.gather(torch.tensor([len(lengths_B)], device=accelerator.device)).tolist()
    rank = accelerator.process_index
    before = sum(sizes[:rank])
    weights = algorithm.token_weight(all_lengths[all_lengths >= 0], limit)
    return weights[before : before + len(lengths_B)].view_as(experience.rewards_PG)
