"""When a run is saved: every `run.save_every` steps, at its end, and where its engine is lost."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from vlm_r1.errors import EngineError
from vlm_r1.runtime.session import Session


class Checkpoints:
    """`with Checkpoints(session, state) as checkpoints: ...`; `state(step)` is what the loop keeps after `step` steps.

    Every process calls every method. Where an `EngineError`, which all processes raise together, ends the run, the
    steps that were done are saved first.
    """

    def __init__(self, session: Session, state: Callable[[int], Mapping[str, Any]]) -> None:
        self.session, self.state = session, state
        self.done = self.saved = session.start

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if not isinstance(error, EngineError):
            return
        if self.done > self.saved:
            self._save()
        self.session.writer.wait()
        if self.session.world.is_main:
            told = f"checkpoint-{self.saved}" if self.saved else "nothing yet: no step was done"
            print(f"{self.session.run_dir}: saved {told}", file=sys.stderr, flush=True)

    def save_when_due(self) -> None:
        """Start to write a checkpoint of the steps done, where the recipe asks for one."""
        run = self.session.recipe.run
        if self.done % run.save_every == 0 or self.done == run.steps:
            self._save()

    def _save(self) -> None:
        self.session.save(self.done, self.state(self.done))
        self.saved = self.done
