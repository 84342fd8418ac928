"""The comparison as an image: one panel a split, one dot with its interval for each model and metric."""

from __future__ import annotations

import io
from collections.abc import Sequence

from matplotlib.figure import Figure

from vlm_r1.report.evaluations import CompareRow
from vlm_r1.report.findings import metric_name, number, split_name

_COLOURS = ("#4a6fa5", "#e07a3f", "#3f9b6c", "#a05195", "#b8a037", "#6b7280")
_INK, _GRID = "#1a2027", "#d5dae0"


def to_png(names: Sequence[str], rows: Sequence[CompareRow]) -> bytes:
    """PNG bytes of the table: metrics from top to bottom, models side by side in each, values written beside dots.

    Metrics are shares; one outside [0, 1] widens its panel.
    """
    splits = list(dict.fromkeys(row.split for row in rows))
    panels = [[row for row in rows if row.split == split] for split in splits]
    heights = [len(panel) * (0.22 * len(names) + 0.3) + 0.6 for panel in panels]
    figure = Figure(figsize=(8.0, sum(heights) + 0.5), layout="constrained")
    all_axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, split, panel in zip(all_axes, splits, panels, strict=True):
        for line, row in enumerate(panel):
            for place, cell in enumerate(row.cells):
                if cell.value is None:
                    continue
                y = line + (place - (len(names) - 1) / 2) * 0.8 / len(names)
                colour = _COLOURS[place % len(_COLOURS)]
                if cell.low is not None and cell.high is not None:
                    axes.plot([cell.low, cell.high], [y, y], color=colour, linewidth=2.2, alpha=0.45)
                axes.plot([cell.value], [y], "o", color=colour, markersize=6, label=names[place] if not line else None)
                edge = cell.high if cell.high is not None else cell.value
                axes.annotate(
                    number(cell.value),
                    (edge, y),
                    (6, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=8,
                    color=_INK,
                )
        n = panel[0].n
        axes.set_title(split_name(split) + (f" ({n} questions)" if n else ""), loc="left", fontsize=11, color=_INK)
        axes.set_yticks(range(len(panel)), [metric_name(row.metric) for row in panel], color=_INK)
        axes.set_ylim(len(panel) - 0.5, -0.5)
        axes.grid(axis="x", color=_GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
        axes.tick_params(length=0)
        axes.set_xlim(left=min(0.0, axes.get_xlim()[0] if axes.dataLim.x0 < 0 else 0.0))
    handles = [
        all_axes[0].plot([], [], "o", color=_COLOURS[i % len(_COLOURS)], label=name)[0] for i, name in enumerate(names)
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=min(4, len(names)), frameon=False, labelcolor=_INK)
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=140)
    return sink.getvalue()
