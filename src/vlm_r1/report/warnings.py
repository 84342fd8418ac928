"""What the diagnostics of a run warn of, in words: warnings that it logged, and numbers that are out of place."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from vlm_r1.report.curves import curve, logged_names
from vlm_r1.report.findings import percent

Metrics = Sequence[Mapping[str, Any]]

SHOWN = 2
"""The latest warnings that a run logged; of earlier ones the steps are named."""

SHARES = (
    ("answers/truncated", 0.05, "of the answers were cut at the token limit"),
    ("parse/failed", 0.1, "of the answers could not be read"),
    ("score/not_scorable", 0.05, "of the answers got no score"),
    ("frac_reward_zero_std", 0.5, "of the groups taught nothing, as all their answers scored alike"),
    ("boxes/duplicate_share", 0.1, "of the answered boxes repeated an earlier one"),
)
"""Metric, the least share that is worth a warning, and what it is a share of."""

FINITE = ("loss", "grad_norm", "reward")


def concerns(metrics: Metrics, planned: int | None = None) -> list[str]:
    """Sentences about one run, the gravest first; `planned` is the number of steps that it was to take.

    Shares are means over the last tenth of the steps: they tell how the run ended.
    """
    return [*_unfinished(metrics, planned), *_not_finite(metrics), *_faults(metrics), *logged(metrics), *_high(metrics)]


def logged(metrics: Metrics) -> list[str]:
    """The warnings that the run itself logged, the latest first."""
    found = sentences(metrics)[::-1]
    said = [text if text.startswith("step ") else f"step {step}: {text}" for step, text in found[:SHOWN]]
    earlier = [str(step) for step, _ in found[SHOWN:]][::-1]
    if earlier:
        named = ", ".join(earlier) if len(earlier) <= 8 else f"{', '.join(earlier[:8])} and later"
        said.append(f"{len(earlier)} earlier warning{'s' * (len(earlier) > 1)}: steps {named} (metrics.jsonl).")
    return [f"{text[0].upper()}{text[1:]}".rstrip(".") + "." for text in said]


def _unfinished(metrics: Metrics, planned: int | None) -> list[str]:
    done = max((row["step"] for row in metrics), default=0)
    return [f"Not finished: {done} of {planned} steps are done."] if planned is not None and done < planned else []


def _not_finite(metrics: Metrics) -> list[str]:
    said = []
    for name in FINITE:
        # NaN and infinity are null in metrics.jsonl
        steps = [row["step"] for row in metrics if name in row and row[name] is None]
        if steps:
            where = f"in step {steps[0]}" if len(steps) == 1 else f"in {len(steps)} steps, first in step {steps[0]}"
            said.append(f"The metric {name} was not a finite number {where}.")
    return said


def _faults(metrics: Metrics) -> list[str]:
    said = []
    for name in logged_names([metrics]):
        match = re.fullmatch(r"rewards/counts/(errors|timeouts)/(.+)", name)
        values = [value for _, value in curve(metrics, name)] if match else []
        # Counts begin again at 0 where a run was started again.
        total = sum(old for old, new in pairwise([*values, 0.0]) if new < old)
        if match and total:
            what = "raised an error" if match[1] == "errors" else "ran out of time"
            said.append(f"The reward {match[2]} {what} {total:.0f} time{'s' * (total != 1)}.")
    return said


def _high(metrics: Metrics) -> list[str]:
    part = max(1, len(metrics) // 10)
    span = "in the last step" if part == 1 else f"over the last {part} steps"
    said = []
    for name, least, words in SHARES:
        values = [value for _, value in curve(metrics[-part:], name)]
        if values and sum(values) / len(values) >= least:
            said.append(f"{percent(sum(values) / len(values))} {words}, {span}.")
    return said


def sentences(metrics: Metrics) -> list[tuple[int, str]]:
    """(step, sentence) of the warnings that a run logged, in order."""
    return [(row["step"], text) for row in metrics for text in row.get("warnings") or []]
