"""Curves out of metrics and evaluations: which there are, averages and bands, and a chart as PNG."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vlm_r1.report.findings import split_name

Points = list[tuple[int, float]]
Metrics = Sequence[Mapping[str, Any]]

MAX_POINTS = 240
"""A longer curve is averaged in this many bins: a screen shows no more, and the page stays small."""

_PLAIN = ("#4a6fa5", "#e07a3f", "#3f9b6c", "#a05195", "#b8a037", "#6b7280", "#c0392b", "#17a2b8")


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One named quantity; `runs` holds one curve for each run that logged it."""

    label: str
    runs: list[Points]


def is_smoothed(runs: Sequence[Metrics]) -> bool:
    """Whether curves are drawn faint with their moving average in bold: one run, long enough."""
    return len(runs) == 1 and len(runs[0]) >= 40


def curve(metrics: Metrics, name: str) -> Points:
    """One metric of one run as (step, value), without the steps that lack it."""
    return [(row["step"], float(row[name])) for row in metrics if isinstance(row.get(name), int | float)]


def held_out(metrics: Metrics, evaluation: Mapping[str, Any], split: str, metric: str) -> Points:
    """A held-out metric during training, with the evaluations before (step 0) and after (the last step)."""
    points = dict(curve(metrics, f"eval/{split}/{metric}"))
    last = max((row["step"] for row in metrics), default=1)
    for phase, splits in evaluation.items():
        step = phase_step(phase, last)
        value = splits.get(split, {}).get(metric)
        if step is not None and isinstance(value, int | float):
            points.setdefault(step, float(value))
    return sorted(points.items())


def phase_step(phase: str, last: int) -> int | None:
    """The optimiser step that an evaluation belongs to; None for a name that is no place in the training.

    >>> phase_step("before", 90), phase_step("step-25", 90), phase_step("after", 90), phase_step("mine", 90)
    (0, 25, 90, None)
    """
    match = re.fullmatch(r"step-(\d{1,15})", phase)
    return int(match[1]) if match else {"before": 0, "after": last}.get(phase)


def logged_names(runs: Sequence[Metrics]) -> list[str]:
    """Every name in the runs' metrics, once, in the order they appear."""
    return list(dict.fromkeys(name for run in runs for row in run for name in row))


def named(*names: str, **labels: str) -> Callable[..., list[Line]]:
    def lines(runs: Sequence[Metrics], evals: Sequence[Mapping[str, Any]]) -> list[Line]:
        return [Line(label=labels.get(name, name), runs=[curve(run, name) for run in runs]) for name in names]

    return lines


def matching(pattern: str) -> Callable[..., list[Line]]:
    def lines(runs: Sequence[Metrics], evals: Sequence[Mapping[str, Any]]) -> list[Line]:
        names = {name: re.fullmatch(pattern, name) for name in logged_names(runs)}
        return [Line(label=match[1], runs=[curve(run, name) for run in runs]) for name, match in names.items() if match]

    return lines


def held_out_lines(metric: str) -> Callable[..., list[Line]]:
    def lines(runs: Sequence[Metrics], evals: Sequence[Mapping[str, Any]]) -> list[Line]:
        logged = [m[1] for m in (re.fullmatch(f"eval/(.+)/{metric}", name) for name in logged_names(runs)) if m]
        splits = dict.fromkeys([s for e in evals for phase in e.values() for s in phase] + logged)
        return [
            Line(label=split_name(s), runs=[held_out(r, e, s, metric) for r, e in zip(runs, evals, strict=True)])
            for s in splits
        ]

    return lines


def _phase_times(runs: Sequence[Metrics], evals: Sequence[Mapping[str, Any]]) -> list[Line]:
    names = {"time/rollout_s": "rollout", "time/reward_s": "reward", "time/update_s": "update", "time/step_s": "step"}
    return [Line(label=label, runs=[curve(run, name) for run in runs]) for name, label in names.items()]


PLANS: list[tuple[str, str, Callable[..., list[Line]]]] = [
    ("Reward", "mean over the answers of a step", named("reward")),
    ("Reward parts", "mean over the answers of a step, before weights", matching("rewards/(.+)/mean")),
    ("Held-out Acc@0.5", "greedy answers; share with IoU of at least 0.5", held_out_lines("acc@0.5")),
    ("Held-out mean IoU", "greedy answers", held_out_lines("mean_iou")),
    ("Held-out accuracy", "greedy answers", held_out_lines("accuracy")),
    ("Held-out mAP", "greedy answers; COCO's, IoU from 0.5 to 0.95", held_out_lines("mAP")),
    ("Held-out nms_ap", "greedy answers; OVDEval's", held_out_lines("nms_ap")),
    ("Shadow rewards", "measured, not trained on", matching("shadow/(.+)/mean")),
    ("Answer length", "tokens, mean over the answers of a step", named("completions/mean_length")),
    (
        "Calls of tools",
        "mean over the answers of a step, and the share with any",
        named("tools/calls", "tools/used", **{"tools/calls": "calls an answer", "tools/used": "answers with any"}),
    ),
    ("Failed calls", "of a step, by kind", matching("tools/failures/(.+)")),
    (
        "Unreadable and cut answers",
        "share of a step's answers",
        named("parse/failed", "answers/truncated", **{"parse/failed": "unreadable", "answers/truncated": "cut"}),
    ),
    ("Groups without a signal", "share of groups whose rewards are all equal", named("frac_reward_zero_std")),
    ("Spread of rewards", "standard deviation of the reward", named("reward_std")),
    ("Loss", "", named("loss")),
    ("Gradient norm", "before clipping", named("grad_norm")),
    ("KL to the reference model", "nats a token", named("kl")),
    (
        "Clipped tokens",
        "share of tokens beyond the clip range",
        named(
            "clip_ratio/low_mean",
            "clip_ratio/high_mean",
            **{"clip_ratio/low_mean": "low", "clip_ratio/high_mean": "high"},
        ),
    ),
    ("Entropy", "nats a token", named("entropy")),
    ("Learning rate", "", named("lr")),
    ("Features from the cache", "share of a step's images", named("vision_cache/hit_rate")),
    ("Time of a step", "seconds", _phase_times),
]

FREE = ("Reward", "Reward parts", "Shadow rewards", "Loss", "KL to the reference model")
"""Charts of quantities that may be negative or far from zero; the others begin at zero."""

IDLE = ("KL to the reference model", "Clipped tokens", "Unreadable and cut answers")
"""Charts that are left out where all is zero."""


def in_words(line: Line, name: str) -> str:
    """A line's two ends, for those who do not see it: "iou: 0.2 at step 1, 0.35 at step 90"; of runs the mean."""
    ends = []
    for step in sorted({points[place][0] for points in line.runs for place in (0, -1)}):
        values = [value for points in line.runs for at, value in points if at == step]
        ends.append(f"{sum(values) / len(values):.3g} at step {step:.0f}")
    return f"{name}: {', '.join(dict.fromkeys((ends[0], ends[-1])))}"


LEVEL = 0.01
"""A curve above zero that moves by no larger share of its value is drawn as a level line, which says no more."""


def constant(lines: Sequence[Line], from_zero: bool) -> str:
    """The values of lines that hardly change, in words: "0.0001", or "prompt 1160 to 1162, answer 96"; else empty.

    A chart that does not begin at zero shows small changes: of such only lines that never change are given in words.
    """
    said = []
    for line in lines:
        values = [value for points in line.runs for _, value in points]
        low, high = min(values, default=0.0), max(values, default=0.0)
        if len(values) < 2 or not high - low <= (LEVEL * max(abs(low), abs(high)) if from_zero else 0.0):
            return ""
        said.append((line.label, " to ".join(dict.fromkeys((f"{low:.4g}", f"{high:.4g}")))))
    if len({value for _, value in said}) == 1:
        return said[0][1]
    return ", ".join(f"{label} {value}" for label, value in said)


def per_row(n: int, most: int) -> list[int]:
    """For each of `n` cards, how many stand in its row, at most `most`, and as evenly as it can be done.

    >>> per_row(7, 3)
    [3, 3, 3, 2, 2, 2, 2]
    """
    rows = -(-n // most)
    sizes = [n // rows + (row < n % rows) for row in range(rows)]
    return [size for size in sizes for _ in range(size)]


def _draw(axes: Axes, line: Line, color: str) -> None:
    if len(line.runs) > 1:
        steps, low, mean, high = band(line.runs)
        axes.fill_between(steps, low, high, color=color, alpha=0.22, linewidth=0)
        axes.plot(steps, mean, color=color, linewidth=1.8, marker="o" if len(steps) < 3 else None)
        return
    x, y = (np.asarray(column, dtype=np.float64) for column in zip(*line.runs[0], strict=True))
    axes.plot(*binned(x, y), color=color, linewidth=1.8, marker="o" if len(x) < 16 else None, markersize=4)


def band(runs: Sequence[Points]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Steps, lowest, mean and highest value over the runs; a step that some runs lack counts those that have it."""
    by_step: dict[int, list[float]] = {}
    for points in runs:
        for step, value in points:
            by_step.setdefault(step, []).append(value)
    steps = np.asarray(sorted(by_step), dtype=np.float64)
    values = [by_step[int(step)] for step in steps]
    low, mean, high = (np.asarray([f(v) for v in values]) for f in (np.min, np.mean, np.max))
    return binned(steps, steps)[0], binned(steps, low)[1], binned(steps, mean)[1], binned(steps, high)[1]


def binned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most `MAX_POINTS` points: consecutive ones are averaged."""
    if len(x) <= MAX_POINTS:
        return x, y
    parts = np.array_split(np.arange(len(x)), MAX_POINTS)
    return np.asarray([x[p].mean() for p in parts]), np.asarray([y[p].mean() for p in parts])


def moving_average(values: np.ndarray, window: int) -> np.ndarray:
    """Centred mean over `window` values, over fewer at the two ends."""
    half = window // 2
    return np.asarray([values[max(0, i - half) : i + half + 1].mean() for i in range(len(values))])


def _dress(axes: Axes, from_zero: bool) -> None:
    ink, grid = "#1a2027", "#d5dae0"
    axes.grid(axis="y", color=grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(grid)
    axes.tick_params(colors=ink, length=0, labelsize=10)
    axes.set_xlabel("step", color=ink, fontsize=10)
    axes.margins(x=0.02)
    if from_zero:
        highest = axes.dataLim.y1
        axes.set_ylim(0, 1.06 * highest if highest > 0 else 1)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.locator_params(axis="y", nbins=5)
    axes.yaxis.set_major_formatter("{x:g}")


def to_png(title: str, lines: Sequence[Line], x: str, *, from_zero: bool = False) -> bytes:
    """A chart as PNG bytes, for a page without the colors of the report: at most eight lines, each with the band over
    its runs, over the quantity that `x` names.
    """
    figure = Figure(figsize=(6.4, 3.6), layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    for line, color in zip(lines, _PLAIN, strict=False):
        _draw(axes, line, color)
        axes.plot([], [], color=color, linewidth=1.8, label=line.label)
    _dress(axes, from_zero)
    axes.set_xlabel(x, fontsize=10)
    axes.set_title(title, loc="left", fontsize=11)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=140, metadata={"Software": None})
    return sink.getvalue()
