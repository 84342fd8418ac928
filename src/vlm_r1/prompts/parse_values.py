"""Choices, yes/no, numbers and texts out of the answer block. Each returns `(value, failure kind)`."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping

MAX_CHARS = 20_000
"""An answer longer than this is read up to here: nothing that is asked for takes more."""

MAX_MARKS = 30
"""Combining marks in a row that are kept, as in Unicode's stream-safe text format: no script has more."""

_MARKS_BY_FORM = "\u0f73\u0f75\u0f81\uff9e\uff9f"
"""Characters that are no combining marks, and whose compatibility forms begin with one."""


def nfkc(text: str) -> str:
    """A text in Unicode's form NFKC, up to `MAX_CHARS`; what is beyond stands as it is.

    Of more than `MAX_MARKS` combining marks in a row the rest is left out: they are put in order in a time that grows
    with their number squared.
    """
    if text.isascii():
        return text
    kept, marks = [], 0
    for sign in text[:MAX_CHARS]:
        marks = marks + 1 if unicodedata.combining(sign) or sign in _MARKS_BY_FORM else 0
        if marks <= MAX_MARKS:
            kept.append(sign)
    return unicodedata.normalize("NFKC", "".join(kept)) + text[MAX_CHARS:]


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
    text = nfkc(unfence(text)[:MAX_CHARS])[:MAX_CHARS]  # one character can become 18
    # Two rounds undo \boxed{\text{B}}.
    text = _WRAP.sub(r" \1 ", _WRAP.sub(r" \1 ", text))
    return " ".join(text.translate(_MARKS).split())


# What comes after one of these explains the answer and is not part of it.
_REASON = re.compile(r"\b(?:because|since|as|due to|for the reason)\b", re.IGNORECASE)


def _before_reason(text: str) -> str:
    match = _REASON.search(text)
    return text[: match.start()] if match and match.start() > 0 else text


_CUE = r"(?:answer|option|choice|choose|select|pick|go with)"
# Chinese, Japanese and Korean stand beside a letter without a space.
_CJK = r"\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_CJK_CUE = r"(?:答案|选项?|选择|正解|答え|정답)\s*[是为は은:]?"
_CJK_NEXT = r"[是为或和项でがと입이가、。]"
_ENDS = (
    r"(?=\s*(?:$|[).,:;!?\]/]|[-\u2013\u2014]\s|\b(?:or|and|but|nor|not|is|because|since|as|due)\b|" + _CJK_NEXT + "))"
)
_BEFORE = rf"(?<![^\W{_CJK}])(?<!['\u2019-])"
_AFTER = rf"(?:(?![\w'\u2019-])|(?={_CJK_NEXT}))"
_LETTERS = (
    re.compile(r"[(\[]\s*([A-Za-z])\s*[)\]]"),
    re.compile(r"(?:^|(?<=[\s,;/]))([A-Z])(?=\s*[).:](?:\s|$))"),
    re.compile(r"^([a-z])(?=\s*(?:[).:]\s|[).:]?$))"),
    re.compile(rf"\b{_CUE}\s*(?:(?:is|are|would be|should be|must be)\b|:|=)?\s*([A-Za-z])\b{_ENDS}", re.IGNORECASE),
    re.compile(rf"{_CJK_CUE}\s*([A-Za-z])(?=\s*(?:$|[).,:;!?\]/]|{_CJK_NEXT}))"),
    re.compile(rf"\bis\s*:?\s*([A-Z])\b{_ENDS}"),
    # A letter that stands alone, but neither the article ("A cat") nor the pronoun ("I think").
    re.compile(rf"{_BEFORE}([B-HJ-Z]){_AFTER}|{_BEFORE}([AI]){_AFTER}{_ENDS}"),
    # Nor is it the article before a number or before a colour that nothing follows.
    re.compile(
        r"^(A)\s+(?i:\d[\d.,%]*|red|orange|yellow|green|blue|purple|violet|pink|brown|black|white|gr[ae]y|cyan)\s*\.?$"
    ),
)
_OPTION = re.compile(r"(?:^|[\s(\[])([A-Z])[)\].:]\s*(.*?)(?=[\s(\[]+[A-Z][)\].:]|$)", re.MULTILINE)


# "Not B" rules a candidate out; which one is meant instead is a guess.
_NO_WORD = rf"(?![^\W{_CJK}])"
_NOT_LETTER = re.compile(
    r"(?:(?i:\b(?:not|neither|nor|except)|n['\u2019]t)\s+|(?:不是|不选|非)\s*)(?i:option\s+)?"
    rf"(?:\([A-Za-z]\)|[B-HJ-Z]{_NO_WORD}|[AI]{_NO_WORD}(?!\s+[a-z]))"
)
_NOT_NUMBER = re.compile(r"(?:\bnot|n['\u2019]t)\s+[-+]?\.?\d", re.IGNORECASE)


def lettered_options(question: str) -> dict[str, str]:
    """The options that a question lists, by letter.

    >>> lettered_options("Which animal? (A) cat (B) dog")
    {'A': 'cat', 'B': 'dog'}
    """
    return {letter: text.strip(" ,;.\t") for letter, text in _OPTION.findall(question)}


def _named(text: str, options: Mapping[str, str]) -> list[re.Match[str]]:
    """Where a text names an option as "A cat": what looks like an article is the letter of that option."""
    found: list[re.Match[str]] = []
    for letter in {"A", "I"} & options.keys():
        name = " ".join(f"{letter} {options[letter]}".split())
        if options[letter] and not any(name.casefold() in other.casefold() for other in options.values()):
            found += re.finditer(rf"(?<!\w)({letter})(?i:{re.escape(name[1:])})(?!\w)", text)
    return found


def read_choice(text: str, question: str = "") -> tuple[str | None, str | None]:
    """The letter of a multiple-choice answer, upper case.

    Read: "B", "(B)", "b.", "B) cat", "Option B", "the answer is B because ...", and "A cat" where the question lists
    "cat" as A. Not read: "A cat" elsewhere (an article), "B or C" (hedged), "cat" (no letter).
    """
    text = _before_reason(plain(text))
    found = [match for pattern in _LETTERS for match in pattern.finditer(text)]
    found += _named(text, lettered_options(question))
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


_SECONDS = re.compile(r"(?<![\w.])\d{1,7}(?:\.\d{1,9})?(?![\d.]*\d)", re.ASCII)


def read_interval(text: str) -> tuple[str | None, str | None]:
    """Two times in seconds as "[start, end]"; more or fewer numbers, or an end before the start, say no interval.

    >>> read_interval("from 1.5 s to 3 s")
    ('[1.5, 3.0]', None)
    """
    found = [float(number) for number in _SECONDS.findall(plain(text)[:MAX_CHARS])]
    if len(found) != 2 or found[1] < found[0]:
        return None, "ambiguous" if len(found) > 2 else "unreadable"
    return f"[{found[0]}, {found[1]}]", None


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


def exact_number(text: str) -> float | None:
    """A numeral as a float or, where it is an integer that a float would round, as an integer; None for no numeral.

    >>> exact_number("12345678901234567891")
    12345678901234567891
    """
    try:
        value = float(text)
        whole = int(text) if text.lstrip("+-").isdecimal() and math.isfinite(value) else None
    except ValueError:
        return None
    return value if whole is None or whole == value else whole


def number_text(number: float) -> str:
    """A number as people write it: integers without a point or an exponent, others with up to 15 digits.

    >>> number_text(1234567.0), number_text(0.5)
    ('1234567', '0.5')
    """
    return str(int(number)) if math.isfinite(number) and number == int(number) else f"{number:.15g}"


def read_number(text: str) -> tuple[float | None, str | None]:
    """The number of an answer: signs, decimals, thousands ("1,234"), exponents and simple fractions; units are
    left out. Several different numbers are a hedge; the same one twice is not. An integer that a float would round
    (more than 15 digits) stays an integer.
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
        value = exact_number(match.group().replace(",", "").replace(" ", ""))
        if value is None or not math.isfinite(value):
            return None, "unreadable"
        values.add(value)
    if len(values) == 1 and not _NOT_NUMBER.search(text):
        return values.pop(), None
    return None, "ambiguous" if values else "unreadable"


def read_text(text: str) -> tuple[str | None, str | None]:
    """Free text or LaTeX: the last fenced block or the whole, outer white space removed."""
    value = unfence(text)
    return (value, None) if value else (None, "empty_answer")
