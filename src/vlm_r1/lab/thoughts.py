"""Does a thought name what is there before the answer, and are the answers with such thoughts the better ones?"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlm_r1.data.scene_things import COLOURS, SHAPES
from vlm_r1.records import LabelledBox
from vlm_r1.runtime.runlog import read_rollouts, rollout_steps

_NAMES = re.compile(rf"\b(?:{'|'.join(COLOURS)}) (?:{'|'.join(SHAPES)})\b")
_NONE = re.compile(r"\bnone\b")


def lists_first(thought: str) -> bool:
    """Whether a thought names kinds of objects, or says that there are none: it looks for what is there first.

    >>> lists_first("present: red circle, top left"), lists_first("present: none"), lists_first("")
    (True, True, False)
    """
    return bool(_NAMES.search(thought)) or bool(_NONE.search(thought))


def lists_right(thought: str, true: Sequence[LabelledBox]) -> bool:
    """Whether a thought that lists names all kinds that are to be found and no other."""
    return lists_first(thought) and set(_NAMES.findall(thought)) == {item.label for item in true}


def thought_correlation(run: Path) -> float | None:
    """Partial correlation, within groups, of "the thought lists what is there" with the accuracy reward; in [-1, 1].

    Both are taken as deviations from their group's mean, so that easy questions do not count; the number of tokens is
    partialled out, so that it is not length alone. Over all rollouts that the run kept; None where no group has both
    kinds of thought or rewards do not differ.
    """
    listed: list[np.ndarray] = []
    rewards: list[np.ndarray] = []
    lengths: list[np.ndarray] = []
    for step in rollout_steps(run):
        groups: dict[int, list[dict[str, Any]]] = {}
        for row in read_rollouts(run, step):
            groups.setdefault(row["group"], []).append(row)
        for rows in groups.values():
            kept = [row for row in rows if row["reward"] is not None]
            if len(kept) < 2:
                continue
            flags = [lists_first(row["think"] or "") for row in kept]
            listed.append(_centred(flags))
            rewards.append(_centred([_accuracy(row) for row in kept]))
            lengths.append(_centred([row["n_tokens"] for row in kept]))
    if not listed:
        return None
    return partial_correlation(*(np.concatenate(part) for part in (listed, rewards, lengths)))


def partial_correlation(x: np.ndarray, y: np.ndarray, given: np.ndarray) -> float | None:
    """Correlation of `x` and `y` (each `(N,)`, mean 0) with what `given` explains linearly taken out of both."""
    size = float(given @ given)
    if size > 0:
        x, y = (values - given * float(values @ given) / size for values in (x, y))
    norm = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / norm if norm > 1e-9 else None


def _centred(values: Sequence[float]) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    return array - array.mean()


def _accuracy(row: dict[str, Any]) -> float:
    """The reward without its part for form: what the thought is to be good for."""
    parts = json.loads(row["parts"] or "{}")
    found = [value for name, value in parts.items() if name != "format" and value is not None]
    return sum(found) if found else float(row["reward"])
