"""What a step's answers are: scored rollouts with their advantages, on the process that sampled them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from vlm_r1.data.mixture import SampleStream
from vlm_r1.distributed.processes import World
from vlm_r1.records import Answer, Prompt, RolloutGroup, Sample, Score
from vlm_r1.rewards.rubric import Rubric
from vlm_r1.rl.advantage import overlong_penalty
from vlm_r1.rl.algorithms import Algorithm
from vlm_r1.rl.batch import TrainBatch, make_batch
from vlm_r1.runtime.prefetch import Prefetcher
from vlm_r1.runtime.session import Session

RESAMPLE_ROUNDS = 3
"""Dynamic sampling asks for prompts at most so many times in a step."""


@dataclass(slots=True, kw_only=True)
class Experience:
    """The scored rollouts of a step that fall to this process; lists run over prompts, then over answers."""

    groups: list[RolloutGroup] = field(default_factory=list)
    answers: list[list[Answer]] = field(default_factory=list)
    scores: list[list[Score]] = field(default_factory=list)
    shadows: list[list[dict[str, float | None]]] = field(default_factory=list)
    rewards_PG: Tensor
    advantages_PG: Tensor

    @classmethod
    def empty(cls, group_size: int) -> Experience:
        """That of no prompt."""
        return cls(rewards_PG=torch.zeros(0, group_size), advantages_PG=torch.zeros(0, group_size))

    @property
    def lengths_PG(self) -> Tensor:
        """Tokens of every answer."""
        lengths = [len(r.token_ids) for group in self.groups for r in group.rollouts]
        return torch.tensor(lengths, dtype=torch.long).view_as(self.rewards_PG)

    def informative(self) -> Experience:
        """The groups with an advantage that is not zero: the others teach nothing."""
        kept = self.advantages_PG.any(-1).nonzero()[:, 0].tolist()
        return Experience(
            groups=[self.groups[n] for n in kept],
            answers=[self.answers[n] for n in kept],
            scores=[self.scores[n] for n in kept],
            shadows=[self.shadows[n] for n in kept] if self.shadows else [],
            rewards_PG=self.rewards_PG[kept],
            advantages_PG=self.advantages_PG[kept],
        )

    def joined(self, other: Experience) -> Experience:
        """Both, one after the other."""
        return Experience(
            groups=self.groups + other.groups,
            answers=self.answers + other.answers,
            scores=self.scores + other.scores,
            shadows=self.shadows + other.shadows,
            rewards_PG=torch.cat([self.rewards_PG, other.rewards_PG]),
            advantages_PG=torch.cat([self.advantages_PG, other.advantages_PG]),
        )


def prompt_batches(session: Session, stream: SampleStream[Sample]) -> Prefetcher[Sample, Prompt]:
    """The prompts of a stream, batch by batch."""
    policy, family = session.policy, session.loaded.family
    return Prefetcher(stream, session.world, family.expected_tokens, lambda sample: policy.stage(family.encode(sample)))


def deal(batches: Prefetcher[Sample, Prompt], count: int, world: World, drawn: int, held: float) -> list[Prompt]:
    """The prompts of this process of the next `count` samples, in order, with their numbers in the step.

    `drawn` samples were dealt before in this step; with the answers that were kept, `held` tokens are already here.
    """
    loads = world.gather(held) if drawn else None
    return [replace(prompt, number=number) for number, prompt in batches.take(count, drawn, loads)]


def judge(
    groups: Sequence[RolloutGroup], answers: list[list[Answer]], rubric: Rubric, algorithm: Algorithm, group_size: int
) -> Experience:
    """Scores, rewards and advantages of groups of answers."""
    flat = [(group.prompt.sample, answer) for group, row in zip(groups, answers, strict=True) for answer in row]
    samples, read = [s for s, _ in flat], [a for _, a in flat]
    scores = rubric.score_all(samples, read)
    shadows = rubric.shadow_all(samples, read) if rubric.config.shadow else []
    G = group_size
    rewards_PG = torch.tensor([float("nan") if s.total is None else s.total for s in scores]).view(-1, G)
    shaped_PG = rewards_PG
    if algorithm.overlong_shaping and groups:
        lengths_PG = torch.tensor([a.n_tokens for a in read]).view(-1, G)
        sampling = groups[0].sampling
        assert sampling is not None
        shaped_PG = rewards_PG + overlong_penalty(lengths_PG, sampling.max_tokens)
    return Experience(
        groups=list(groups),
        answers=answers,
        scores=[scores[i : i + G] for i in range(0, len(scores), G)],
        shadows=[shadows[i : i + G] for i in range(0, len(shadows), G)],
        rewards_PG=rewards_PG,
        advantages_PG=algorithm.advantage(shaped_PG),
    )


def batch_of(experience: Experience, algorithm: Algorithm, world: World, limit: int, *, keep_all: bool) -> TrainBatch:
    """The batch of this process, its tokens weighted over the answers of all processes."""
    lengths_PG = experience.lengths_PG
    answers, tokens = world.sum(lengths_PG.numel(), int(lengths_PG.sum()))
    weights_B = algorithm.token_weight(lengths_PG.flatten(), int(answers), int(tokens), limit)
    return make_batch(experience.groups, experience.advantages_PG, weights_B.view_as(lengths_PG), keep_all=keep_all)
