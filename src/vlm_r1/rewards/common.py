"""What the rewards share: how a value becomes a `Score`, and when there is nothing to compare."""

from __future__ import annotations

from functools import lru_cache

from vlm_r1.prompts.parse_values import nfkc
from vlm_r1.records import Answer, LabelledBox, Score

MAX_CACHED_CHARS = 100
"""Longer labels are folded again each time."""


def scored(name: str, value: float, *notes: str) -> Score:
    """A score with one part."""
    return Score(total=value, parts={name: value}, notes=notes)


def not_scorable(name: str, why: str) -> Score:
    """A score that is left out of the group's statistics: the sample lacks what this reward compares with."""
    return Score(total=None, parts={name: None}, notes=(why,))


def failed(name: str, answer: Answer) -> Score:
    """0 for an answer that could not be read, with the reason as a note."""
    why = f"{answer.failure.kind}: {answer.failure.detail}" if answer.failure else "the answer is of another kind"
    return Score(total=0.0, parts={name: 0.0}, notes=(why,))


def boxes_of(answer: Answer) -> tuple[LabelledBox, ...] | None:
    """The answer's boxes (original pixels), or None where it holds none and does not say "nothing there"."""
    return answer.value if isinstance(answer.value, tuple) else None


def fold_label(label: str) -> str:
    """A label as it is compared: without case, outer and repeated space, and Unicode form.

    >>> fold_label(" Red  Circle ")
    'red circle'
    """
    # A cache of long texts would fill the memory.
    return _fold(label) if len(label) <= MAX_CACHED_CHARS else _fold.__wrapped__(label)


@lru_cache(maxsize=65536)
def _fold(label: str) -> str:
    return " ".join(nfkc(label).casefold().split())
