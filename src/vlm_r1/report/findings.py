"""What a run showed, in words: before -> after per split, with an interval, also where it got worse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vlm_r1.report.pairs import SAMPLE_COLUMN, Pair, difference, read_pairs
from vlm_r1.runtime.runlog import read_eval

BOUNDS = ("/low", "/high")
"""Ends of the names of an interval's bounds, which stand beside their metric."""

HEADLINE = ("mean_iou", "acc@0.5", "accuracy", "mAP", "nms_ap")
"""Metrics that get a sentence; a split without any of them gets one for each of its metrics."""

MINUS = "\N{MINUS SIGN}"
_NAMES = {"mean_iou": "mean IoU", "acc@0.5": "Acc@0.5", "in_domain": "In-domain", "out_of_domain": "Out-of-domain"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One metric of one split before and after training, averaged over the runs.

    `low` and `high` bound the difference (95 % bootstrap over questions), None where it cannot be computed; `by_run`
    holds each run's difference.

    Example: `Change(split="in_domain", metric="mean_iou", n=2, before=0.25, after=0.75, by_run=(0.5,)).difference`.
    """

    split: str
    metric: str
    n: int | None
    before: float
    after: float
    low: float | None = None
    high: float | None = None
    by_run: tuple[float, ...] = ()

    @property
    def difference(self) -> float:
        """After minus before."""
        return self.after - self.before

    @property
    def verdict(self) -> str:
        """ "rose" or "fell" where the interval excludes zero, "noise" where it does not, "unknown" without one.

        "same" where no question's score changed.
        """
        if self.low is None or self.high is None:
            return "unknown"
        if self.low == self.high == 0:
            return "same"
        return "rose" if self.low > 0 else "fell" if self.high < 0 else "noise"


def changes(run_dirs: Sequence[Path]) -> list[Change]:
    """Every metric that all runs have before and after, split by split."""
    evals = [read_eval(run_dir) for run_dir in run_dirs]
    pairs = [read_pairs(run_dir) for run_dir in run_dirs]
    both = [(e["before"], e["after"]) for e in evals if "before" in e and "after" in e]
    if not both or len(both) < len(evals):
        return []
    found = []
    for split, metric in shared_metrics(both):
        old = [float(before[split][metric]) for before, _ in both]
        new = [float(after[split][metric]) for _, after in both]
        low, high = _interval([p.get(split, []) for p in pairs], metric, old, new)
        n = both[0][1][split].get("n")
        found.append(
            Change(
                split=split,
                metric=metric,
                n=None if n is None else int(n),
                before=float(np.mean(old)),
                after=float(np.mean(new)),
                low=low,
                high=high,
                by_run=tuple(b - a for a, b in zip(old, new, strict=True)),
            )
        )
    return found


def shared_metrics(both: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> list[tuple[str, str]]:
    """The (split, metric) pairs that hold a number in every evaluation given; `n` and intervals' bounds aside."""
    names = [
        {
            (split, metric)
            for split, values in phase.items()
            for metric, value in values.items()
            if metric != "n" and not metric.endswith(BOUNDS) and isinstance(value, int | float)
        }
        for phases in both
        for phase in phases
    ]
    common = set.intersection(*names) if names else set()
    order = [(split, metric) for split, values in both[0][0].items() for metric in values] if both else []
    return [name for name in order if name in common]


def bootstrap(values: Sequence[float], resamples: int = 4000, seed: int = 0) -> tuple[float, float] | tuple[None, None]:
    """The 95 % percentile bootstrap interval of a mean (Efron 1979); (None, None) for fewer than two values."""
    values_N = np.asarray(values, dtype=np.float64)
    if len(values_N) < 2:
        return (None, None)
    rng = np.random.default_rng(seed)
    means = [values_N[rng.integers(0, len(values_N), len(values_N))].mean() for _ in range(resamples)]
    low, high = np.percentile(means, [2.5, 97.5])
    return (float(low), float(high))


def _interval(
    by_run: Sequence[Sequence[Pair]], metric: str, old: Sequence[float], new: Sequence[float]
) -> tuple[float, float] | tuple[None, None]:
    """Bootstrap over questions of the paired difference, each question averaged over the runs.

    None where the rows do not reproduce the metric's own change: an interval about something else would mislead.
    """
    column = SAMPLE_COLUMN.get(metric)
    if column is None:
        return (None, None)
    gathered: dict[Any, list[float]] = {}
    for pairs, a, b in zip(by_run, old, new, strict=True):
        found = [(pair.row.get("sample_id"), pair.row.get("question"), difference(pair, column)) for pair in pairs]
        known = [(sample, question, d) for sample, question, d in found if d is not None]
        if not known or abs(np.mean([d for _, _, d in known]) - (b - a)) > 5e-4:
            return (None, None)
        for sample, question, d in known:
            gathered.setdefault((sample, question), []).append(d)
    return bootstrap([float(np.mean(d)) for d in gathered.values()])


def headline(found: Sequence[Change]) -> list[Change]:
    """The changes that get a sentence, in order."""
    known = {change.split for change in found if change.metric in HEADLINE}
    return [change for change in found if change.metric in HEADLINE or change.split not in known]


def explanation(change: Change) -> str:
    """One change in words, with its interval, the number of questions and, of several runs, their range."""
    size = number(abs(change.difference))
    told = {
        "rose": f"Rose by {size}",
        "fell": f"Fell by {size}",
        "noise": f"No change beyond noise: {signed(change.difference)}",
        "unknown": f"Changed by {signed(change.difference)}",
        "same": "Unchanged",
    }[change.verdict]
    facts = []
    if change.low is None or change.high is None:
        facts.append("no interval: no rows per question give this number")
    elif change.verdict != "same":
        facts.append(f"95 % interval {signed(change.low)} to {signed(change.high)}")
    if change.n is not None:
        facts.append(f"{change.n} questions")
    if len(change.by_run) > 1:
        facts.append(f"{len(change.by_run)} runs, from {signed(min(change.by_run))} to {signed(max(change.by_run))}")
    return f"{told} ({', '.join(facts)})." if facts else f"{told}."


def unreadable(pairs: Mapping[str, Sequence[Pair]]) -> list[str]:
    """One sentence a split on the share of answers that could not be read, where it was above zero."""
    said = []
    for split, found in pairs.items():
        old = [p.before["failure"] is not None for p in found if p.before is not None]
        new = [p.after["failure"] is not None for p in found if p.after is not None]
        if old and new and (any(old) or any(new)):
            said.append(
                f"{split_name(split)}: answers that could not be read went from {percent(sum(old) / len(old))} "
                f"to {percent(sum(new) / len(new))}."
            )
    return said


def number(value: float) -> str:
    """Three decimals with a true minus sign.

    >>> number(0.25)
    '0.250'
    """
    text = f"{value:.3f}".replace("-", MINUS)
    return text.removeprefix(MINUS) if float(f"{value:.3f}") == 0 else text


def signed(value: float) -> str:
    """A difference with its sign.

    >>> signed(0.5)
    '+0.500'
    """
    text = number(value)
    return text if text.startswith(MINUS) else f"+{text}"


def percent(share: float) -> str:
    """A share as whole per cent.

    >>> percent(0.25)
    '25 %'
    """
    return f"{100 * share:.0f} %"


def metric_name(metric: str) -> str:
    """A metric as people write it."""
    return _NAMES.get(metric, metric)


def split_name(split: str) -> str:
    """A split as people write it."""
    return _NAMES.get(split, split.replace("_", " ") or "held out")
