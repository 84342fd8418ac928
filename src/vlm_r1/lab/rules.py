"""The verdict on a claim, computed from its rule and the measured quantities; nobody writes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vlm_r1.lab.intervals import LEVEL, Estimate
from vlm_r1.lab.study import CONDITION, Claim, When

SHOWN, REFUTED, NOT_SHOWN, NOT_RUN = "shown", "refuted", "not shown", "not run"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a claim came to and why: `Verdict(verdict="not run", why=("needs two or more seeds of ...",))`."""

    verdict: str
    why: tuple[str, ...]


def judge(claim: Claim, measured: Mapping[str, Estimate]) -> Verdict:
    """Shown or refuted where that rule is met; not shown where neither is; not run where a quantity is missing.

    Shown goes first: with `> 0` to show and `< 0.01` to refute, a sure difference that is smaller than 0.01 is shown.
    """
    missing = [
        name
        for condition in (*claim.shown.conditions, *claim.refuted.conditions)
        if (name := condition.split(" ")[0]) not in measured or measured[name].error is None
    ]
    if missing:
        names = ", ".join(dict.fromkeys(missing))
        return Verdict(
            verdict=NOT_RUN, why=(f"{names}: needs two or more finished seeds of every arm, with a value in each",)
        )
    verdict = SHOWN if met(claim.shown, measured) else REFUTED if met(claim.refuted, measured) else NOT_SHOWN
    told = (f"shown if {_told(claim.shown, measured)}", f"refuted if {_told(claim.refuted, measured)}")
    return Verdict(verdict=verdict, why=told)


def met(when: When, measured: Mapping[str, Estimate]) -> bool:
    """Whether the conditions hold, each by the whole interval of its quantity."""
    join = all if when.all else any
    return join(holds(condition, measured, level(when)) for condition in when.conditions)


def level(when: When) -> float:
    """Of the intervals: 0.95, and for `any` of k conditions 1 - 0.05 / k (Bonferroni)."""
    return 1 - (1 - LEVEL) / len(when.any) if when.any else LEVEL


def holds(condition: str, measured: Mapping[str, Estimate], at: float = LEVEL) -> bool:
    """Whether the interval of the quantity lies on the named side of the number."""
    match = CONDITION.fullmatch(condition)
    interval = measured[condition.split(" ")[0]].interval(at)
    if match is None or interval is None:
        return False
    bound = float(match["bound"])
    return interval[0] > bound if match["sign"] == ">" else interval[1] < bound


def _told(when: When, measured: Mapping[str, Estimate]) -> str:
    parts = []
    for condition in when.conditions:
        found = measured[condition.split(" ")[0]]
        low, high = found.interval(level(when)) or (found.value, found.value)
        word = "holds" if holds(condition, measured, level(when)) else "does not hold"
        parts.append(f"{condition} [{found.value:.3f} ({low:.3f} to {high:.3f}), {word}]")
    return (" and " if when.all else " or ").join(parts)
