"""Rewards that shape how an answer is written: its length and its repetitions."""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Sequence

from vlm_r1.records import Answer, Sample, Score
from vlm_r1.rewards.accuracy import accuracy_for
from vlm_r1.rewards.common import fold_label, not_scorable, scored


def length_cosine(
    sample: Sample, answer: Answer, *, correct: str | None = None, threshold: float = 0.7, max_tokens: int = 1024
) -> Score:
    """A cosine over the answer's tokens: correct 1 (short) to 0.5 (long), wrong -0.5 (short) to 0 (long).

    With p = min(1, n_tokens / max_tokens) and c = (1 + cos(pi p)) / 2 it is 0.5 + 0.5 c where the answer is correct,
    -0.5 c where it is wrong (or cannot be read), so range [-0.5, 1]; beyond `max_tokens` it stays at the end value.
    Correct: the reward named by `correct` (default: the accuracy of the task's kind of answer) is at least
    `threshold`. Source: the cosine reward of Yeo et al. 2025 with VLM-R1's constants.
    """
    if answer.n_tokens <= 0 and answer.raw:
        return not_scorable("length_cosine", "the number of tokens is not known")
    accuracy = accuracy_for(sample, correct)(sample, answer).total
    if accuracy is None:
        return not_scorable("length_cosine", "the sample has no truth to be correct about")
    curve = (1 + math.cos(math.pi * min(1.0, answer.n_tokens / max_tokens))) / 2
    return scored("length_cosine", 0.5 + 0.5 * curve if accuracy >= threshold else -0.5 * curve)


MAX_WORD_CHARS = 32
"""A longer run of letters and digits is counted by character: no word, but "aaaa...", "0.3333..." or a script such as
Thai."""

# Chinese, Japanese and Korean are written without spaces: counted by character.
_WORD = r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+"


MAX_CHARS = 65_536
"""Of a longer text the end is judged, where a model that loops does."""


def words_of(text: str, n: int) -> list[str]:
    """What n-grams are made of: words without case and, where `n` or more marks stand in a row, each of those marks.

    Marks are emoji, punctuation and other characters that are neither letters nor digits. Between words they are left
    out: the commas and brackets of coordinates repeat in any answer.
    """
    words: list[str] = []
    for run in re.findall(rf"(?:(?:[^\w\s]|_)\s*){{{n},}}|{_WORD}", text.casefold()):
        whole = len(run) <= MAX_WORD_CHARS and (run[0].isalnum() or run[-1].isalnum())
        words.extend([run] if whole else "".join(run.split()))
    return words


def repeated_share(items: Sequence[Hashable]) -> float:
    """1 - distinct / all, in [0, 1); 0 for nothing."""
    return 1 - len(set(items)) / len(items) if items else 0.0


def repetition(sample: Sample, answer: Answer, *, n: int = 6) -> Score:
    """-(1 - distinct / all) over the word n-grams (`words_of`) of the text, in (-1, 0]; 0 for a text under `n` words.

    Where the answer is a list of boxes, the list is judged by its (box, label) items and the words are those of the
    thoughts: JSON repeats its keys; the worse of the two counts. Source: the n-gram repetition penalty of
    Yeo et al. 2025, with the reference's n and its rule for boxes.
    """
    text, items = answer.raw, 0.0
    if isinstance(answer.value, tuple):
        text = answer.think or ""
        items = repeated_share([(item.box, fold_label(item.label)) for item in answer.value])
    words = words_of(text[-MAX_CHARS:], n)
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return scored("repetition", -max(items, repeated_share(grams)) + 0.0)


def calls(sample: Sample, answer: Answer) -> Score:
    """How many calls of tools the answer made; range [0, `env.max_calls`].

    With a negative weight (`calls: -0.05`) it is what a call costs.
    """
    return scored("calls", float(len(answer.calls)))


def environment(sample: Sample, answer: Answer) -> Score:
    """What the environment gave the answer (its `score`); not scorable where it gives none."""
    if answer.environment is None:
        return not_scorable("environment", "the environment gives no score")
    return scored("environment", answer.environment)
