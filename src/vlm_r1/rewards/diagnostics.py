"""Is the policy cheating? Counters for every step, and a watch on rewards that are measured but not trained on."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Collection, Mapping, Sequence

from vlm_r1.boxes import pairwise_iou
from vlm_r1.prompts.parse import FAILURE_KINDS, extract_blocks
from vlm_r1.records import Answer, Sample, Score
from vlm_r1.rewards.common import fold_label

DUPLICATE_IOU = 0.9
"""A box that overlaps an earlier one of the same label by this much repeats it."""


def step_diagnostics(rows: Sequence[tuple[Sample, Answer, Score]]) -> dict[str, float]:
    """One step's answers as a flat dict of floats for `metrics.jsonl`; empty for no answers.

    - `boxes/pred_per_true`: predicted boxes over true boxes, summed over the answers that hold boxes
    - `boxes/duplicate_share`: predicted boxes that repeat an earlier one of their label (IoU of `DUPLICATE_IOU`)
    - `boxes/absent_class_share`: predicted boxes whose label is none of the truth's
    - `boxes/dropped_per_answer`: malformed, reversed and empty boxes left out
    - `parse/failed`, `parse/KIND`: share of answers that could not be read, in all and by kind
    - `format/KIND`: share of answers with that fault of format
    - `score/not_scorable`: share of answers without a score
    - `answers/truncated`: share cut at the token limit
    """
    return kinds_that_occur({name: total / count for name, (total, count) in diagnostic_sums(rows).items() if count})


def kinds_that_occur(values: Mapping[str, float]) -> dict[str, float]:
    """Diagnostics without the kinds of failure that no answer has."""
    kinds = {f"{group}/{kind}" for group in ("parse", "format") for kind in FAILURE_KINDS}
    return {name: value for name, value in values.items() if value or name not in kinds}


def diagnostic_sums(rows: Sequence[tuple[Sample, Answer, Score]]) -> dict[str, tuple[float, float]]:
    """What `step_diagnostics` divides: name -> (sum, count), which several processes can add up."""
    n = len(rows)
    failures = Counter(answer.failure.kind for _, answer, _ in rows if answer.failure)
    faults = Counter(extract_blocks(answer.raw).fault for _, answer, _ in rows if not answer.well_formed)
    counts = {
        "parse/failed": sum(failures.values()),
        "score/not_scorable": sum(score.total is None for _, _, score in rows),
        "answers/truncated": sum(answer.truncated for _, answer, _ in rows),
        **{f"parse/{kind}": failures[kind] for kind in FAILURE_KINDS},
        **{f"format/{kind}": faults[kind] for kind in FAILURE_KINDS},
    }
    with_boxes = [(sample, answer) for sample, answer, _ in rows if sample.truth.boxes is not None]
    return {name: (float(count), n) for name, count in counts.items()} | _box_sums(with_boxes)


def _box_sums(rows: Sequence[tuple[Sample, Answer]]) -> dict[str, tuple[float, float]]:
    n_true = n_pred = duplicates = absent = dropped = 0
    for sample, answer in rows:
        dropped += answer.dropped
        if not isinstance(answer.value, tuple):
            continue
        true_labels = {fold_label(item.label) for item in sample.truth.boxes or ()}
        labels = [fold_label(item.label) for item in answer.value]
        n_true += len(sample.truth.boxes or ())
        n_pred += len(labels)
        # A truth or a box without a label (REC) names no class that could be absent.
        if true_labels != {""}:
            absent += sum(label != "" and label not in true_labels for label in labels)
        if len(labels) > 1:
            iou_NN = pairwise_iou([i.box for i in answer.value], [i.box for i in answer.value]).tolist()
            duplicates += sum(
                any(labels[j] == labels[i] and iou_NN[i][j] >= DUPLICATE_IOU for j in range(i))
                for i in range(len(labels))
            )
    return {
        "boxes/dropped_per_answer": (dropped, len(rows)),
        "boxes/pred_per_true": (n_pred, n_true),
        "boxes/duplicate_share": (duplicates, n_pred),
        "boxes/absent_class_share": (absent, n_pred),
    }


class ShadowWatch:
    """Warns, in words and with the step, when the trained reward rises while a shadow metric falls.

    Example: `ShadowWatch(window=20).update(step, 0.7, {"od_length": 0.3})` is a list of sentences, mostly empty.
    """

    def __init__(self, *, window: int = 20, min_change: float = 0.02) -> None:
        """`window`: steps looked back over; `min_change`: least rise, and least fall, between its two halves."""
        if window < 2:
            raise ValueError("window must be at least 2 steps")
        self.window, self.min_change = window, min_change
        self._history: dict[str, deque[tuple[float, float]]] = {}
        self._warned: dict[str, int] = {}

    def update(self, step: int, reward: float | None, shadow: Mapping[str, float | None]) -> list[str]:
        """Take one step's means; return the warnings that are due: at most one per metric and window.

        Compared are the means of the two halves of the window. Steps without a value (None, NaN) are passed over.
        """
        warnings = []
        for name, value in shadow.items():
            if reward is None or value is None or not (math.isfinite(reward) and math.isfinite(value)):
                continue
            history = self._history.setdefault(name, deque(maxlen=self.window))
            history.append((reward, value))
            if len(history) < self.window or step - self._warned.get(name, step - self.window) < self.window:
                continue
            half = self.window // 2
            early, late = list(history)[:half], list(history)[-half:]
            rise = _mean([r for r, _ in late]) - _mean([r for r, _ in early])
            fall = _mean([v for _, v in early]) - _mean([v for _, v in late])
            if rise >= self.min_change and fall >= self.min_change:
                self._warned[name] = step
                warnings.append(
                    f"step {step}: over the last {self.window} steps the trained reward rose by {rise:.3f} while the "
                    f"shadow metric {name} fell by {fall:.3f}: the policy may be exploiting the reward. "
                    "Look at the rollouts of these steps, or train on a reward that charges for it"
                )
        return warnings

    def state(self) -> dict[str, object]:
        """What `restore` needs for an exact resume, as plain JSON values."""
        return {
            "history": {name: [list(pair) for pair in rows] for name, rows in self._history.items()},
            "warned": dict(self._warned),
        }

    def restore(self, state: Mapping[str, Mapping[str, object]]) -> None:
        """Continue from `state()`."""
        self._history = {
            name: deque(((float(r), float(v)) for r, v in rows), maxlen=self.window)  # type: ignore[attr-defined]
            for name, rows in state["history"].items()
        }
        self._warned = {name: int(step) for name, step in state["warned"].items()}  # type: ignore[call-overload]


class Trend:
    """The slope of a step's value, such as the mean answer length, over the last steps: its change per step.

    Example: `trend = Trend(window=20); metrics["completions/length_trend"] = trend.update(mean_length)`.
    """

    def __init__(self, *, window: int = 20) -> None:
        if window < 2:
            raise ValueError("window must be at least 2 steps")
        self._values: deque[float] = deque(maxlen=window)

    def update(self, value: float) -> float:
        """Take one step's value; return the least-squares slope over the window (0 for the first step)."""
        self._values.append(value)
        n = len(self._values)
        if n < 2:
            return 0.0
        middle, mean = (n - 1) / 2, _mean(self._values)
        rise = sum((i - middle) * (v - mean) for i, v in enumerate(self._values))
        return rise / sum((i - middle) ** 2 for i in range(n))

    def state(self) -> list[float]:
        """What `restore` needs for an exact resume, as plain JSON values."""
        return list(self._values)

    def restore(self, state: Sequence[float]) -> None:
        """Continue from `state()`."""
        self._values = deque(state, maxlen=self._values.maxlen)


def _mean(values: Collection[float]) -> float:
    return sum(values) / len(values)
