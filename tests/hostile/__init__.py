"""Whatever comes in, the package answers with a result or one message: what is attacked, as data.

A kind of input is a module of this folder, named in `KINDS`:

- `CASES`: a list of `Case`, each one hostile input and the message that it must meet.
- `DOORS`: name -> `door(content, folder)`, one way by which this kind of input comes in: a reader, a command, a page.
  A door returns, or raises the `UserError` that its user would see. `folder` is the door's own.
- `OTHERWISE`: door -> what that door says of a case that others refuse, where it has its own words (None: it takes
  it; `...`: it may take it or not).
- `CONTENTS`: a hypothesis strategy of such inputs, mostly damaged copies of good ones, and `EXAMPLES`, how many of
  them are tried in the ordinary tests; a campaign tries `MANY` times as many.

`test_matrix.py` sends every case through every door, and `test_fuzz.py` sends contents of the strategy, and the files
of `corpus/KIND/`, through every door: `pytest tests/hostile` in short, with `-m campaign` many thousands. So a new
reader or page is one entry of `DOORS`, a new attack one `Case`, a new kind one module and its name in `KINDS`. What the
fuzzing finds is fixed, and the input kept in `corpus/KIND/` (or as a `Case`, where it is not the bytes of one file).
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from hypothesis import strategies as st

from vlm_r1.errors import UserError

KINDS = ("annotations", "answers", "images", "models", "recipes", "rows")
MANY = 200
SLOWEST_S = 10.0
"""Seconds that one answer may take, on a busy machine."""
CORPUS = Path(__file__).parent / "corpus"

Door = Callable[[Any, Path], object]


@dataclass(frozen=True)
class Case:
    """One hostile input: `says` is a regular expression of the message, None where every door must take the input."""

    name: str
    content: Any
    says: str | None


def kind(name: str) -> ModuleType:
    """The module of a kind of input."""
    return importlib.import_module(f"hostile.{name}")


def told(door: Door, content: Any, folder: Path) -> str | None:
    """The message that a door answers with, None where it takes the content.

    Any other exception is a fault, and so are a message that cannot be printed and an answer after `SLOWEST_S`.
    """
    start, message = time.monotonic(), None
    try:
        door(content, folder)
    except UserError as error:
        message = str(error)
        message.encode("utf-8")
        assert message.strip()
    assert time.monotonic() - start < SLOWEST_S
    return message


def damaged(seeds: list[bytes], how: Sequence[str] = ("set", "cut", "repeat", "end")) -> st.SearchStrategy[bytes]:
    """Copies of `seeds` with a few bytes changed, a part cut out or repeated, or an end cut off."""
    places = st.integers(0, 1 << 16)
    change = st.tuples(st.sampled_from(how), places, st.integers(0, 255), places)
    return st.builds(_damage, st.sampled_from(seeds), st.lists(change, min_size=1, max_size=4))


def _damage(data: bytes, changes: list[tuple[str, int, int, int]]) -> bytes:
    for what, at, value, length in changes:
        at, length = at % (len(data) + 1), length % 64
        if what == "set":
            data = data[:at] + bytes([value]) + data[at + 1 :]
        elif what == "cut":
            data = data[:at] + data[at + length :]
        elif what == "repeat":
            data = data[:at] + data[at : at + length] * 2 + data[at + length :]
        else:
            data = data[:at]
    return data
