"""From the run folders of a study to its quantities: what each run measured, subtracted and averaged with intervals."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from vlm_r1.config import Recipe
from vlm_r1.config_file import load_config
from vlm_r1.errors import StudyError
from vlm_r1.lab.grid import Job
from vlm_r1.lab.intervals import Estimate, draws, estimate
from vlm_r1.lab.measures import MANY_RESAMPLES, RESAMPLES, Rows, log_number, number, read_rows
from vlm_r1.lab.study import BEFORE, Measure, Quantity, Study
from vlm_r1.report.curves import phase_step
from vlm_r1.runtime.runlog import read_eval, read_metrics

LOG = "log:"
Budget = Literal["end", "equal_samples", "equal_seconds", "equal_tokens"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """An evaluation of a run: its phase, and what training had used by then.

    `samples` are questions, `tokens` those of sampled or taught answers, `seconds` of training steps on that machine.

    Example: `Point(phase="step-40", step=40, samples=960, tokens=400_000, seconds=80.0)`.
    """

    phase: str
    step: int
    samples: int
    tokens: int
    seconds: float

    def used(self, at: Budget) -> float:
        """Of the thing that is to be equal."""
        return {"equal_samples": self.samples, "equal_seconds": self.seconds, "equal_tokens": self.tokens}[at]


@dataclass(slots=True)
class Measured:
    """A finished run: its evaluations in order, and the numbers that were taken from them so far."""

    job: Job
    points: tuple[Point, ...]
    _values: dict[tuple[str, ...], np.ndarray] = field(default_factory=dict)
    _rows: dict[str, dict[str, Rows]] = field(default_factory=dict)

    def at(self, budget: Budget, limit: float) -> Point:
        """The last evaluation that used no more than `limit` (with 0.1 % of tolerance), or the last of all."""
        if budget == "end":
            return self.points[-1]
        return [p for p in self.points if p.used(budget) <= limit * 1.001][-1]

    def values(self, point: Point, measure: Measure) -> np.ndarray:
        """A measure at an evaluation, `(1 + resamples,)`: on all questions, then on resampled ones; NaN: undefined."""
        key = (point.phase, measure.metric, *measure.splits)
        if key not in self._values:
            self._values[key] = self._take(point, measure)
        return self._values[key]

    def plain(self, point: Point, measure: Measure) -> float | None:
        """A measure on all questions alone, for curves; None where it is not defined."""
        if measure.metric.startswith(LOG):
            return log_number(measure.metric, self.job.folder, point.step)
        rows = [self._split(point, split) for split in measure.splits]
        found = [number(measure.metric, r)(np.ones(len(r), dtype=np.int64)) for r in rows]
        return None if any(value is None for value in found) else float(np.mean([v for v in found if v is not None]))

    def questions(self, point: Point, split: str) -> list[tuple[str, str]]:
        """Which questions a split asked: their ids and texts."""
        return [(outcome.sample_id, outcome.question) for outcome, _ in self._split(point, split)]

    def _take(self, point: Point, measure: Measure) -> np.ndarray:
        if measure.metric.startswith(LOG):
            value = log_number(measure.metric, self.job.folder, point.step)
            return np.array([np.nan if value is None else value])
        of_splits = []
        for split in measure.splits:
            rows = self._split(point, split)
            metric = number(measure.metric, rows)
            counts_BN = draws(len(rows), RESAMPLES.get(measure.metric, MANY_RESAMPLES), zlib.crc32(split.encode()))
            found = [metric(counts_N) for counts_N in counts_BN]
            of_splits.append([np.nan if value is None else value for value in found])
        return np.mean(of_splits, axis=0)

    def _split(self, point: Point, split: str) -> Rows:
        if point.phase not in self._rows:
            self._rows[point.phase] = read_rows(self.job.folder, point.phase)
        rows = self._rows[point.phase].get(split)
        if not rows:
            raise StudyError(f'{self.job.name}: evaluation {point.phase} has no split "{split}"; is it in data.eval?')
        return rows


def measured(job: Job) -> Measured:
    """The evaluations of a finished run. Raises `StudyError` where there is none."""
    recipe = load_config(job.folder / "config.yaml")
    metrics = read_metrics(job.folder)
    points = []
    for phase in read_eval(job.folder):
        step = phase_step(phase, recipe.run.steps)
        if step is None:
            continue
        done = [row for row in metrics if row["step"] <= step]
        points.append(
            Point(
                phase=phase,
                step=step,
                samples=step * questions_per_step(recipe),
                tokens=round(sum(row.get("tokens/answer") or 0 for row in done)),
                seconds=sum(row.get("time/step_s") or 0.0 for row in done),
            )
        )
    if not points:
        raise StudyError(f"{job.folder}: has no evaluation; a study's recipe names its splits in data.eval")
    return Measured(job, tuple(sorted(points, key=lambda point: point.step)))


def questions_per_step(recipe: Recipe) -> int:
    """Questions that a step is trained on: prompts of RL; images of SFT with all their questions."""
    if recipe.method == "grpo":
        return recipe.rl.prompts_per_step
    scenes = recipe.data.train[0].scenes if recipe.data.train else None
    return recipe.sft.images_per_step * (scenes.per_image if scenes else 1)


def take_quantity(quantity: Quantity, study: Study, runs: Sequence[Measured]) -> Estimate | None:
    """A quantity over the seeds that all its arms have; None where there is no such seed or a number is not defined.

    Raises `StudyError` where the runs were asked different questions: they cannot be subtracted.
    """
    measure = study.measures[quantity.measure]
    arms = {term: {m.job.seed: m for m in runs if m.job.arm == term.removesuffix(BEFORE)} for term in quantity.terms}
    seeds = sorted(set.intersection(*(set(found) for found in arms.values())))
    if not seeds:
        return None
    trained = [found[seed] for term, found in arms.items() if not term.endswith(BEFORE) for seed in seeds]
    limit = min((m.points[-1].used(quantity.at) for m in trained), default=0.0) if quantity.at != "end" else 0.0
    chosen = {
        term: [
            (run, run.points[0] if term.endswith(BEFORE) else run.at(quantity.at, limit))
            for run in (found[seed] for seed in seeds)
        ]
        for term, found in arms.items()
    }
    _same_questions([pair for pairs in chosen.values() for pair in pairs], measure)
    values_SB = np.zeros((len(seeds), 1))
    for term, weight in quantity.terms.items():
        values_SB = values_SB + weight * np.array([run.values(point, measure) for run, point in chosen[term]])
    return None if np.isnan(values_SB[:, 0]).any() else estimate(_defined(values_SB))


def _defined(values_SB: np.ndarray) -> np.ndarray:
    """Without the resamples in which a number is not defined for some run."""
    return values_SB[:, ~np.isnan(values_SB).any(axis=0)]


def _same_questions(chosen: Sequence[tuple[Measured, Point]], measure: Measure) -> None:
    for split in measure.splits:
        first, point = chosen[0]
        asked = first.questions(point, split)
        for run, at in chosen[1:]:
            if run.questions(at, split) != asked:
                raise StudyError(
                    f'{run.job.name} and {first.job.name} were asked different questions in split "{split}": give both '
                    "arms the same data.eval"
                )
