"""Pickles of plain containers, read without running anything they name."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

from vlm_r1.errors import DataError


class _PlainUnpickler(pickle.Unpickler):
    """Admits what pickle builds by itself: dict, list, tuple, set, text, bytes, numbers, bool and None.

    Every class and function in a pickle is looked up through `find_class`, so refusing all of them leaves nothing
    that could be called.
    """

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it names {module}.{name}, and only plain containers are read")


def load_plain_pickle(path: Path) -> Any:
    """The value in a pickle file, also one written by Python 2 (its byte strings are read as UTF-8).

    Raises `DataError` for a missing or damaged file and for one that names a class or function.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error}); give the annotation file as published") from None
    try:
        return _PlainUnpickler(io.BytesIO(data), encoding="utf-8", errors="replace").load()
    # What the standard unpickler raises on damaged bytes, as its documentation lists it.
    except (
        pickle.UnpicklingError,
        EOFError,
        ValueError,
        TypeError,
        AttributeError,
        LookupError,
        ImportError,
        OverflowError,
        MemoryError,
    ) as error:
        raise DataError(
            f"{path}: not a pickle of plain containers ({error}); give the annotation file as published"
        ) from None
