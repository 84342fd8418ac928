"""How much of a published benchmark is labelled wrongly, to be said beside results on it."""

from __future__ import annotations

import re
from collections.abc import Iterable

ERRORS = {"refcoco": (3054, 21586), "refcoco+": (5201, 21373), "refcocog": (675, 14498)}
"""Data set -> (wrong, all) expressions of its val and test splits, as reviewed for Ref-L4 (arXiv 2406.16866)."""

_NAMES = {"refcoco": "RefCOCO", "refcoco+": "RefCOCO+", "refcocog": "RefCOCOg"}
_SET = re.compile(r"refcoco(\+|plus|p(?![a-z])|g)?", re.IGNORECASE)


def noise_notes(splits: Iterable[str]) -> list[str]:
    """A sentence for each data set with known label noise among these splits, told by their names.

    >>> noise_notes(["refcoco+_val", "lisa"])[0][:53]
    'RefCOCO+: 24 % of its expressions are labelled wrongl'
    """
    found = set()
    for split in splits:
        match = _SET.search(split)
        if match and "review" not in split.lower():
            found.add({"": "refcoco", "g": "refcocog"}.get((match[1] or "").lower(), "refcoco+"))
    return [
        f"{_NAMES[name]}: {100 * ERRORS[name][0] / ERRORS[name][1]:.0f} % of its expressions are labelled wrongly "
        f"({ERRORS[name][0]:,} of {ERRORS[name][1]:,} in val and test, by the review of arXiv 2406.16866); report the "
        "reviewed ones beside it: vlm-r1 data convert refcoco_reviewed"
        for name in ERRORS
        if name in found
    ]
