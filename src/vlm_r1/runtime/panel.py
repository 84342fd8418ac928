"""The panel that a terminal shows while a run trains: step, sparkline, seconds of each phase, time left, warning."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.constrain import Constrain
from rich.measure import Measurement
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

NARROW, MAX_WIDTH = 44, 100
"""Columns: a narrower terminal gets two lines without a frame, a wider one leaves the rest free."""

BLOCKS, ASCII = "▁▂▃▄▅▆▇█", "_.-=+*%#"
_LABEL = len("warning")


class RunPanel:
    """What is known of a run, drawn anew each time the terminal is refreshed.

    Example: `panel = RunPanel(steps=10); panel.update(1, {"reward": 0.5}, ("reward",)); rich.print(panel)`.
    """

    def __init__(
        self, steps: int, start: int = 0, title: str = "", clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.steps, self.first, self.title, self.clock = steps, start, title, clock
        self.step, self.ended = start, False
        self.started = self.renewed = clock()
        self.metrics: Mapping[str, float] = {}
        self.names: Sequence[str] = ()
        self.curve: list[float] = []
        self.warning = ""

    def update(
        self, step: int, metrics: Mapping[str, float], names: Sequence[str], warnings: Sequence[str] = ()
    ) -> None:
        """`step` steps are done. The first of `names` gets the sparkline; metrics `time/PHASE_s` are the phases."""
        self.step, self.metrics, self.names, self.renewed = step, metrics, names, self.clock()
        self.curve.append(metrics.get(names[0], math.nan))
        if warnings:
            self.warning = f"step {step}: {warnings[-1]}"

    def end(self) -> None:
        """No step is under way."""
        self.ended = True

    @property
    def per_step(self) -> float:
        """Seconds a step, evaluations and checkpoints between them included."""
        return (self.renewed - self.started) / max(1, self.step - self.first)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Rich's hook."""
        width = min(options.max_width - len("^C"), MAX_WIDTH)  # the terminal writes ^C behind the last line
        if width < NARROW:
            yield Constrain(Group(*self._narrow()), width)
            return
        bars = Table.grid(padding=(0, 2, 0, 0), expand=True)
        for settings in ({"style": "dim", "min_width": _LABEL}, {}, {"ratio": 1}, {"style": "dim"}):
            bars.add_column(no_wrap=True, **settings)  # type: ignore[arg-type]
        done = f"{self.step:{len(str(self.steps))}} of {self.steps}"
        bars.add_row("step", done, ProgressBar(self.steps, self.step, complete_style="cyan"), self._time_left())
        if self.curve:
            known = [value for value in self.curve if math.isfinite(value)]
            span = f"{min(known):.3g} to {max(known):.3g}" if known and width >= 60 else ""
            bars.add_row(self.names[0], Text(_number(self.curve[-1]), "bold"), _Sparkline(self.curve), span)
        rows = Table.grid(padding=(0, 2, 0, 0))
        rows.add_column(style="dim", min_width=_LABEL, no_wrap=True)
        rows.add_column()
        if phases := list(self._phases()):
            rows.add_row("seconds", _Pairs(phases))
        if also := [(name, _number(self.metrics[name])) for name in self._others()]:
            rows.add_row("also", _Pairs(also))
        if self.warning:
            rows.add_row(Text("warning", "bold yellow"), Text(self.warning, "yellow"))
        yield Panel(
            Group(bars, rows) if rows.row_count else bars,
            title=Text(self.title, "bold") if self.title else None,
            subtitle=None if self.ended else Text(f"step {self.step + 1}: {self._under_way():.0f} s", "dim"),
            subtitle_align="right",
            width=width,
        )

    def _narrow(self) -> Iterable[RenderableType]:
        shown = [("step", f"{self.step}/{self.steps}")]
        shown += [(self.names[0], _number(self.curve[-1]))] if self.curve else []
        number, _, word = self._time_left().partition(" ")
        yield _Pairs([*shown, (number, word)] if number else shown)
        if self.warning:
            yield Text(f"warning: {self.warning}", "yellow")

    def _under_way(self) -> float:
        return self.clock() - self.renewed

    def _time_left(self) -> str:
        if self.ended:
            return f"{clock(self.clock() - self.started)} in all"
        if self.step == self.first:
            return ""
        return f"{clock(max(0.0, self.per_step * (self.steps - self.step) - self._under_way()))} left"

    def _phases(self) -> Iterable[tuple[str, str]]:
        """Seconds of the last step's phases, and of a step on the whole."""
        for name, value in self.metrics.items():
            if name.startswith("time/") and name.endswith("_s") and name != "time/step_s":
                yield name.removeprefix("time/").removesuffix("_s"), f"{value:.2f}"
        if self.metrics:
            yield "step", f"{self.per_step:.2f}"

    def _others(self) -> list[str]:
        return [name for name in self.names[1:] if name in self.metrics and not name.startswith("time/")]


class _Sparkline:
    """A curve one line high, as wide as its place."""

    def __init__(self, values: Sequence[float]) -> None:
        self.values = values

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(sparkline(self.values, options.max_width, ASCII if options.ascii_only else BLOCKS), "green")

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(1, options.max_width)


class _Pairs:
    """Names and values in rows that break between pairs, not inside one."""

    def __init__(self, pairs: Sequence[tuple[str, str]]) -> None:
        self.pairs = [Text.assemble((name, "dim"), f" {value}") for name, value in pairs]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        line = Text()
        for pair in self.pairs:
            if line and line.cell_len + 2 + pair.cell_len > options.max_width:
                yield line
                line = Text()
            line = Text("  ").join([line, pair]) if line else pair
        yield line

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(1, options.max_width)


def sparkline(values: Sequence[float], width: int, marks: str = BLOCKS) -> str:
    """One mark a value, the lowest mark for the lowest; of more than `width` values neighbours are averaged.

    What is not finite is left out of the averages; a place without any value is a space.

    >>> sparkline([0, 1, 2, 3], 4, "abcd")
    'abcd'
    """
    n = min(len(values), max(1, width))
    pieces = (values[i * len(values) // n : (i + 1) * len(values) // n] for i in range(n))
    finite = [[x for x in piece if math.isfinite(x)] for piece in pieces]
    means = [sum(piece) / len(piece) if piece else None for piece in finite]
    known = [mean for mean in means if mean is not None]
    low, high = min(known, default=0.0), max(known, default=0.0)
    top = len(marks) - 1
    scale = top / (high - low) if high > low else 0.0
    return "".join(" " if mean is None else marks[round((mean - low) * scale)] for mean in means)


def clock(seconds: float) -> str:
    """Seconds as people read them.

    >>> clock(61), clock(3661)
    ('1:01', '1:01:01')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _number(value: float) -> str:
    return f"{value:.4g}"
