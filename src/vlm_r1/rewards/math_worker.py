"""The process in which expressions are compared: one JSON request a line in, one reply a line out.

It is started as a script and imports nothing of this package, so that it starts fast and can be killed: a power of
powers keeps the computer algebra busy, and growing, in code that no time-out inside the process can interrupt.
"""

from __future__ import annotations

import json
import logging
import re
import signal
import sys
from typing import Any

MEMORY_BYTES = 4 * 2**30
ORPHAN_S = 30
"""A comparison that outlives the process which asked for it ends itself after this long."""

# Three letters or more that are no LaTeX command, environment or function: running text, not a formula.
WORD = re.compile(
    r"(?<![\\A-Za-z])(?<!\\begin\{)(?<!\\end\{)"
    r"(?!(?:sin|cos|tan|cot|sec|csc|log|exp|sqrt|max|min|lim|pi|inf)\b)[A-Za-z]{3,}"
)
ENVIRONMENT = re.compile(r"\\begin\{(\w+)\}.*?\\end\{\1\}")


def expressions(text: str) -> list[Any]:
    """What math-verify reads in a text; a bare formula, or a bare matrix among words, is wrapped in dollar signs so
    that it is read whole. math-verify reads line by line, LaTeX does not: line ends become spaces.
    """
    import math_verify

    text = " ".join(text.split())
    anchored = "$" in text or "\\boxed" in text or "\\(" in text or "\\[" in text
    if not anchored:
        text = ENVIRONMENT.sub(r"$\g<0>$", text) if WORD.search(text) else f"${text}$"
    found = math_verify.parse(text, parsing_timeout=None)
    return list(found if found or anchored else math_verify.parse(text.replace("$", ""), parsing_timeout=None))


def equal(true: str, text: str) -> bool:
    """Are two results mathematically equal? What cannot be read is equal to nothing."""
    import math_verify

    gold, target = expressions(true), expressions(text)
    return bool(gold and target) and math_verify.verify(gold, target, timeout_seconds=None)


def main() -> None:
    """Say "ready" once the algebra is loaded, then answer requests `[true, text]` until standard input ends."""
    import math_verify  # noqa: F401  (imported before "ready", so that the first request does not wait for it)

    # Their warning says that the caller must keep the time; the caller does.
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    except (ImportError, ValueError, OSError):
        # No such limit on this system: the caller's time-out is what remains.
        pass
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        true, text = json.loads(line)
        if hasattr(signal, "alarm"):
            signal.alarm(ORPHAN_S)
        try:
            reply = equal(true, text)
        except (Exception, RecursionError):
            # Whatever computer algebra makes of arbitrary text, the texts are not known to be equal.
            reply = False
        print(json.dumps(reply), flush=True)
        if hasattr(signal, "alarm"):
            signal.alarm(0)


if __name__ == "__main__":
    main()
