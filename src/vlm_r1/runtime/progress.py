"""Progress of a run: a panel that renews itself on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import io
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text

from vlm_r1.runtime.panel import RunPanel, clock


class Progress:
    """`with Progress(steps, start) as progress: progress.show(step, metrics, names)`."""

    def __init__(self, steps: int, start: int = 0, enabled: bool = True, title: str = "", lines: int = 40) -> None:
        """`lines` is about how many lines a run of `steps` prints where standard error is no terminal."""
        self.steps, self.first, self.enabled, self.live = steps, start, enabled, False
        self.every = max(1, (steps - start) // lines)
        self.panel = RunPanel(steps, start, title)
        self._open = ExitStack()

    def __enter__(self) -> Progress:
        console = Console(file=sys.stderr)
        self.live = self.enabled and sys.stderr.isatty() and not console.is_dumb_terminal
        if self.live:
            # Not rich's own redirection: its streams let click write past them and read markup in what is printed.
            live = Live(self.panel, console=console, redirect_stdout=False, redirect_stderr=False)
            self._open.enter_context(live)
            self._lift_output(console)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.panel.end()
        self._open.close()

    def show(self, step: int, metrics: Mapping[str, float], names: Sequence[str], warnings: Sequence[str] = ()) -> None:
        """Report that `step` steps are done, with these metrics (the first of `names` as a curve) and warnings."""
        self.panel.update(step, metrics, names, warnings)
        if not self.enabled:
            return
        for warning in warnings:
            print(f"warning: step {step}: {warning}", file=sys.stderr, flush=True)
        due = step in (self.first + 1, self.steps) or (step - self.first) % self.every == 0
        if due and not self.live:
            shown = "  ".join(f"{name} {metrics[name]:.4g}" for name in names if name in metrics)
            per_step = self.panel.per_step
            left = clock(per_step * (self.steps - step))
            line = f"step {step}/{self.steps}  {shown}  {per_step:.2f} s/step  {left} left"
            print(line, file=sys.stderr, flush=True)

    def _lift_output(self, console: Console) -> None:
        """Until the panel closes, what is printed or logged appears above it; a stdout that is a file stays one."""
        moved: dict[TextIO, _Above] = {sys.stderr: self._open.enter_context(_Above(console, sys.stderr))}
        self._open.enter_context(redirect_stderr(moved[sys.stderr]))
        if sys.stdout.isatty():
            moved[sys.stdout] = self._open.enter_context(_Above(console, sys.stdout))
            self._open.enter_context(redirect_stdout(moved[sys.stdout]))
        loggers = [logging.getLogger(), *logging.Logger.manager.loggerDict.values()]
        for handler in {handler for logger in loggers for handler in getattr(logger, "handlers", ())}:
            if isinstance(handler, logging.StreamHandler) and handler.stream in moved:
                self._open.callback(handler.setStream, handler.setStream(moved[handler.stream]))


class Countdown:
    """Lines such as `before: 320 of 800 questions, 0:41 left`: after `wait_s` seconds, then every twentieth of the way,
    none sooner than `wait_s` after the one before.

    Example: `countdown = Countdown("before", 800); countdown.show(320)`.
    """

    def __init__(
        self,
        phase: str,
        total: int,
        enabled: bool = True,
        wait_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.phase, self.total, self.enabled, self.wait_s, self.clock = phase, total, enabled, wait_s, clock
        self.started = self.told = clock()
        self.next = 1

    def show(self, done: int) -> None:
        """`done` questions are answered."""
        moment = self.clock()
        if not self.enabled or not self.next <= done < self.total or moment - self.told < self.wait_s:
            return
        self.told, self.next = moment, done + max(1, self.total // 20)
        left = clock((moment - self.started) / done * (self.total - done))
        print(f"{self.phase}: {done} of {self.total} questions, {left} left", file=sys.stderr, flush=True)


class _Above(io.TextIOBase):
    """A stream in the place of a terminal's: whole lines are printed above the panel, the rest when it is closed."""

    encoding, errors = "utf-8", "replace"  # without them click takes the stream for a broken one and goes past it

    def __init__(self, console: Console, terminal: TextIO) -> None:
        self.console, self.terminal, self.rest = console, terminal, ""

    def write(self, text: str) -> int:
        *lines, self.rest = (self.rest + text).split("\n")
        for line in lines:
            self.console.print(Text.from_ansi(line), soft_wrap=True)
        return len(text)

    def close(self) -> None:
        if self.rest:
            self.write("\n")
        super().close()

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.terminal.fileno()
