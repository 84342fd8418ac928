"""Which evaluation of a run was best (`eval.keep_best`), and whether the run still improves.

Both are read from `eval.json`, up to the steps done: a run that was resumed decides as one that never stopped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from vlm_r1.boxes import BoxMap
from vlm_r1.config import Recipe
from vlm_r1.errors import ConfigError, nearest
from vlm_r1.eval.measures import summary
from vlm_r1.eval.outcomes import outcome
from vlm_r1.prompts.parse import read_answer
from vlm_r1.records import Sample
from vlm_r1.runtime.inputs import best_metric
from vlm_r1.runtime.runlog import read_eval

EXAMINED = 64
"""Questions of a split by which it is known which metrics it has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Best:
    """The step of the best evaluation, its value, and how many evaluations came after it."""

    step: int
    value: float
    later: int


def find_best(run_dir: Path, recipe: Recipe, done: int) -> Best | None:
    """The first of the best evaluations of a run after at most `done` steps; None where there is none."""
    split, metric = best_metric(recipe)
    if not split:
        return None
    found = []
    for phase, splits in read_eval(run_dir).items():
        value, number = splits.get(split, {}).get(metric), re.fullmatch(r"step-(\d{1,18})", phase)
        if number and isinstance(value, int | float) and (step := int(number[1])) <= done:
            found.append((step, value))
    if not found:
        return None
    step, value = max(found, key=lambda item: (item[1], -item[0]))
    return Best(step=step, value=value, later=sum(other > step for other, _ in found))


def is_stale(best: Best | None, recipe: Recipe) -> bool:
    """Whether `eval.early_stopping_patience` evaluations came after the best one."""
    patience = recipe.eval.early_stopping_patience
    return patience is not None and best is not None and best.later >= patience


def check_best(recipe: Recipe, splits: Mapping[str, Sequence[Sample]]) -> None:
    """Raise `ConfigError` where the split of `eval.keep_best` has no such metric that is better when higher."""
    split, metric = best_metric(recipe)
    if not split:
        return
    asked = islice(splits[split], EXAMINED)
    outcomes = [outcome(sample, read_answer("", sample, BoxMap())) for sample in asked]
    measured = summary(outcomes, recipe.eval.suites.get(split), resamples=0)
    valid = [name for name in measured if name not in ("n", "mean_length") and not name.startswith("failures/")]
    if metric not in valid:
        raise ConfigError(f'eval.keep_best: "{metric}" is not a metric of {split}: {nearest(metric, valid)}')
