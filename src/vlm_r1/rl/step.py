"""One batch of rollouts to optimiser steps: forward over packed rows, loss, backward, clip, step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlm_r1.models.packing import PackedRow, Tree, cut_by_budget, pack
from vlm_r1.rl.algorithms import Algorithm
from vlm_r1.rl.batch import TrainBatch
from vlm_r1.rl.objective import k3
from vlm_r1.rl.reference import Reference
from vlm_r1.rollout.cache import Prefill
from vlm_r1.rollout.resume import continued_row
from vlm_r1.runtime.optim import learning_rate, set_learning_rate
from vlm_r1.runtime.session import Session


@dataclass(slots=True, kw_only=True)
class Stats:
    """Sums over the tokens of a step, for the metrics."""

    loss: float = 0.0
    kl: float = 0.0
    entropy: float = 0.0
    clip_low: float = 0.0
    clip_high: float = 0.0
    ratio: float = 0.0
    tokens: int = 0

    def metrics(self, has_reference: bool) -> dict[str, float]:
        """Means per token under TRL's names."""
        n = max(1, self.tokens)
        values = {
            "loss": self.loss,
            "entropy": self.entropy / n,
            "clip_ratio/low_mean": self.clip_low / n,
            "clip_ratio/high_mean": self.clip_high / n,
            "sampling/importance_sampling_ratio/mean": self.ratio / n,
        }
        return values | ({"kl": self.kl / n} if has_reference else {})


class Updater:
    """Runs the update of a session: `iterations` optimiser steps on each batch."""

    def __init__(self, session: Session, algorithm: Algorithm, reference: Reference | None) -> None:
        self.session, self.algorithm, self.reference = session, algorithm, reference
        self.rl = session.recipe.rl
        self.clip_low = algorithm.clip_low if self.rl.clip_low is None else self.rl.clip_low
        self.clip_high = algorithm.clip_high if self.rl.clip_high is None else self.rl.clip_high

    def update(self, batch: TrainBatch, prefill: Prefill | None, step: int) -> dict[str, float]:
        """All iterations on one batch; returns the metrics of the last. `prefill` keeps the rollout's graph, if any.

        The first iteration is on-policy: its own log-probs are the old ones, so no pass is spent on them.
        """
        device = self.session.accelerator.device
        recipe = self.session.recipe
        rows = [(row, part) for row, part in _rows(batch, self.rl.token_budget)]
        old: list[Tensor] = []
        ref = [self._reference(row.to(device)) for row, _ in rows]
        stats, norm, lr = Stats(), 0.0, 0.0
        for iteration in range(self.rl.iterations):
            stats = Stats()
            self.session.policy.train()
            for i, (row, part) in enumerate(rows):
                resumed = prefill if iteration == 0 else None
                before = old[i] if iteration else None
                logprobs = self._backward(row.to(device), part, before, ref[i], resumed, i == len(rows) - 1, stats)
                if iteration == 0:
                    old.append(logprobs)
            if not rows:
                self._backward_nothing()
            norm = float(
                self.session.accelerator.clip_grad_norm_(self.session.policy.parameters(), recipe.optim.max_grad_norm)
            )
            lr = learning_rate(recipe.optim, step, recipe.run.steps)
            set_learning_rate(self.session.optimizer, lr)
            self.session.optimizer.step()
            self.session.optimizer.zero_grad()
        metrics = stats.metrics(self.reference is not None) | {"grad_norm": norm, "lr": lr}
        return metrics | self.session.loaded.policy.cache_metrics()

    def _reference(self, row: PackedRow) -> Tensor | None:
        if self.reference is None:
            return None
        with torch.no_grad(), self.session.accelerator.autocast():
            return self.reference(row, self.session.recipe.rollout.temperature)[0]

    def _backward(
        self,
        row: PackedRow,
        part: TrainBatch,
        old_S: Tensor | None,
        ref_S: Tensor | None,
        prefill: Prefill | None,
        last: bool,
        stats: Stats,
    ) -> Tensor:
        """Forward and backward of one row; returns its log-probs without their graph."""
        accelerator, temperature = self.session.accelerator, self.session.recipe.rollout.temperature
        sync: Any = nullcontext() if last else accelerator.no_sync(self.session.policy)
        with sync:
            with accelerator.autocast():
                if prefill is None:
                    logprobs_S, entropy_S = self.session.policy(row, temperature)
                else:
                    logprobs_S, entropy_S = continued_row(self.session.loaded.policy, prefill, part, row, temperature)
                loss = self._loss(logprobs_S, old_S, ref_S, part, row.branch_of_target, stats)
            accelerator.backward(loss * accelerator.num_processes)  # DDP averages, the loss is a sum over processes
        stats.entropy += float(entropy_S.sum())
        return logprobs_S.detach()

    def _loss(
        self,
        logprobs_S: Tensor,
        old_S: Tensor | None,
        ref_S: Tensor | None,
        part: TrainBatch,
        owner_S: Tensor,
        stats: Stats,
    ) -> Tensor:
        """The row's share of the step's loss: every token's objective times its weight in the step."""
        advantages_S = part.advantages_B.to(logprobs_S.device)[owner_S]
        weights_S = part.weights_B.to(logprobs_S.device)[owner_S]
        old_S = logprobs_S.detach() if old_S is None else old_S
        ratio_S = self.algorithm.ratio(logprobs_S, old_S, owner_S)
        per_token = self.algorithm.surrogate(ratio_S, logprobs_S, advantages_S, self.clip_low, self.clip_high)
        if ref_S is not None:
            kl_S = k3(logprobs_S, ref_S)
            per_token = per_token + self.rl.beta * kl_S
            stats.kl += float(kl_S.detach().sum())
        loss = (per_token * weights_S).sum()
        with torch.no_grad():
            stats.loss += float(loss)
            stats.tokens += len(logprobs_S)
            stats.ratio += float(ratio_S.sum())
            stats.clip_low += float(((ratio_S < 1 - self.clip_low) & (advantages_S < 0)).sum())
            stats.clip_high += float(((ratio_S > 1 + self.clip_high) & (advantages_S > 0)).sum())
        return loss

    def _backward_nothing(self) -> None:
        """A zero gradient for every parameter: a process without work still takes part in the others' step."""
        for parameter in self.session.policy.parameters():
            if parameter.requires_grad and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)


def _rows(batch: TrainBatch, budget: int) -> Iterator[tuple[PackedRow, TrainBatch]]:
    """The batch as packed rows within the token budget, each with the part of the batch that it holds."""
    start = 0
    for trees in cut_by_budget(batch.trees, budget):
        stop = start + sum(len(tree.branches) for tree in trees)
        yield pack(trees), _slice(batch, trees, start, stop)
        start = stop


def _slice(batch: TrainBatch, trees: list[Tree], start: int, stop: int) -> TrainBatch:
    return TrainBatch(
        trees=tuple(trees),
        advantages_B=batch.advantages_B[start:stop],
        weights_B=batch.weights_B[start:stop],
        group_numbers=batch.group_numbers,
    )
