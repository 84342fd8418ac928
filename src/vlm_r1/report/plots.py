"""Curves as inline SVG that takes its colours from the page, in the report and, with values to read, in the viewer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from vlm_r1.report.curves import (
    FREE,
    IDLE,
    PLANS,
    Line,
    Metrics,
    Points,
    band,
    binned,
    constant,
    curve,
    in_words,
    moving_average,
)

WIDTH, HEIGHT = 340, 160
LEFT, RIGHT, TOP, BOTTOM = 46, 8, 8, 22
"""Units of a chart's drawing: its size, and the space around the field that holds the curves."""

SIZE = (WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM)

COLOURS = 8
"""The pages' rules have so many: --s0 to --s7."""

SMOOTHED_FROM = 40
"""A curve of so many points is drawn faint, with its moving average in bold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Path:
    """One drawn curve: `points` is "x,y x,y ..." in units of the drawing, `colour` a number below `COLOURS`.

    An `area` is filled: the band from the lowest to the highest of several runs.
    """

    label: str
    colour: int
    points: str
    faint: bool = False
    area: bool = False
    dots: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """A chart ready for the template.

    `axes` is (step at the left edge, step at the right one, value at the bottom, value at the top); ticks hold (place
    in the drawing, text); `legend` holds (label, colour), and `words` say what it shows to those who do not see it. Of
    curves that hardly change only `constant` is shown, their values in words.
    """

    title: str
    note: str
    axes: tuple[float, float, float, float]
    paths: tuple[Path, ...]
    ticks_x: tuple[tuple[float, str], ...]
    ticks_y: tuple[tuple[float, str], ...]
    legend: tuple[tuple[str, int], ...]
    words: str
    constant: str = ""


def charts(runs: Sequence[Metrics], evals: Sequence[Mapping[str, Any]]) -> list[Plot]:
    """The report's charts, each run given by its metrics lines and its `eval.json`: of several runs means and bands."""
    drawn = []
    for title, note, plan in PLANS:
        lines = [
            (line.label, [found for points in line.runs if (found := _finite(points))]) for line in plan(runs, evals)
        ]
        lines = [(label, curves) for label, curves in lines if curves]
        if not lines or (title in IDLE and not any(y for _, curves in lines for points in curves for _, y in points)):
            continue
        if title == "Loss" and any(curve(run, "reward") for run in runs):
            note = "its height says little while ratios are 1"
        if len(lines) > COLOURS:
            note = f"{note}; the first {COLOURS} of {len(lines)}".removeprefix("; ")
        shown = [
            (label if len(lines) > 1 else "", place, curves) for place, (label, curves) in enumerate(lines[:COLOURS])
        ]
        drawn.append(draw(title, note, shown, from_zero=title not in FREE))
    return drawn


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
            curves_of = [(label, colour, [points]) for label, colour, points in known]
            drawn.append(draw(name, note, curves_of, from_zero=title not in FREE))
    return drawn


def draw(title: str, note: str, lines: Sequence[tuple[str, int, list[Points]]], from_zero: bool) -> Plot:
    """One chart; `lines` holds (label, colour, curves), each curve with at least one finite point.

    Several curves of a line are drawn as their mean, with a band from the lowest to the highest.
    """
    shown = [(label, colour, *_columns(curves)) for label, colour, curves in lines]
    axes = _axes([x for _, _, x, _ in shown], [y for _, _, _, ys in shown for y in ys], from_zero)
    paths = []
    for label, colour, x, ys in shown:
        if len(ys) > 1:
            around = (np.concatenate([x, x[::-1]]), np.concatenate([ys[0], ys[2][::-1]]))
            paths += [_path(label, colour, *around, axes, area=True), _path(label, colour, x, ys[1], axes)]
        elif len(x) >= SMOOTHED_FROM:
            average = moving_average(ys[0], max(3, len(x) // 12))
            paths += [_path(label, colour, x, ys[0], axes, faint=True), _path(label, colour, x, average, axes)]
        else:
            paths.append(_path(label, colour, x, ys[0], axes))
    low_x, high_x, low, high = axes
    named = [Line(label=label, runs=curves) for label, _, curves in lines]
    return Plot(
        title=title,
        note=note,
        axes=axes,
        paths=tuple(sorted(paths, key=lambda path: not (path.faint or path.area))),
        ticks_x=tuple((_x(t, axes), f"{t:g}") for t in _ticks(low_x, high_x, integer=True)),
        ticks_y=tuple((_y(t, axes), f"{t:g}") for t in _ticks(low, high)),
        legend=tuple((label, colour) for label, colour, _ in lines if label),
        words="; ".join(in_words(line, line.label or title) for line in named),
        constant=constant(named, from_zero),
    )


def _finite(points: Points) -> Points:
    return [(step, value) for step, value in points if math.isfinite(value)]


def _columns(curves: list[Points]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Steps, and the values of one curve, or the lowest, mean and highest of several."""
    if len(curves) > 1:
        x, *ys = band(curves)
        return x, ys
    x, y = (np.asarray(column, dtype=np.float64) for column in zip(*curves[0], strict=True))
    x, y = binned(x, y)
    return x, [y]


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
    area: bool = False,
) -> Path:
    places = [(_x(step, axes), _y(value, axes)) for step, value in zip(x.tolist(), y.tolist(), strict=True)]
    return Path(
        label=label,
        colour=colour,
        points=" ".join(f"{a:g},{b:g}" for a, b in places),
        faint=faint,
        area=area,
        dots=tuple(places) if len(places) < 16 and not area else (),
    )
