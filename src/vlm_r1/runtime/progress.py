"""Live progress: one moving line on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType


class Progress:
    """`with Progress(steps, start) as progress: progress.show(step, metrics, names)`."""

    def __init__(self, steps: int, start: int = 0, enabled: bool = True, lines: int = 40) -> None:
        """`lines` is about how many lines a run of `steps` prints where the output is no terminal."""
        self.steps, self.first, self.enabled = steps, start, enabled
        self.live = enabled and sys.stderr.isatty()
        self.every = max(1, (steps - start) // lines)
        self.started = time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self.live:
            sys.stderr.write("\n")

    def show(self, step: int, metrics: Mapping[str, float], names: Sequence[str]) -> None:
        """Report that `step` steps are done, with these metrics."""
        if not self.enabled:
            return
        last = step == self.steps
        if not (self.live or last or (step - self.first) % self.every == 0 or step == self.first + 1):
            return
        per_step = (time.monotonic() - self.started) / max(1, step - self.first)
        left = per_step * (self.steps - step)
        shown = "  ".join(f"{name} {metrics[name]:.4g}" for name in names if name in metrics)
        line = f"step {step}/{self.steps}  {shown}  {per_step:.2f} s/step  {_clock(left)} left"
        sys.stderr.write(f"\r\x1b[2K{line}" if self.live else line + "\n")
        sys.stderr.flush()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
