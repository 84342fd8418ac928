"""Evaluations and checkpoints of a run, the same for reinforcement learning and supervised fine-tuning: when they are
due, which checkpoint is the best one, and when the run ends."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from vlm_r1.config import Recipe
from vlm_r1.errors import EngineError, Stopped
from vlm_r1.eval.best import Best, find_best, is_stale
from vlm_r1.eval.measures import shown
from vlm_r1.eval.run import data_of, evaluate
from vlm_r1.rollout.engine import RolloutEngine
from vlm_r1.runtime.divergence import check_weights
from vlm_r1.runtime.runlog import read_eval
from vlm_r1.runtime.session import Session


def evaluation_due(recipe: Recipe, step: int) -> bool:
    """Whether `step` (from 1) is one of those that `eval.every` names.

    The last one is evaluated in any case: as `after`, or here where the best step is chosen among all.
    """
    last = step == recipe.run.steps
    return recipe.eval.keep_best is not None if last else bool(recipe.eval.every) and step % recipe.eval.every == 0


def evaluate_splits(
    session: Session, phase: str, engine: RolloutEngine | None = None, version: int | None = None
) -> None:
    """Answer the held-out splits, on all processes, print their numbers, and keep them in the run folder under `phase`.

    `engine` answers (None: the policy itself), with weights of `version`; `EngineError` where it cannot.
    """
    splits = session.inputs.splits
    if not splits:
        return
    if session.world.is_main:
        count = sum(map(len, splits.values()))
        print(f"{phase}: answering {count} held-out questions", file=sys.stderr, flush=True)
    answers = session.engine if engine is None else engine
    family, recipe, world = session.loaded.family, session.recipe, session.world
    metrics, rows = evaluate(answers, family, splits, recipe, world, version=version, phase=phase)
    if session.world.is_main:
        for split, values in metrics.items():
            print(f"{phase}: {split}: {shown(values)}", file=sys.stderr, flush=True)
        session.log.evaluation(phase, metrics, rows, data_of(recipe))


class Checkpoints:
    """`with Checkpoints(session, state, evaluate) as checkpoints: for step in checkpoints.steps(): ...`

    `state(step)` is what the loop keeps after `step` steps, `evaluate(phase, step)` answers the held-out splits with
    the weights of that step. Every process calls every method. Where an `EngineError` or a signal, which all processes
    raise together, ends the run, the steps that were done are saved first.
    """

    def __init__(
        self, session: Session, state: Callable[[int], Mapping[str, Any]], evaluate: Callable[[str, int], None]
    ) -> None:
        self.session, self.state, self.evaluate = session, state, evaluate
        self.done = self.saved = session.start
        self.best: Best | None = None
        self._compare()
        session.writer.prune()  # one that was killed may have left more

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if not isinstance(error, EngineError | Stopped):
            return
        self.session.world.may_stop = False
        if self.done > self.saved:
            self._save()
        self.session.writer.wait()
        if self.session.world.is_main:
            told = f"saved checkpoint-{self.saved}" if self.saved else "saved nothing yet: no step was done"
            if isinstance(error, Stopped):
                told = f"stopped by {signal.Signals(error.code - 128).name}; {told}. The same command continues the run"
            print(f"{self.session.run_dir}: {told}", file=sys.stderr, flush=True)

    def steps(self) -> Iterator[int]:
        """The steps that are left, from 0, until the run no longer improves.

        An evaluation of the step that was saved comes first where it was cut off.
        """
        if self.done and not self._is_known(f"step-{self.done}"):
            self._evaluate()
        for step in range(self.session.start, self.session.recipe.run.steps):
            if is_stale(self.best, self.session.recipe):
                return
            yield step

    def step_done(self) -> None:
        """Evaluate, and start to write a checkpoint, where the recipe asks for it after `done` steps."""
        recipe, world = self.session.recipe, self.session.world
        world.may_stop = world.size == 1
        due = not self.session.skipped and self.done % recipe.run.save_every == 0
        due |= self._evaluate() or self.done == recipe.run.steps
        if due:
            self._save()

    def _evaluate(self) -> bool:
        """Evaluate where it is due; whether the step must be saved, as it is the best one or the last."""
        recipe = self.session.recipe
        if not evaluation_due(recipe, self.done):
            return False
        self.evaluate(f"step-{self.done}", self.done)
        self._compare()
        if self.best is None:
            return False
        stale = is_stale(self.best, recipe)
        told = f"{recipe.eval.keep_best}: highest at step {self.best.step} ({self.best.value:.4f})"
        if self.session.world.is_main:
            print(f"{told}{'; stopping early' if stale else ''}", file=sys.stderr, flush=True)
        return stale or self.best.step == self.done

    def finish(self) -> Path:
        """Write `final/`, evaluate it as `after`, and return it. Raises `CheckpointError` without the best."""
        session, chosen = self.session, self.done
        if session.recipe.eval.load_best_at_end and self.best is not None and self.best.step != chosen:
            chosen = self.best.step
            session.load(chosen)
        final = session.finish()
        phase = f"step-{chosen}"
        if self.best is None or not self._is_known(phase):
            self.evaluate("after", chosen)
        elif session.world.is_main:
            session.log.copy_evaluation(phase, "after")
        return final

    def _is_known(self, phase: str) -> bool:
        world = self.session.world
        return world.gather(world.is_main and phase in read_eval(self.session.run_dir))[0]

    def _compare(self) -> None:
        """Find the best step so far, whose checkpoint stays."""
        session = self.session
        if session.recipe.eval.keep_best is not None:
            found = find_best(session.run_dir, session.recipe, self.done) if session.world.is_main else None
            self.best = session.world.gather(found)[0]
            session.writer.kept = None if self.best is None else self.best.step

    def _save(self) -> None:
        check_weights(self.session, self.done)
        self.session.save(self.done, self.state(self.done))
        self.saved = self.done
