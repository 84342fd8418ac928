"""Which rows of a source are used: "all", "first:N", "end:N", "random:N", each also with a percentage."""

from __future__ import annotations

import math
import re

import numpy as np

from vlm_r1.errors import ConfigError

_SAMPLING = re.compile(r"^(?:(first|end|random):)?(\d+(?:\.\d+)?)(%?)$", re.ASCII)


def sampled_indices(sampling: str, n: int, seed: int) -> list[int]:
    """Row numbers (from 0, in file order) that a sampling string picks of `n` rows.

    "first:N" and "end:N" take that end, "random:N" draws without replacement, the same rows for a seed. N may be a
    percentage (rounded up, as VLM-R1 does); a bare percentage is random. N above `n` takes all. Raises `ConfigError`.
    """
    if sampling == "all":
        return list(range(n))
    match = _SAMPLING.match(sampling)
    remedy = 'use "all", "first:N", "end:N", "random:N" or a percentage such as "random:10%"'
    if match is None:
        raise ConfigError(f'sampling is "{sampling}"; {remedy}')
    side, number, percent = match.groups()
    if (side is None or "." in number) and not percent:
        raise ConfigError(f'sampling is "{sampling}"; {remedy}')
    if percent and float(number) > 100:
        raise ConfigError(f'sampling is "{sampling}", more than all; {remedy}')
    count = min(n, math.ceil(float(number) * n / 100) if percent else int(number))
    if count == 0:
        raise ConfigError(f'sampling "{sampling}" picks none of {n} rows; {remedy}')
    if side == "first":
        return list(range(count))
    if side == "end":
        return list(range(n - count, n))
    drawn = np.random.default_rng([seed, 1]).permutation(n)[:count]
    return sorted(int(index) for index in drawn)


def rows_asked_for(sampling: str) -> int:
    """How many rows a sampling string names by their number; 0 for "all" and percentages.

    >>> rows_asked_for("first:260"), rows_asked_for("random:10%")
    (260, 0)
    """
    match = _SAMPLING.match(sampling)
    return 0 if match is None or match[3] else int(match[2])
