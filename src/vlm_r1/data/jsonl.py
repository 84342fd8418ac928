"""Rows of a file: JSONL, JSON or Parquet, numbered as a person finds them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlm_r1.data.parquet import iter_parquet
from vlm_r1.errors import DataError, Fault, half_character, shown

ENDINGS = (".jsonl", ".json", ".parquet")
"""File endings that can be read."""

_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")
"""An escape that stands for a whole character only beside another one."""


def iter_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Rows of a data file as `(line, value)`, or `(line, Fault)` where a line cannot be read.

    The number is the line of a JSONL file and the row of a JSON list or a Parquet file, from 1. Raises `DataError`
    for a file that does not exist, has another ending, or cannot be read as a whole.
    """
    if path.suffix not in ENDINGS:
        raise DataError(f'data file "{path}" ends in "{path.suffix}"; it must be one of {", ".join(ENDINGS)}')
    if not path.is_file():
        raise DataError(f'data file "{path}" does not exist; correct it (relative paths start from the working folder)')
    if path.suffix == ".parquet":
        yield from enumerate(iter_parquet(path), start=1)
        return
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f'data file "{path}" cannot be read ({error}); check its permissions') from None
    yield from _jsonl_rows(data) if path.suffix == ".jsonl" else _json_rows(path, data)


def row_name(path: Path, number: int) -> str:
    """How messages name a row: `file.jsonl:17`, or `file.parquet row 17` where there are no lines."""
    return f"{path}:{number}" if path.suffix == ".jsonl" else f"{path} row {number}"


def empty_file(path: Path) -> DataError:
    """The error for a data file without a row."""
    return DataError(f'data file "{path}" is empty; write one JSON object a line, each with a problem and a solution')


def _jsonl_rows(data: bytes) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if line.strip():
            yield number, _parse(line)


def _parse(line: bytes) -> Any:
    try:
        value = json.loads(line.decode("utf-8"))
        half = half_character(value) if _ESCAPE.search(line) else None
        if half is not None:
            return Fault(kind="encoding", what=half, remedy="Write the whole character, or leave it out")
        return value
    except UnicodeDecodeError as error:
        what = f"byte {error.start + 1} of the line is not UTF-8"
        return Fault(kind="encoding", what=what, remedy="Save the file as UTF-8")
    except json.JSONDecodeError as error:
        text = line.decode("utf-8")
        near = text[max(0, error.pos - 20) : error.pos + 20]
        what = f"not JSON: {error.msg} at column {error.colno}, near {shown(near)}"
        return Fault(kind="json", what=what, remedy="Correct the line; each holds one JSON object")
    except (ValueError, RecursionError) as error:
        return Fault(kind="json", what=f"not JSON: {error}", remedy="Correct the line; each holds one JSON object")


def _json_rows(path: Path, data: bytes) -> Iterator[tuple[int, Any]]:
    if not data.strip():
        return
    value = _parse(data.removeprefix(b"\xef\xbb\xbf"))
    if isinstance(value, Fault):
        raise DataError(f"{path}: {value.what}. A .json file holds one list of objects; use .jsonl for one a line")
    if isinstance(value, dict) and isinstance(value.get("data"), list):
        value = value["data"]
    if not isinstance(value, list):
        raise DataError(f"{path}: the file holds {shown(value)}, not a list of objects; use .jsonl for one a line")
    yield from enumerate(value, start=1)
