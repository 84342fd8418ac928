"""A reward with its options, its time limit and its policy on errors: what a rubric calls."""

from __future__ import annotations

import asyncio
import inspect
import math
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from vlm_r1.config import RewardConfig
from vlm_r1.errors import ConfigError, RewardError, UserError, nearest
from vlm_r1.records import Answer, Sample, Score
from vlm_r1.rewards.limit import call_limited
from vlm_r1.rewards.plugins import adapt, load_plugin
from vlm_r1.rewards.registry import BATCHED, KEEPS_TIME, REWARDS

Beat = Callable[[str, float], None]
"""Told before each call of a reward: what is done, and how many seconds it may take."""


def no_beat(doing: str, allow: float) -> None:
    """Nobody watches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """One reward, ready to call. `counts` gets `errors/NAME`, `timeouts/NAME` and `not_scorable/NAME`."""

    name: str
    one: Callable[[Sample, Answer], Score]
    many: Callable[[Sequence[Sample], Sequence[Answer]], list[Score]] | None = None
    timeout_s: float | None = 30.0
    on_error: str = "raise"
    counts: Counter[str] = field(default_factory=Counter)
    limit_s: float = 30.0
    beat: Beat = no_beat

    def run(self, samples: Sequence[Sample], answers: Sequence[Answer]) -> list[Score]:
        """One score per answer. Raises `RewardError` for an exception in the reward under `on_error: raise`."""
        if not samples:
            return []
        if self.many is None:
            scores = []
            for sample, answer in zip(samples, answers, strict=True):
                scores += self._guard([sample], partial(self._alone, sample, answer))
        else:
            scores = self._guard(samples, partial(self.many, samples, answers))
        # A reward that keeps its own time says so in a note.
        if late := sum(note.startswith("timeout:") for score in scores for note in score.notes):
            self.counts[f"timeouts/{self.name}"] += late
        if left_out := sum(score.total is None for score in scores):
            self.counts[f"not_scorable/{self.name}"] += left_out
        return scores

    def _alone(self, sample: Sample, answer: Answer) -> list[Score]:
        return [self.one(sample, answer)]

    def _guard(self, samples: Sequence[Sample], call: Callable[[], list[Score]]) -> list[Score]:
        """The call under its limit: a time-out costs the answers their points, an exception stops or is counted."""
        process = os.getpid()
        self.beat(f'reward "{self.name}" of sample {samples[0].id}', self.limit_s * len(samples))
        try:
            scores = call() if self.timeout_s is None else call_limited(call, self.timeout_s)
            if len(scores) != len(samples):
                raise ValueError(f"returned {len(scores)} scores for {len(samples)} answers")
            for score in scores:
                if score.total is not None and not math.isfinite(score.total):
                    raise ValueError(f"returned {score.total}")
            return scores
        except TimeoutError as error:
            # Not left out of the statistics: an answer must not gain by stalling its checker.
            return [self._zero(f"timeout: {error}") for _ in samples]
        except UserError:
            raise
        except (Exception, SystemExit, asyncio.CancelledError) as error:
            if self.on_error == "raise":
                names = ", ".join(sample.id for sample in samples[:3]) + (", ..." if len(samples) > 3 else "")
                raise RewardError(
                    f'reward "{self.name}" raised {type(error).__name__}: {error} (sample {names}). '
                    "Fix the reward, or set rewards.on_error: zero to score 0 and count it"
                ) from error
            self.counts[f"errors/{self.name}"] += len(samples)
            return [self._zero(f"error: {type(error).__name__}: {error}") for _ in samples]
        finally:
            if os.getpid() != process:
                # A child would go on as a second trainer, on the files and sockets of the first.
                print(f'reward "{self.name}" forks, and its child returned: the child ends here', file=sys.stderr)
                os._exit(1)

    def _zero(self, note: str) -> Score:
        return Score(total=0.0, parts={self.name: 0.0}, notes=(note,))


def bind(name: str, config: RewardConfig, counts: Counter[str], beat: Beat = no_beat) -> Bound:
    """The reward of a name in `REWARDS`, a `path.py:function`, or an entry point, with its options from the recipe.

    Raises `ConfigError` for an unknown name or option, naming the nearest valid one.
    """
    options = dict(config.options.get(name, {}))
    limits: dict[str, Any] = {"on_error": config.on_error, "counts": counts, "name": name, "beat": beat}
    limits["limit_s"] = config.timeout_s
    if name in REWARDS:
        keywords = _keywords(BATCHED.get(name, REWARDS[name]))
        for key in options:
            if key not in keywords:
                raise ConfigError(f'rewards.options.{name}: unknown option "{key}": {nearest(key, keywords)}')
        if name in KEEPS_TIME:
            options.setdefault("timeout_s", min(keywords["timeout_s"].default, config.timeout_s))
        return Bound(
            one=partial(REWARDS[name], **options),
            many=partial(BATCHED[name], **options) if name in BATCHED else None,
            timeout_s=None if name in KEEPS_TIME else config.timeout_s,
            **limits,
        )
    plugin = load_plugin(name)
    if plugin is None:
        raise ConfigError(
            f'rewards: unknown reward "{name}": {nearest(name, REWARDS)}; '
            "or name a function of yours as path.py:function"
        )
    one, many_of_plugin = adapt(name, plugin, options, config.timeout_s)
    return Bound(one=one, many=many_of_plugin, timeout_s=config.timeout_s, **limits)


def _keywords(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    return {p.name: p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY}
