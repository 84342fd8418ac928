"""The reward of the benchmark: a number made from the answer's text, so that no group is without variance."""

from __future__ import annotations

import zlib
from typing import Any


def by_hash(completions: list[Any], **columns: Any) -> list[float]:
    """A number in [0, 1) per answer, the same for the same text; TRL's signature, which both sides take."""
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    return [(zlib.crc32(text.encode()) % 100_003) / 100_003 for text in texts]
