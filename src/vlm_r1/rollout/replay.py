"""Answers from recorded rollouts: for tests, for debugging a step again, and for studies of off-policy updates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from vlm_r1.errors import CheckpointError
from vlm_r1.records import Prompt, Rollout, RolloutGroup, SamplingParams
from vlm_r1.rollout.engine import EngineState

ReadStep = Callable[[int], Iterable[Mapping[str, Any]]]
"""The rows of the rollout table of a step (from 1); see `runtime.runlog.ROLLOUT_COLUMNS`."""


class ReplayEngine:
    """Answers each prompt of step s with what the recorded run answered to the prompt of the same number at step s.

    The log-probs and versions are those of the recorded sampler, so the trainer corrects for the difference.
    """

    def __init__(self, name: str, read_step: ReadStep) -> None:
        self.name, self.read_step = name, read_step
        self.version = 0

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingParams, *, n: int) -> Iterator[RolloutGroup]:
        """The recorded answers. Raises `CheckpointError` where the recorded run asked something else."""
        if not prompts:
            return
        assert sampling.seed is not None, "evaluation is not replayed"
        step = sampling.seed[-1] + 1
        recorded: dict[int, list[Mapping[str, Any]]] = {}
        for row in self.read_step(step):
            recorded.setdefault(row["group"], []).append(row)
        for prompt in prompts:
            rows = recorded.get(prompt.number, [])
            self._check(prompt, rows, n, step)
            rollouts = tuple(_rollout(row) for row in rows[:n])
            yield RolloutGroup(prompt=prompt, rollouts=rollouts, sampling=sampling)

    def _check(self, prompt: Prompt, rows: Sequence[Mapping[str, Any]], n: int, step: int) -> None:
        asked = prompt.sample.id
        if len(rows) < n or rows[0]["sample_id"] != asked:
            found = f"{len(rows)} answers to {rows[0]['sample_id']}" if rows else "no answers"
            raise CheckpointError(
                f"rollout.replay: {self.name} holds {found} as prompt {prompt.number} of step {step}, this run wants "
                f"{n} to {asked}; it needs the data, seed, rl.prompts_per_step and rl.group_size of the recorded run"
            )
        if rows[0].get("token_ids") is None:
            raise CheckpointError(f"rollout.replay: the tables of {self.name} hold no token ids; record the run again")

    def sync(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Nothing follows the trainer's weights here."""
        self.version = version

    def wake(self) -> None:
        """Nothing to get ready."""

    def sleep(self) -> None:
        """Nothing to give back."""

    def check(self) -> EngineState:
        """The recorded sampler is not the trainer."""
        return EngineState(name=f"replay of {self.name}", version=self.version, dtype="as recorded", is_trainer=False)


def _rollout(row: Mapping[str, Any]) -> Rollout:
    return Rollout(
        token_ids=tuple(row["token_ids"]),
        logprobs=tuple(row["logprobs"]),
        text=row["completion"],
        finish=row["finish"],
        version=row["version"],
    )
