"""The suites: which numbers describe a list of outcomes. Chosen by the kind of answer, or named in `eval.suites`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from vlm_r1.eval.bootstrap import Statistic
from vlm_r1.eval.detection import Matches, match_split, suppress
from vlm_r1.eval.outcomes import CORRECT_IOU, Outcome
from vlm_r1.prompts.kinds import KINDS

OVDEVAL = "ovdeval/"
"""Begin of the source of a row that comes from OVDEval; its subset follows."""

REF_L4 = "ref_l4"
"""Source of the rows of Ref-L4 (`data.convert.refl4`)."""

ASPECTS = {
    "celebrity": "proper noun",
    "logo": "proper noun",
    "landmark": "proper noun",
    "color": "attribute",
    "material": "attribute",
}
"""OVDEval's subset -> the aspect it belongs to; any other subset is an aspect of its own."""


def rec(outcomes: Sequence[Outcome]) -> Statistic:
    """One box asked for (REC, LISA's reasoning grounding): `mean_iou`, and `acc@0.5`, the share with IoU 0.5 or more.

    A failure has IoU 0. The reference's scripts count IoU above 0.5, without 0.5 itself.
    """
    known = np.array([o.iou is not None for o in outcomes], dtype=float)
    ious_N = np.array([o.iou or 0.0 for o in outcomes])
    right_N = ious_N >= CORRECT_IOU

    def measure(counts_N: np.ndarray) -> dict[str, float]:
        total = known @ counts_N
        if not total:
            return {}
        return {"mean_iou": float(ious_N @ counts_N / total), "acc@0.5": float(right_N @ counts_N / total)}

    return measure


def ref_l4(outcomes: Sequence[Outcome]) -> Statistic:
    """Ref-L4's own measures beside `rec`: `acc@0.75`, `acc@0.9`, and `macc`, the mean over IoU 0.50, 0.55, ... 0.95.

    They count IoU above the threshold, as Ref-L4's code does (arXiv 2406.16866).
    """
    known = np.array([o.iou is not None for o in outcomes], dtype=float)
    ious_N = np.array([o.iou or 0.0 for o in outcomes])
    above_KN = ious_N > np.arange(50, 100, 5)[:, None] / 100

    def measure(counts_N: np.ndarray) -> dict[str, float]:
        total = known @ counts_N
        if not total:
            return {}
        shares_K = above_KN @ counts_N / total
        return {"acc@0.75": float(shares_K[5]), "acc@0.9": float(shares_K[8]), "macc": float(shares_K.mean())}

    return measure


def accuracy(outcomes: Sequence[Outcome]) -> Statistic:
    """Choices, numbers, texts, clicks: `accuracy`, the share of correct answers among those that have a truth."""
    known = np.array([o.correct is not None for o in outcomes], dtype=float)
    right_N = np.array([bool(o.correct) for o in outcomes], dtype=float)

    def measure(counts_N: np.ndarray) -> dict[str, float]:
        total = known @ counts_N
        return {"accuracy": float(right_N @ counts_N / total)} if total else {}

    return measure


def ovd(outcomes: Sequence[Outcome]) -> Statistic:
    """Detection as VLM-R1 reports it on COCO: `mAP`, `AP50` (score 1 for every box), `GP` and `GR` at IoU 0.5.

    A resample holds some questions twice, on which COCO's interpolation is kind: where a label has few boxes, the
    interval of mAP lies a little high around its value.
    """
    matches = match_split([o.true for o in outcomes], [o.predicted for o in outcomes])

    def measure(counts_N: np.ndarray) -> dict[str, float]:
        found, greedy = matches.mean_ap(counts_N), matches.greedy(counts_N)
        if found is None or greedy is None:
            return {}
        return {"mAP": found[0], "AP50": found[1], "GP": greedy[0], "GR": greedy[1]}

    return measure


def ovdeval(outcomes: Sequence[Outcome]) -> Statistic:
    """OVDEval: `nms_ap/<subset>`, COCO's mAP after class-agnostic suppression, and `nms_ap` over all.

    The subset of a row is the last part of its source. `nms_ap` is the mean over aspects of the mean over their
    subsets, which is how the column "All" of VLM-R1's table follows from its other columns.
    """
    by_subset: dict[str, list[int]] = {}
    for place, item in enumerate(outcomes):
        by_subset.setdefault(item.source.rpartition("/")[2], []).append(place)
    parts: dict[str, tuple[np.ndarray, Matches]] = {}
    for subset, places in by_subset.items():
        chosen = [outcomes[i] for i in places]
        matches = match_split([o.true for o in chosen], [suppress(o.true, o.predicted) for o in chosen])
        parts[subset] = (np.array(places), matches)

    def measure(counts_N: np.ndarray) -> dict[str, float]:
        values = {}
        for subset, (places, matches) in parts.items():
            found = matches.mean_ap(counts_N[places])
            if found is not None:
                values[subset] = found[0]
        if not values:
            return {}
        aspects: dict[str, list[float]] = {}
        for subset, value in values.items():
            aspects.setdefault(ASPECTS.get(subset, subset), []).append(value)
        overall = {"nms_ap": float(np.mean([np.mean(group) for group in aspects.values()]))}
        return overall | ({f"nms_ap/{subset}": value for subset, value in values.items()} if len(parts) > 1 else {})

    return measure


SUITES: dict[str, Callable[[Sequence[Outcome]], Statistic]] = {
    "rec": rec,
    "ref_l4": ref_l4,
    "ovd": ovd,
    "ovdeval": ovdeval,
    "accuracy": accuracy,
}
"""Suite name -> outcomes to statistic."""


def suites_for(outcome: Outcome) -> tuple[str, ...]:
    """The suites that measure an outcome where none is named."""
    suite = KINDS[outcome.kind].suite
    if suite == "rec" and outcome.source == REF_L4:
        return ("rec", "ref_l4")
    return (suite, "ovdeval") if suite == "ovd" and outcome.source.startswith(OVDEVAL) else (suite,)


def build_statistic(outcomes: Sequence[Outcome], suites: Sequence[str] | None = None) -> Statistic:
    """All metrics of a split as one statistic, each suite over the outcomes that it is for.

    With `suites` these measure all outcomes, whatever is asked.
    """
    parts: list[tuple[np.ndarray, Statistic]] = []
    for name, build in SUITES.items():
        places = [i for i, o in enumerate(outcomes) if name in (suites or suites_for(o))]
        if places:
            parts.append((np.array(places), build([outcomes[i] for i in places])))

    def measure(counts_N: np.ndarray) -> dict[str, float]:
        values: dict[str, float] = {}
        for places, part in parts:
            values |= part(counts_N[places])
        return values

    return measure
