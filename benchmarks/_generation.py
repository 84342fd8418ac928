"""The two processes of `generation_queue.py`: one generates, one trains; each answers commands in turn.

The version rule is that of `vlm_r1.plan.generation.timeline`, kept here by real messages: generation of step s begins
with version s - k or a later one; new weights wait for the generation that has begun, and go before any that has not.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from _ours import REWARD, ban_end_of_text
from safetensors.torch import load_file, save_file

from vlm_r1.config import Recipe
from vlm_r1.data.source import load_source
from vlm_r1.distributed.sharding import full_tensors
from vlm_r1.eval.run import read_rollouts
from vlm_r1.records import Prompt, Rollout, RolloutGroup
from vlm_r1.rewards.rubric import build_rubric
from vlm_r1.rl.algorithms import ALGORITHMS
from vlm_r1.rl.experience import batch_of, judge
from vlm_r1.rl.rollouts import sampling_of
from vlm_r1.rl.step import Trainer
from vlm_r1.runtime.session import Session, open_session


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A step: prompts, completions of each, their mean length in tokens, and optimizer steps on them.

    All completions of a step have one length, drawn anew for each step between half and one and a half times the mean.
    """

    name: str
    prompts: int
    group: int
    tokens: int
    iterations: int
    steps: int

    def lengths(self) -> list[int]:
        """Tokens of a completion, by step; every repetition has the same."""
        drawn = random.Random(1)
        return [drawn.randint(self.tokens // 2, self.tokens * 3 // 2) for _ in range(self.steps)]

    def recipe(self, folder: Path) -> Recipe:
        """The tiny base with this step."""
        return Recipe.model_validate(
            {
                "model": {"path": "tiny"},
                "data": {"train": [{"scenes": {"split": "train", "n": 64, "questions": {"attribute": 1.0}}}]},
                "prompt": {"template": "plain"},
                "rollout": {"max_new_tokens": 2 * self.tokens, "stop_at_answer": False},
                "rewards": {"parts": {REWARD: 1.0}},
                "rl": {"group_size": self.group, "prompts_per_step": self.prompts, "iterations": self.iterations},
                "run": {"dir": str(folder), "steps": 1000, "threads": 1, "hang_timeout_s": 3600.0},
            }
        )


class Side:
    """What both processes have: the tiny base, and the prompts of a step."""

    def __init__(self, session: Session, links: dict[str, Any]) -> None:
        self.session, self.links = session, links

    def take(self, work: Work) -> None:
        """Get ready for another kind of step."""
        self.work, self.session.recipe = work, work.recipe(self.session.run_dir)
        samples = load_source(self.session.recipe.data.train[0], seed=0)
        family = self.session.loaded.family
        encoded = (family.encode(samples[n]) for n in range(work.prompts))
        self.prompts: list[Prompt] = [replace(prompt, number=n) for n, prompt in enumerate(encoded)]

    def alone(self) -> list[float]:
        """Seconds of every step."""
        return [seconds(self.once, step) for step in range(self.work.steps)]

    def beside(self, window_s: float) -> list[tuple[int, float]]:
        """Step and seconds, of all steps that are done again and again within so many seconds."""
        found, end = list[tuple[int, float]](), time.monotonic() + window_s
        for step in itertools.cycle(range(self.work.steps)):
            taken = seconds(self.once, step)
            if time.monotonic() > end and found:
                return found
            found.append((step, taken))
        raise AssertionError

    def once(self, step: int) -> Any:
        """The phase of this side."""
        raise NotImplementedError


class Servers(Side):
    """Generates, and takes new weights."""

    def once(self, step: int) -> list[tuple[Rollout, ...]]:
        """The completions of a step."""
        sampling = replace(sampling_of(self.session.recipe, step), max_new_tokens=self.work.lengths()[step])
        self.session.engine.wake()
        groups = sorted(
            self.session.engine.generate(self.prompts, sampling, n=self.work.group), key=lambda g: g.prompt.number
        )
        return [group.rollouts for group in groups]

    def load(self, file: Path) -> None:
        """Take over the weights of a file."""
        own = dict(self.session.policy.named_parameters())
        with torch.no_grad():
            for name, value in load_file(file).items():
                own[name].copy_(value)

    def syncs(self, file: Path) -> list[float]:
        """Seconds of some syncs."""
        return [seconds(self.load, file) for _ in range(5)]

    def run(self, k: int, waits: bool) -> dict[str, Any]:
        """All steps of a repetition; when generations and syncs began and ended, and the versions that generated."""
        version, step, log, versions = 0, 0, list[tuple[str, float, float]](), []
        weights = self.links["weights"]
        while version < self.work.steps:
            if step < self.work.steps and step - version <= k and weights.empty():
                began = time.monotonic()
                self.links["groups"].put(self.once(step))
                log.append(("generation", began, time.monotonic()))
                versions.append(version)
                step += 1
                continue
            file = weights.get()
            began = time.monotonic()
            self.load(file)
            log.append(("sync", began, time.monotonic()))
            version += 1
            self.links["synced"].put(version)
        return {"log": log, "versions": versions}


class Training(Side):
    """Judges, updates, and writes the new weights to a file."""

    def take(self, work: Work) -> None:
        """Get ready for another kind of step."""
        super().take(work)
        recipe = self.session.recipe
        self.rubric, self.algorithm = (
            build_rubric(recipe.rewards, self.session.world.beat),
            ALGORITHMS[recipe.rl.algorithm],
        )
        self.trainer = Trainer(self.session, self.algorithm, None)
        self.received: dict[int, list[tuple[Rollout, ...]]] = {}

    def once(self, step: int) -> Path:
        """Rewards, update and the file of the weights, from the completions that the last repetition brought."""
        recipe, world = self.session.recipe, self.session.world
        sampling = sampling_of(recipe, step)
        pairs = zip(self.prompts, self.received[step], strict=True)
        groups = [RolloutGroup(prompt=p, rollouts=r, sampling=sampling) for p, r in pairs]
        answers = [read_rollouts(group) for group in groups]
        experience = judge(groups, answers, self.rubric, self.algorithm, self.work.group)
        limit = recipe.rollout.max_new_tokens
        self.trainer.step(batch_of(experience, self.algorithm, world, limit, keep_all=True), step)
        file = self.links["folder"] / f"weights-{step % 8}.safetensors"
        save_file({name: value.contiguous() for name, value in full_tensors(self.session.policy)}, file)
        return file

    def run(self, k: int, waits: bool) -> dict[str, Any]:
        """All steps of a repetition; when updates began and ended."""
        log = list[tuple[str, float, float]]()
        for step in range(self.work.steps):
            self.received[step] = self.links["groups"].get()
            began = time.monotonic()
            file = self.once(step)
            log.append(("training", began, time.monotonic()))
            self.links["weights"].put(file)
            if waits:
                self.links["synced"].get()
        while not waits and self.links["synced"].get() < self.work.steps:
            pass
        return {"log": log}


def seconds(call: Any, *arguments: Any) -> float:
    """How long a call takes."""
    began = time.monotonic()
    call(*arguments)
    return time.monotonic() - began


def serve(kind: type[Side], first: Work, links: dict[str, Any], commands: Any, results: Any) -> None:
    """One process: opens the tiny base, then does what it is told and puts the result where it is waited for."""
    with opened(first) as session:
        ban_end_of_text(session)
        side = kind(session, links)
        while (command := commands.get()) is not None:
            name, *arguments = command
            results.put(getattr(side, name)(*arguments))


@contextlib.contextmanager
def opened(work: Work) -> Iterator[Session]:
    """A session in a folder of its own, on one thread."""
    with tempfile.TemporaryDirectory() as folder, open_session(work.recipe(Path(folder))) as session:
        torch.set_num_threads(1)
        yield session
