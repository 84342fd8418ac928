"""Rewards for choices, yes/no, numbers and texts."""

from __future__ import annotations

import json
from fractions import Fraction

from vlm_r1.prompts.parse_values import (
    MAX_CHARS,
    nfkc,
    number_text,
    read_choice,
    read_interval,
    read_number,
    read_yes_no,
)
from vlm_r1.records import Answer, Sample, Score
from vlm_r1.rewards.common import failed, not_scorable, scored


def fold_text(text: str, *, case: bool = False) -> str:
    """A text as it is compared: Unicode form (`nfkc`), white space folded, without case unless `case`."""
    text = " ".join(nfkc(text).split())
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
    if not isinstance(answer.value, (int, float)):
        return failed("number", answer)
    # As fractions: integers of more than 15 digits differ where their floats are equal.
    difference = abs(Fraction(answer.value) - Fraction(true))
    return scored("number", float(difference <= max(tolerance, relative * abs(true))))


def true_text(sample: Sample) -> str | None:
    """The sample's truth as a text: `truth.text`, else its choice, else its number."""
    truth = sample.truth
    if truth.text is not None or truth.choice is not None:
        return truth.text if truth.text is not None else truth.choice
    if truth.number is None:
        return None
    return number_text(truth.number)


def _texts(name: str, sample: Sample, answer: Answer) -> tuple[str, str] | Score:
    """`(written, true)` to compare, or the score where there are not both."""
    true = true_text(sample)
    if true is None:
        return not_scorable(name, "the sample has no true text")
    if answer.text is None or (answer.failure and answer.failure.kind == "empty_answer"):
        return failed(name, answer)
    return answer.value if isinstance(answer.value, str) else answer.text, true


def exact_text(sample: Sample, answer: Answer, *, case: bool = False) -> Score:
    """1 where the texts are equal but for case (unless `case`), white space, Unicode form and a final full stop."""
    texts = _texts("exact_text", sample, answer)
    if isinstance(texts, Score):
        return texts
    folded = [fold_text(part, case=case).removesuffix(".").rstrip() for part in texts]
    return scored("exact_text", float(folded[0] == folded[1]))


def edit_similarity(sample: Sample, answer: Answer, *, case: bool = True) -> Score:
    """1 - Levenshtein distance / length of the longer text, in [0, 1] (rapidfuzz): for OCR.

    Unicode form and white space are folded, case only with `case: false`; of each text the first `MAX_CHARS` characters
    are compared. Source: 1 - NED of text recognition.
    """
    texts = _texts("edit_similarity", sample, answer)
    if isinstance(texts, Score):
        return texts
    from rapidfuzz.distance import Levenshtein

    written, true = (fold_text(part[:MAX_CHARS], case=case)[:MAX_CHARS] for part in texts)
    value = Levenshtein.normalized_similarity(written, true)
    return scored("edit_similarity", float(value))


def tiou(sample: Sample, answer: Answer) -> Score:
    """Temporal IoU of two intervals in seconds, in [0, 1]: what they share over what they cover together.

    Two moments without length score 1 where they are the same. Source: temporal grounding (Gao et al. 2017, TALL).
    """
    true = None if sample.truth.text is None else read_interval(sample.truth.text)[0]
    if true is None:
        return not_scorable("tiou", "the sample has no true interval")
    if not isinstance(answer.value, str) or answer.failure:
        return failed("tiou", answer)
    (start, end), (first, last) = (json.loads(text) for text in (true, answer.value))
    shared, covered = max(0.0, min(end, last) - max(start, first)), max(end, last) - min(start, first)
    return scored("tiou", shared / covered if covered else float(start == first))
