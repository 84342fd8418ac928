"""Any number of evaluations as one table: values with intervals, and paired differences from the first."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from vlm_r1.errors import ConfigError
from vlm_r1.eval.label_noise import noise_notes
from vlm_r1.report.evaluations import Cell, CompareRow, compare_rows, load_evaluations
from vlm_r1.report.findings import MINUS, metric_name, number, signed, split_name
from vlm_r1.runtime.runlog import write_atomically

FORMATS = (".md", ".json", ".png")
"""Endings of `--out`."""


def compare(inputs: Sequence[str], out: Path | None = None) -> str:
    """`vlm-r1 compare`: the table as Markdown; written to `out` as its ending says (.md, .json or .png).

    Raises `ConfigError` for another ending, and what `load_evaluations` raises.
    """
    if out is not None and out.suffix not in FORMATS:
        raise ConfigError(f"--out {out}: end the name with {' or '.join(FORMATS)}")
    models = [model for item in inputs for model in load_evaluations(item)]
    rows = compare_rows(models)
    if not rows:
        raise ConfigError(f"{', '.join(inputs)}: no metrics in these evaluations; evaluate with vlm-r1 eval --out")
    names = _distinct([model.name for model in models])
    text = to_markdown(names, rows)
    if out is not None:
        from vlm_r1.report.compare_image import to_png

        writers = {
            ".md": lambda: text.encode(),
            ".json": lambda: to_json(names, rows),
            ".png": lambda: to_png(names, rows),
        }
        write_atomically(out, writers[out.suffix]())
    return text


def to_markdown(names: Sequence[str], rows: Sequence[CompareRow]) -> str:
    """The table as Markdown, intervals in parentheses; a difference whose interval excludes 0 is bold."""
    head = ["split", "metric", "questions", names[0]]
    for name in names[1:]:
        head += [name, f"{name} {MINUS} {names[0]}"]
    lines = [head, ["---", "---", *["---:"] * (len(head) - 2)]]
    for row in rows:
        cells = [split_name(row.split), metric_name(row.metric), "" if row.n is None else str(row.n)]
        for place, cell in enumerate(row.cells):
            cells.append(_told(cell.value, cell.low, cell.high, number))
            if place:
                change = _told(cell.difference, cell.difference_low, cell.difference_high, signed)
                cells.append(f"**{change}**" if cell.sure else change)
        lines.append(cells)
    table = "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)
    notes = "".join(f"\n{note}\n" for note in noise_notes(row.split for row in rows))
    return (
        table
        + notes
        + (
            "\nIn parentheses: 95 % bootstrap over questions; of differences, paired over the same questions.\n"
            if any(cell.low is not None or cell.difference_low is not None for row in rows for cell in row.cells)
            else ""
        )
    )


def to_json(names: Sequence[str], rows: Sequence[CompareRow]) -> bytes:
    """`{"models": [...], "rows": [{"split", "metric", "n", "cells": [{"value", "low", ...}]}]}`."""
    fields = list(Cell.__dataclass_fields__)
    content = {
        "models": list(names),
        "rows": [
            {
                "split": row.split,
                "metric": row.metric,
                "n": row.n,
                "cells": [{field: getattr(cell, field) for field in fields} for cell in row.cells],
            }
            for row in rows
        ],
    }
    return (json.dumps(content, indent=2) + "\n").encode()


def _told(value: float | None, low: float | None, high: float | None, form: Callable[[float], str]) -> str:
    if value is None:
        return ""
    return form(value) if low is None or high is None else f"{form(value)} ({form(low)} to {form(high)})"


def _distinct(names: Sequence[str]) -> list[str]:
    """The names, numbered where two are equal."""
    return [name if names.count(name) == 1 else f"{name} #{names[: i + 1].count(name)}" for i, name in enumerate(names)]
