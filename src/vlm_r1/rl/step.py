"""One batch of rollouts to optimizer steps: forward over packed rows, loss, backward, clip, step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vlm_r1.distributed.sharding import clip_gradients, full_tensors, sum_whole_gradients
from vlm_r1.models.packing import PackedRow, pack
from vlm_r1.rl.algorithms import Algorithm
from vlm_r1.rl.batch import EMPTY, TrainBatch
from vlm_r1.rl.objective import LossInputs, importance_weights, k3
from vlm_r1.rl.reference import Reference
from vlm_r1.runtime.divergence import optimizer_step
from vlm_r1.runtime.optim import learning_rate, set_learning_rate
from vlm_r1.runtime.session import Session
from vlm_r1.runtime.tally import Tally, cache_tally
from vlm_r1.runtime.together import fill_rows


@dataclass(slots=True)
class _Row:
    """A packed row of the update, the part of the batch it holds, and what its first pass found."""

    row: PackedRow
    part: TrainBatch
    n_scored: int
    ref_S: Tensor | None = None
    old_S: Tensor | None = None


@dataclass(slots=True)
class _Sums:
    """Sums over the tokens of a step, on the device until the step is over."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    tokens: int = 0

    def add(self, name: str, values: Tensor) -> None:
        total = values.detach().sum(dtype=torch.float64)
        self.sums[name] = self.sums[name] + total if name in self.sums else total


class Trainer:
    """Runs the update of a session: `iterations` optimizer steps on each batch.

    `corrects` says how sampled tokens are weighted where the sampler is not the trainer (`rollout.importance_sampling`
    with `auto` settled).
    """

    def __init__(
        self, session: Session, algorithm: Algorithm, reference: Reference | None, corrects: str = "off"
    ) -> None:
        self.session, self.algorithm, self.reference, self.corrects = session, algorithm, reference, corrects
        self.rl, self.rollout = session.recipe.rl, session.recipe.rollout
        self.clip_low = algorithm.clip_low if self.rl.clip_low is None else self.rl.clip_low
        self.clip_high = algorithm.clip_high if self.rl.clip_high is None else self.rl.clip_high

    def step(self, batch: TrainBatch, step: int) -> Tally:
        """All iterations on one batch; the metrics are those of the last, and of the sampler against the first pass.

        The first iteration is on the weights that the update starts from: its own log-probs are the old ones, so no
        pass is spent on them. Every process calls it, with as much of the batch as it has. Raises what `optimizer_step`
        raises.
        """
        session, tally = self.session, Tally()
        seen: list[tuple[int, Tensor]] = []
        parameters = [p for p in session.policy.parameters() if p.requires_grad]
        skipped = 0
        rows = self._rows(batch)
        for row in rows:
            row.ref_S = self._reference(row)
        for iteration in range(self.rl.iterations):
            sums, norm = _Sums(), 0.0
            session.policy.train()
            for row in rows:
                session.world.beat("update")
                self._backward(row, sums, seen if iteration == 0 else None)
            if not rows:
                for parameter in parameters:
                    parameter.grad = torch.zeros_like(parameter)
            sum_whole_gradients(parameters, session.world)
            norm = clip_gradients(parameters, session.recipe.optim.max_grad_norm)
            lr = learning_rate(session.recipe.optim, step, session.recipe.run.steps)
            set_learning_rate(session.optimizer, lr)
            loss = float(sums.sums.get("loss", 0.0))
            skipped += not optimizer_step(session, step, norm, loss, answers=batch.finite, first=iteration == 0)
        self._count(tally, sums)
        count_sampler(tally, seen)
        tally.add(cache_tally(session.policy.vision_cache))
        tally.maximum("grad_norm", norm)
        tally.maximum("lr", lr)
        tally.maximum("skipped_updates", skipped)
        return tally

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """The policy's parameters as full tensors, one at a time; every process draws as many."""
        return full_tensors(self.session.policy)

    def _rows(self, batch: TrainBatch) -> list[_Row]:
        parts = batch.cut(self.rl.token_budget)
        groups = fill_rows(self.session, [part.prefix_groups for part in parts])
        parts += [EMPTY] * (len(groups) - len(parts))
        device = self.session.world.device
        return [
            _Row(pack(row).to(device), part, sum(len(t) for t in part.sampler_B))
            for row, part in zip(groups, parts, strict=True)
        ]

    def _reference(self, row: _Row) -> Tensor | None:
        if self.reference is None:
            return None
        self.session.world.beat("reference")
        with torch.no_grad():
            return self.reference(row.row, self.rollout.temperature)[0][: row.n_scored]

    def _backward(self, row: _Row, sums: _Sums, seen: list[tuple[int, Tensor]] | None) -> None:
        """Forward and backward of one row; the first pass over it keeps its log-probs as the old ones."""
        logprobs_S, entropy_S = self.session.policy(row.row, self.rollout.temperature)
        scored, filler = logprobs_S[: row.n_scored], logprobs_S[row.n_scored :]
        if row.old_S is None:
            row.old_S = scored.detach()
        inputs = self._inputs(row, scored)
        if seen is not None and len(scored):
            seen.append((len(scored), self._compare(inputs)))
        loss = self.loss(inputs, sums)
        if len(filler):  # prefix groups that are there so that all processes run the same modules
            loss = loss + 0.0 * filler.sum()
        loss.backward()
        sums.add("entropy", entropy_S[: row.n_scored])

    def _inputs(self, row: _Row, scored: Tensor) -> LossInputs:
        device, part = scored.device, row.part
        segments_S = row.row.completion_of_target[: row.n_scored]
        sampler = torch.cat(part.sampler_B) if part.sampler_B else torch.zeros(0)
        assert row.old_S is not None
        return LossInputs(
            logprobs_S=scored,
            sampler_S=sampler.to(device),
            old_S=row.old_S,
            ref_S=row.ref_S,
            advantages_S=part.advantages_B.to(device)[segments_S],
            weights_S=part.weights_B.to(device)[segments_S],
            segments_S=segments_S,
            n_segments=len(part.sampler_B),
        )

    def loss(self, x: LossInputs, sums: _Sums) -> Tensor:
        """The row's share of the step's loss: every token's objective times its weight in the step."""
        ratio_S = self.algorithm.ratio(x)
        per_token = self.algorithm.surrogate(ratio_S, x, self.clip_low, self.clip_high)
        if self.corrects != "off":
            per_token = per_token * importance_weights(x, self.corrects, self.rollout.importance_sampling_cap)
        if x.ref_S is not None:
            kl_S = k3(x.logprobs_S, x.ref_S)
            per_token = per_token + self.rl.beta * kl_S
            sums.add("kl", kl_S)
        loss = (per_token * x.weights_S).sum()
        with torch.no_grad():
            sums.tokens += len(x.logprobs_S)
            sums.add("loss", loss)
            sums.add("clip_ratio/low_mean", (ratio_S < 1 - self.clip_low) & (x.advantages_S < 0))
            sums.add("clip_ratio/high_mean", (ratio_S > 1 + self.clip_high) & (x.advantages_S > 0))
        return loss

    @torch.no_grad()
    def _compare(self, x: LossInputs) -> Tensor:
        """The sampler against the trainer, on the device: what `count_sampler` reads."""
        difference = (x.old_S - x.sampler_S).abs()
        weights = importance_weights(x, self.corrects, self.rollout.importance_sampling_cap)
        kl_S = k3(x.sampler_S, x.old_S)  # estimates KL(sampler || trainer)
        found = (difference.sum(), difference.max(), kl_S.sum(), weights.sum(), weights.max(), weights.min())
        return torch.stack([value.double() for value in found])

    def _count(self, tally: Tally, sums: _Sums) -> None:
        tally.total("loss", float(sums.sums.get("loss", 0.0)))
        names = ["entropy", "clip_ratio/low_mean", "clip_ratio/high_mean", *(["kl"] if self.reference else [])]
        for name in names:
            tally.mean(name, float(sums.sums.get(name, 0.0)), sums.tokens)


def count_sampler(tally: Tally, seen: list[tuple[int, Tensor]]) -> None:
    """Sampler against trainer under TRL's names, from rows' token counts and what `_compare` found, in one transfer."""
    rows = torch.stack([values for _, values in seen]).tolist() if seen else []
    for (n, _), (difference, most, kl, weight, highest, lowest) in zip(seen, rows, strict=True):
        tally.mean("sampling/sampling_logp_difference/mean", difference, n)
        tally.maximum("sampling/sampling_logp_difference/max", most)
        tally.mean("sampling/kl", kl, n)
        tally.mean("sampling/importance_sampling_ratio/mean", weight, n)
        tally.maximum("sampling/importance_sampling_ratio/max", highest)
        tally.minimum("sampling/importance_sampling_ratio/min", lowest)
