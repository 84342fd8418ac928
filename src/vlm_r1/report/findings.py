"""What a run showed, in words: before -> after per split, with an interval, also where it got worse."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm_r1.errors import CheckpointError
from vlm_r1.records import LabelledBox
from vlm_r1.report.evaluations import Evaluated, evaluated, paired, shared_metrics
from vlm_r1.report.pairs import Pair
from vlm_r1.runtime.shown import Tell, refuse, shown_evaluation

HEADLINE = ("mean_iou", "acc@0.5", "accuracy", "mAP", "nms_ap")
"""Metrics that get a sentence; a split without any of them gets one for each of its metrics."""

FEW = 30
"""Below so many questions a bootstrap interval is too narrow to be trusted."""

ROUNDING = 1e-9
"""Differences up to this are errors of arithmetic."""

MAX_BOXES = 12
"""Boxes whose coordinates are written out."""

MINUS = "\N{MINUS SIGN}"
_SOME = {
    "rose": "rose",
    "fell": "fell",
    "noise": "did not change beyond noise",
    "same": "did not change at all",
    "unknown": "changed by an amount without an interval",
}
_ALL = {
    "rose": "All {n} held-out numbers rose beyond noise.",
    "fell": "All {n} held-out numbers fell beyond noise.",
    "noise": "None of the {n} held-out numbers changed beyond noise.",
    "same": "None of the {n} held-out numbers changed at all.",
    "unknown": "No intervals are known for the {n} held-out numbers, so their changes may be noise.",
}
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
        if max(abs(self.low), abs(self.high)) < ROUNDING:
            return "same"
        return "rose" if self.low > ROUNDING else "fell" if self.high < -ROUNDING else "noise"


def changes(run_dirs: Sequence[Path], tell: Tell = refuse) -> list[Change]:
    """Every metric that all runs have before and after, split by split."""
    evals = [shown_evaluation(Path(run_dir) / "eval.json", tell) for run_dir in run_dirs]
    both = [(e["before"], e["after"]) for e in evals if "before" in e and "after" in e]
    if not both or len(both) < len(evals):
        return []
    runs = [
        (_phase(run_dir, "before", before, tell), _phase(run_dir, "after", after, tell))
        for run_dir, (before, after) in zip(run_dirs, both, strict=True)
    ]
    names = shared_metrics(both)
    bounds = {split: paired(runs, split) for split in dict.fromkeys(split for split, _ in names)}
    found = []
    for split, metric in names:
        old = [float(before[split][metric]) for before, _ in both]
        new = [float(after[split][metric]) for _, after in both]
        low, high = bounds[split].get(metric, (None, None))
        n = both[0][1][split].get("n")
        found.append(
            Change(
                split=split,
                metric=metric,
                n=None if n is None else int(n),
                before=sum(old) / len(old),
                after=sum(new) / len(new),
                low=low,
                high=high,
                by_run=tuple(b - a for a, b in zip(old, new, strict=True)),
            )
        )
    return found


def _phase(run_dir: Path, phase: str, metrics: Mapping[str, Any], tell: Tell) -> Evaluated:
    try:
        return evaluated(phase, metrics, Path(run_dir) / f"eval-{phase}.parquet", tell)
    except CheckpointError as error:
        tell(str(error))
        return Evaluated(name=phase, metrics=metrics, outcomes={})


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
        facts.append(f"95 % interval {interval(change.low, change.high)}")
    if change.n is not None:
        facts.append(f"{change.n} question{'s' * (change.n != 1)}")
    if len(change.by_run) > 1:
        facts.append(f"{len(change.by_run)} runs, from {signed(min(change.by_run))} to {signed(max(change.by_run))}")
    return f"{told} ({', '.join(facts)})."


def tally(heads: Sequence[Change]) -> list[str]:
    """What the headline numbers say together, and how far their intervals can be trusted."""
    said = []
    counts = Counter(change.verdict for change in heads)
    if len(heads) > 1 and len(counts) == 1:
        (verdict,) = counts
        said.append(_ALL[verdict].format(n=len(heads)))
    elif len(heads) > 1:
        parts = [f"{counts[verdict]} {words}" for verdict, words in _SOME.items() if counts[verdict]]
        said.append(f"Of {len(heads)} held-out numbers {', '.join(parts[:-1])} and {parts[-1]}.")
    few = dict.fromkeys(
        f"{split_name(c.split)} ({c.n})" for c in heads if c.low is not None and c.n is not None and c.n < FEW
    )
    if few:
        said.append(f"Fewer than {FEW} questions, so that intervals are too narrow to trust: {', '.join(few)}.")
    return said


def unreadable(pairs: Mapping[str, Sequence[Pair]]) -> list[str]:
    """One sentence a split on the share of answers that could not be read, where it was above zero."""
    said = []
    for split, found in pairs.items():
        old = [p.before["failure"] is not None for p in found if p.before is not None]
        new = [p.after["failure"] is not None for p in found if p.after is not None]
        if old and new and (any(old) or any(new)):
            first, last = percent(sum(old) / len(old)), percent(sum(new) / len(new))
            change = f"were {first} before and after" if first == last else f"went from {first} to {last}"
            said.append(f"{split_name(split)}: answers that could not be read {change}.")
    return said


def interval(low: float, high: float) -> str:
    """The two ends of an interval, with a further digit where three would show an end beside zero as zero.

    >>> interval(0.0004, 0.02), interval(0.1, 0.25)
    ('+0.0004 to +0.0200', '+0.100 to +0.250')
    """
    digits = 4 if low * high > 0 and min(abs(low), abs(high)) < 5e-4 else 3
    return f"{signed(low, digits)} to {signed(high, digits)}"


def number(value: float, digits: int = 3) -> str:
    """Three decimals with a true minus sign.

    >>> number(0.25)
    '0.250'
    """
    text = f"{value:.{digits}f}".replace("-", MINUS)
    return text.removeprefix(MINUS) if float(f"{value:.{digits}f}") == 0 else text


def signed(value: float, digits: int = 3) -> str:
    """A difference with its sign.

    >>> signed(0.5)
    '+0.500'
    """
    text = number(value, digits)
    return text if text.startswith(MINUS) else f"+{text}"


def percent(share: float) -> str:
    """A share in per cent: whole from 10 % on, below with one decimal.

    >>> percent(0.25), percent(0.015), percent(0.0001), percent(0)
    ('25 %', '1.5 %', 'under 0.1 %', '0 %')
    """
    if 0 < share < 0.0005:
        return "under 0.1 %"
    return f"{100 * share:.0f} %" if share >= 0.0995 or share == 0 else f"{100 * share:.1f} %"


def box_words(item: LabelledBox) -> str:
    """A box as people read it, in pixels.

    >>> box_words(LabelledBox(box=(1, 2, 3, 4.25), label="cat"))
    'cat: (1.0, 2.0, 3.0, 4.2)'
    """
    return f"{item.label + ': ' if item.label else ''}({', '.join(f'{side:.1f}' for side in item.box)})"


def boxes_words(boxes: Sequence[LabelledBox]) -> str:
    """The first boxes of an answer or of a truth with their unit; empty for none."""
    more = f" and {len(boxes) - MAX_BOXES} more" if len(boxes) > MAX_BOXES else ""
    return f"in pixels: {'; '.join(map(box_words, boxes[:MAX_BOXES]))}{more}" if boxes else ""


def metric_name(metric: str) -> str:
    """A metric as people write it."""
    return _NAMES.get(metric, metric)


def split_name(split: str) -> str:
    """A split as people write it."""
    return _NAMES.get(split, split.replace("_", " ") or "held out")
