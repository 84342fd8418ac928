"""Rewards for choices, yes/no, numbers, mathematics and texts."""

from __future__ import annotations

import logging
import math as maths
import re
import unicodedata
from functools import lru_cache
from typing import Any

from vlm_r1.prompts.parse_values import plain, read_choice, read_number, read_yes_no
from vlm_r1.records import Answer, Sample, Score
from vlm_r1.rewards.common import failed, not_scorable, scored


def fold_text(text: str, *, case: bool = False) -> str:
    """A text as it is compared: Unicode form, white space folded, without case unless `case`."""
    text = " ".join(unicodedata.normalize("NFKC", text).split())
    return text if case else text.casefold()


def choice(sample: Sample, answer: Answer) -> Score:
    """1 where the chosen letter is the true one, else 0. A hedged or missing choice scores 0.

    The truth is `truth.choice`, else a letter read from `truth.text` by the rule that reads answers.
    """
    true = sample.truth.choice or (read_choice(sample.truth.text)[0] if sample.truth.text else None)
    if true is None:
        return not_scorable("choice", "the sample has no true choice")
    if not isinstance(answer.value, str):
        return failed("choice", answer)
    return scored("choice", float(answer.value.strip().upper() == true.strip().upper()))


def yes_no(sample: Sample, answer: Answer) -> Score:
    """1 where the answer says yes or no as the truth does, else 0. Both words, or neither, score 0."""
    true = read_yes_no(sample.truth.choice or sample.truth.text or "")[0]
    if true is None:
        return not_scorable("yes_no", "the sample's truth is neither yes nor no")
    return (
        failed("yes_no", answer) if not isinstance(answer.value, str) else scored("yes_no", float(answer.value == true))
    )


def true_number(sample: Sample) -> float | None:
    """The sample's number: `truth.number`, else one number read from `truth.text`."""
    if sample.truth.number is not None:
        return sample.truth.number
    return read_number(sample.truth.text)[0] if sample.truth.text else None


def number(sample: Sample, answer: Answer, *, tolerance: float = 1e-6, relative: float = 0.0) -> Score:
    """1 where |answer - truth| <= max(tolerance, relative x |truth|), else 0: no partial credit.

    `relative: 0.05` is the relaxed accuracy of chart questions (ChartQA).
    """
    true = true_number(sample)
    if true is None:
        return not_scorable("number", "the sample has no true number")
    if not isinstance(answer.value, float):
        return failed("number", answer)
    return scored("number", float(abs(answer.value - true) <= max(tolerance, relative * abs(true))))


_BOXED = re.compile(r"\\boxed\s*\{([^{}]*(?:\{[^{}]*\}[^{}]*)*)\}")
_DOLLARS = re.compile(r"\$+([^$]+)\$+")
_OR = re.compile(r"\b(?:or|either)\b", re.IGNORECASE)
_WORD = re.compile(r"(?<![\\A-Za-z])(?!(?:sin|cos|tan|cot|sec|csc|log|exp|sqrt|max|min|lim|pi|inf)\b)[A-Za-z]{3,}")
# Powers of powers, huge exponents and factorials keep the computer algebra busy in code no time-out can interrupt.
_HUGE = re.compile(
    r"(?:\^|\*\*)\s*\{?[^{}\s]{0,40}?(?:\^|\*\*)|(?:\^|\*\*)\s*[{(]?\s*\d{4,}|\d{4,}\s*\)?\s*!|!\s*!|!\s*\)+\s*!"
)
MAX_MATH_CHARS = 1000
"""A longer answer is compared as text alone."""


@lru_cache(maxsize=4096)
def _expressions(text: str) -> tuple[Any, ...]:
    """What math-verify reads in a text; formulas without dollar signs are wrapped so that they are read whole."""
    import math_verify

    # Their warning says that the caller must keep the time; the rubric does.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    anchored = "$" in text or "\\boxed" in text or "\\(" in text or "\\[" in text
    wrapped = text if anchored or _WORD.search(text) else f"${text}$"
    found = math_verify.parse(wrapped, parsing_timeout=None)
    return tuple(found if found or wrapped == text else math_verify.parse(text, parsing_timeout=None))


def _hedged(text: str, true: str) -> bool:
    """Does an answer name several results where the truth names one?"""
    boxed = {fold_text(part) for part in _BOXED.findall(text)}
    if boxed:
        return len(boxed) > 1
    if _OR.search(text) and not _OR.search(true):
        return True
    if len({fold_text(part) for part in _DOLLARS.findall(text)}) > 1:
        return True
    return bool(_WORD.search(plain(text))) and read_number(text)[1] == "ambiguous"


def math(sample: Sample, answer: Answer) -> Score:
    """1 where answer and truth are mathematically equal (math-verify, truth first), else 0: no partial credit.

    Equal texts are equal without algebra. Several different results in one answer score 0, as do expressions too
    large to evaluate safely.
    """
    truth = sample.truth
    true = truth.text if truth.text is not None else None if truth.number is None else f"{truth.number:.15g}"
    if true is None:
        return not_scorable("math", "the sample has no true result")
    if isinstance(answer.value, float):
        text = f"{answer.value:.15g}"
    elif isinstance(answer.value, str):
        text = answer.value
    else:
        return failed("math", answer)
    if fold_text(text, case=True) == fold_text(true, case=True):
        return scored("math", 1.0)
    if _hedged(text, true):
        return scored("math", 0.0, "ambiguous: the answer names more than one result")
    if len(text) > MAX_MATH_CHARS or _HUGE.search(text):
        return scored("math", 0.0, "the expression is too large to evaluate")
    import math_verify

    gold, target = list(_expressions(true)), list(_expressions(text))
    equal = bool(gold and target) and math_verify.verify(gold, target, timeout_seconds=None)
    return scored("math", float(equal))


def true_text(sample: Sample) -> str | None:
    """The sample's truth as a text: `truth.text`, else its choice, else its number."""
    truth = sample.truth
    if truth.text is not None or truth.choice is not None:
        return truth.text if truth.text is not None else truth.choice
    if truth.number is None:
        return None
    return (
        str(int(truth.number))
        if maths.isfinite(truth.number) and truth.number == int(truth.number)
        else str(truth.number)
    )


def exact_text(sample: Sample, answer: Answer, *, case: bool = False) -> Score:
    """1 where the texts are equal but for case (unless `case`), white space, Unicode form and a final full stop."""
    true = true_text(sample)
    if true is None:
        return not_scorable("exact_text", "the sample has no true text")
    if answer.text is None or (answer.failure and answer.failure.kind == "empty_answer"):
        return failed("exact_text", answer)
    text = answer.value if isinstance(answer.value, str) else answer.text
    folded = [fold_text(part, case=case).removesuffix(".").rstrip() for part in (text, true)]
    return scored("exact_text", float(folded[0] == folded[1]))


def edit_similarity(sample: Sample, answer: Answer, *, case: bool = True) -> Score:
    """1 - Levenshtein distance / length of the longer text, in [0, 1] (rapidfuzz): for OCR.

    Unicode form and white space are folded, case only with `case: false`. Source: 1 - NED of text recognition.
    """
    true = true_text(sample)
    if true is None:
        return not_scorable("edit_similarity", "the sample has no true text")
    if answer.text is None or (answer.failure and answer.failure.kind == "empty_answer"):
        return failed("edit_similarity", answer)
    from rapidfuzz.distance import Levenshtein

    text = answer.value if isinstance(answer.value, str) else answer.text
    value = Levenshtein.normalized_similarity(fold_text(text, case=case), fold_text(true, case=case))
    return scored("edit_similarity", float(value))
