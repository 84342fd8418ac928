"""The numbers of a split: its suites' metrics with their intervals, and the form of its answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from vlm_r1.eval.bootstrap import RESAMPLES, intervals
from vlm_r1.eval.outcomes import Outcome
from vlm_r1.eval.suites import build_statistic


def summary(
    outcomes: Sequence[Outcome],
    suite: str | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    calls: bool = False,
) -> dict[str, float]:
    """`n`, each metric of the suites (by what is asked, or the one named) with `<metric>/low` and `<metric>/high`,
    the bounds of its 95 % interval, then `well_formed`, `mean_length` (tokens) and `failures/<kind>`, all shares of n.
    With `calls` also `calls`, those of tools an answer.
    """
    n = len(outcomes)
    statistic = build_statistic(outcomes, None if suite is None else [suite])
    bounds = intervals(statistic, n, resamples, seed)
    values: dict[str, float] = {"n": float(n)}
    for name, value in statistic(np.ones(n, dtype=np.int64)).items():
        values[name] = value
        if name in bounds:
            values[f"{name}/low"], values[f"{name}/high"] = bounds[name]
    values["well_formed"] = sum(o.well_formed for o in outcomes) / max(1, n)
    values["mean_length"] = sum(o.n_tokens for o in outcomes) / max(1, n)
    if calls:
        values["calls"] = sum(o.n_calls for o in outcomes) / max(1, n)
    failures = Counter(o.failure for o in outcomes if o.failure is not None)
    return values | {f"failures/{kind}": count / n for kind, count in sorted(failures.items())}


def shown(values: Mapping[str, float]) -> str:
    """The metrics of a split in one line, with their intervals.

    >>> shown({"n": 4.0, "mean_iou": 0.5, "mean_iou/low": 0.25, "mean_iou/high": 0.75, "well_formed": 1.0})
    'mean_iou 0.5000 (0.250 to 0.750), n 4'
    """
    told = []
    for name, value in values.items():
        if name in ("n", "well_formed", "mean_length", "calls") or name.startswith("failures/"):
            continue
        if not name.endswith(("/low", "/high")):
            low, high = values.get(f"{name}/low"), values.get(f"{name}/high")
            between = "" if low is None or high is None else f" ({low:.3f} to {high:.3f})"
            told.append(f"{name} {value:.4f}{between}")
    return ", ".join([*told, f"n {values['n']:.0f}"])
