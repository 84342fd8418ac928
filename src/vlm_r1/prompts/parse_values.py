"""Choices, yes/no, numbers and texts out of the answer block. Each returns `(value, failure kind)`."""

from __future__ import annotations

import math
import re
import unicodedata

MAX_CHARS = 20_000
"""An answer longer than this is read up to here: nothing that is asked for takes more."""

_FENCE = re.compile(r"```[^\S\n]*[\w+-]*[^\S\n]*\n?")


def unfence(text: str) -> str:
    """The last fenced block (``` ... ```) of an answer, else the whole; outer white space removed."""
    if "```" not in text:
        return text.strip()
    # The fences pair up from the left; an opening one left over at the end is no block.
    parts = text.split("```")
    closed = (len(parts) - 1) // 2
    if not closed:
        return _FENCE.sub("", text).strip()
    block = parts[2 * closed - 1]
    head, newline, body = block.partition("\n")
    if newline and re.fullmatch(r"[\w+-]*\s*", head):
        return body.strip()
    return re.sub(r"^(?:json|text|latex|python)\b", "", block.strip(), flags=re.IGNORECASE).strip()


_WRAP = re.compile(r"\\(?:boxed|text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}")
_MARKS = str.maketrans({"\N{MINUS SIGN}": "-", "*": " ", "`": " ", "$": " ", '"': " ", "\u201c": " ", "\u201d": " "})


def plain(text: str) -> str:
    """An answer without its wrappings: fences, `\\boxed{}`, bold marks, quotes, full-width forms."""
    text = unicodedata.normalize("NFKC", unfence(text)[:MAX_CHARS])
    # Two rounds undo \boxed{\text{B}}.
    text = _WRAP.sub(r" \1 ", _WRAP.sub(r" \1 ", text))
    return " ".join(text.translate(_MARKS).split())


# What comes after one of these explains the answer and is not part of it.
_REASON = re.compile(r"\b(?:because|since|as|due to|for the reason)\b", re.IGNORECASE)


def _before_reason(text: str) -> str:
    match = _REASON.search(text)
    return text[: match.start()] if match and match.start() > 0 else text


_CUE = r"(?:answer|option|choice|choose|select|pick|go with)"
_ENDS = r"(?=\s*(?:$|[).,:;!?\]/]|\b(?:or|and|but|nor|not|is|because|since|as|due)\b))"
_LETTERS = (
    re.compile(r"[(\[]\s*([A-Za-z])\s*[)\]]"),
    re.compile(r"(?:^|(?<=[\s,;/]))([A-Z])(?=\s*[).:](?:\s|$))"),
    re.compile(r"^([a-z])(?=\s*(?:[).:]\s|[).:]?$))"),
    re.compile(rf"\b{_CUE}\s*(?:(?:is|are|would be|should be|must be)\b|:|=)?\s*([A-Za-z])\b{_ENDS}", re.IGNORECASE),
    re.compile(rf"\bis\s*:?\s*([A-Z])\b{_ENDS}"),
    # A letter that stands alone, but neither the article ("A cat") nor the pronoun ("I think").
    re.compile(rf"(?<![\w'\u2019-])([B-HJ-Z])(?![\w'\u2019-])|(?<![\w'\u2019-])([AI])(?![\w'\u2019-]){_ENDS}"),
)


# "Not B" rules a candidate out; which one is meant instead is a guess.
_NOT_LETTER = re.compile(
    r"(?i:\b(?:not|neither|nor|except)|n['\u2019]t)\s+(?i:option\s+)?(?:\([A-Za-z]\)|[B-HJ-Z]\b|[AI]\b(?!\s+[a-z]))"
)
_NOT_NUMBER = re.compile(r"(?:\bnot|n['\u2019]t)\s+[-+]?\.?\d", re.IGNORECASE)


def read_choice(text: str) -> tuple[str | None, str | None]:
    """The letter of a multiple-choice answer, upper case.

    Read: "B", "(B)", "b.", "B) cat", "Option B", "the answer is B because ...". Not read: "A cat" (an article),
    "B or C" (hedged), "cat" (no letter).
    """
    text = _before_reason(plain(text))
    found = [match for pattern in _LETTERS for match in pattern.finditer(text)]
    letters = {match.group(match.lastindex or 1).upper() for match in found}
    if len(letters) == 1 and not _NOT_LETTER.search(text):
        return letters.pop(), None
    return None, "ambiguous" if letters else "unreadable"


_YES_NO = re.compile(r"\b(yes|no)\b", re.IGNORECASE)


def read_yes_no(text: str) -> tuple[str | None, str | None]:
    """ "yes" or "no" from whole words, without case; both words in one answer are a hedge."""
    words = {word.lower() for word in _YES_NO.findall(_before_reason(plain(text)))}
    if len(words) == 1:
        return words.pop(), None
    return None, "ambiguous" if words else "unreadable"


# A sign counts unless a digit or letter is before it ("3-4" is a range); digits glued to a letter ("m2", "m^2") are
# part of a unit. Thousands are groups of three after commas.
_NUMBER = re.compile(
    r"(?<![\w^.])(?:(?<![\w)])[+-]\s?)?(?:\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d*)?|\.\d+)"
    r"(?:[eE][+-]?\d{1,4}(?![\w]))?",
    re.ASCII,
)
_DOTTED = re.compile(r"\d\.\d+\.\d", re.ASCII)
_FRACTION = re.compile(r"^[^\d+-]{0,40}([+-]?\s?\d{1,15})\s?/\s?(\d{1,15})(?![\d/.])[^\d/]*$", re.ASCII)
_TEX_FRACTION = re.compile(r"\\[dt]?frac\s*\{\s*(-?\d{1,15})\s*\}\s*\{\s*(\d{1,15})\s*\}", re.ASCII)


def read_number(text: str) -> tuple[float | None, str | None]:
    """The number of an answer: signs, decimals, thousands ("1,234"), exponents and simple fractions; units are
    left out. Several different numbers are a hedge; the same one twice is not.
    """
    text = plain(text)
    text = _TEX_FRACTION.sub(r"\1/\2", text).replace("{,}", ",").replace("\\,", "")
    fraction = _FRACTION.match(text)
    if fraction and int(fraction.group(2)) != 0:
        return int(fraction.group(1).replace(" ", "")) / int(fraction.group(2)), None
    text = _before_reason(text)
    if _DOTTED.search(text):
        return None, "unreadable"
    values = set()
    for match in _NUMBER.finditer(text):
        value = float(match.group().replace(",", "").replace(" ", ""))
        if not math.isfinite(value):
            return None, "unreadable"
        values.add(value)
    if len(values) == 1 and not _NOT_NUMBER.search(text):
        return values.pop(), None
    return None, "ambiguous" if values else "unreadable"


def read_text(text: str) -> tuple[str | None, str | None]:
    """Free text or LaTeX: the last fenced block or the whole, outer white space removed."""
    value = unfence(text)
    return (value, None) if value else (None, "empty_answer")
