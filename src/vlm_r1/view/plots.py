"""Curves as inline SVG that takes its colours from the page; view.js adds the reading of values under the pointer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.ticker import MaxNLocator

from vlm_r1.report.curves import FREE, Line, Points, binned, constant, moving_average

WIDTH, HEIGHT = 340, 160
LEFT, RIGHT, TOP, BOTTOM = 46, 8, 8, 22
"""Units of a chart's drawing: its size, and the space around the field that holds the curves."""

COLOURS = 8
"""view.css has so many: --s0 to --s7."""

SMOOTHED_FROM = 40
"""A curve of so many points is drawn faint, with its moving average in bold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Path:
    """One drawn curve: `points` is "x,y x,y ..." in units of the drawing, `colour` a number below `COLOURS`."""

    label: str
    colour: int
    points: str
    faint: bool = False
    dots: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """A chart ready for the template.

    `axes` is (step at the left edge, step at the right one, value at the bottom, value at the top); ticks hold (place
    in the drawing, text); `legend` holds (label, colour). Of curves that never change only `constant` is shown, their
    values in words.
    """

    title: str
    note: str
    axes: tuple[float, float, float, float]
    paths: tuple[Path, ...]
    ticks_x: tuple[tuple[float, str], ...]
    ticks_y: tuple[tuple[float, str], ...]
    legend: tuple[tuple[str, int], ...]
    constant: str = ""


def plots(title: str, note: str, lines: Sequence[Line], runs: Sequence[str]) -> list[Plot]:
    """The charts of one plan: of one run a chart with all lines, of several runs a chart a line with all runs.

    `line.runs` holds a curve for each name in `runs`; curves without points are left out, and charts without curves.
    """
    if len(runs) == 1:
        charts = [(title, [(line.label, line.runs[0]) for line in lines])]
    else:
        several = len(lines) > 1
        charts = [
            (f"{title}: {line.label}" if several else title, list(zip(runs, line.runs, strict=True))) for line in lines
        ]
    drawn = []
    for name, curves in charts:
        known = [(label, place % COLOURS, _finite(points)) for place, (label, points) in enumerate(curves)]
        known = [(label, colour, points) for label, colour, points in known if points]
        if known:
            drawn.append(draw(name, note, known, from_zero=title not in FREE))
    return drawn


def draw(title: str, note: str, curves: Sequence[tuple[str, int, Points]], from_zero: bool) -> Plot:
    """One chart; `curves` holds (label, colour, points), each with at least one finite point."""
    shown = [(label, colour, *_columns(points)) for label, colour, points in curves]
    axes = _axes([x for _, _, x, _ in shown], [y for _, _, _, y in shown], from_zero)
    paths = []
    for label, colour, x, y in shown:
        if len(y) >= SMOOTHED_FROM:
            average = moving_average(y, max(3, len(y) // 12))
            paths += [_path(label, colour, x, y, axes, faint=True), _path(label, colour, x, average, axes)]
        else:
            paths.append(_path(label, colour, x, y, axes))
    low_x, high_x, low, high = axes
    return Plot(
        title=title,
        note=note,
        axes=axes,
        paths=tuple(sorted(paths, key=lambda path: not path.faint)),
        ticks_x=tuple((_x(t, axes), f"{t:g}") for t in _ticks(low_x, high_x, integer=True)),
        ticks_y=tuple((_y(t, axes), f"{t:g}") for t in _ticks(low, high)),
        legend=tuple((label, colour) for label, colour, _ in curves if label),
        constant=constant([Line(label=label, runs=[points]) for label, _, points in curves], from_zero),
    )


def _finite(points: Points) -> Points:
    return [(step, value) for step, value in points if math.isfinite(value)]


def _columns(points: Points) -> tuple[np.ndarray, np.ndarray]:
    x, y = (np.asarray(column, dtype=np.float64) for column in zip(*points, strict=True))
    return binned(x, y)


def _axes(xs: list[np.ndarray], ys: list[np.ndarray], from_zero: bool) -> tuple[float, float, float, float]:
    low_x, high_x = min(float(x.min()) for x in xs), max(float(x.max()) for x in xs)
    low, high = min(float(y.min()) for y in ys), max(float(y.max()) for y in ys)
    if from_zero and low >= 0:
        low = 0.0
    if high == low:
        low, high = (0.0, 1.0) if high == 0 else (low - abs(low) / 2, high + abs(high) / 2)
    space = (high - low) * 0.06
    return (low_x, max(high_x, low_x + 1), low if low == 0 else low - space, high + space)


def _ticks(low: float, high: float, integer: bool = False) -> list[float]:
    found = MaxNLocator(5, integer=integer).tick_values(low, high)
    return [float(t) + 0.0 for t in found if low - 1e-12 <= t <= high + 1e-12]


def _x(step: float, axes: tuple[float, float, float, float]) -> float:
    return round(LEFT + (step - axes[0]) / (axes[1] - axes[0]) * (WIDTH - LEFT - RIGHT), 2)


def _y(value: float, axes: tuple[float, float, float, float]) -> float:
    return round(HEIGHT - BOTTOM - (value - axes[2]) / (axes[3] - axes[2]) * (HEIGHT - TOP - BOTTOM), 2)


def _path(
    label: str,
    colour: int,
    x: np.ndarray,
    y: np.ndarray,
    axes: tuple[float, float, float, float],
    faint: bool = False,
) -> Path:
    places = [(_x(step, axes), _y(value, axes)) for step, value in zip(x.tolist(), y.tolist(), strict=True)]
    return Path(
        label=label,
        colour=colour,
        points=" ".join(f"{a:g},{b:g}" for a, b in places),
        faint=faint,
        dots=tuple(places) if len(places) < 16 else (),
    )
