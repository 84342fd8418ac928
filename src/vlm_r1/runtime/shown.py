"""The files of a run folder for those who look at it: what is odd in them is told and left out, the rest is shown.

Training reads its files with `runtime.runlog`, which stops at what is odd. Here each reader calls `tell` once for a
file that has faults, with a sentence that names the file, and raises nothing but what it says.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import pyarrow as pa
import pyarrow.parquet as pq

from vlm_r1.errors import CheckpointError, shown
from vlm_r1.runtime.runlog import boxes_from_json

Tell = Callable[[str], None]

LARGEST = 1e30
"""No measurement is larger, and sums and axes of larger numbers overflow."""
LAST_STEP = 10**15
NAMED = 3
"""Faults of a file that are told; of more their number is."""

_PHASE = re.compile(r"[\w.-]{1,100}")
_NOT_METRICS = "not a metrics line"


def refuse(fault: str) -> None:
    """Raise `CheckpointError`: for those who would rather not go on."""
    raise CheckpointError(fault)


def tell_faults(path: Path, faults: list[str], tell: Tell) -> None:
    """Tell of the first faults of a file, if it has any."""
    if faults:
        more = f"; and {len(faults) - NAMED} more" if len(faults) > NAMED else ""
        tell(f"{path}: {'; '.join(faults[:NAMED])}{more}. That is left out")


def metrics_row(line: bytes) -> tuple[dict[str, Any] | None, list[str]]:
    """A line of `metrics.jsonl` and what is odd in it; None where it is not a line of metrics.

    A row has a step, numbers, and lists of sentences; what was not finite is None, as the trainer writes it.
    """
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict) or not is_step(row.get("step")):
        return None, [f"{_NOT_METRICS} ({shown(line[:60].decode(errors='replace'), 60)})"]
    odd = [f"{shown(name)} is {shown(value)}" for name, value in row.items() if not _is_metric(value)]
    return {name: _finite(value) for name, value in row.items() if _is_metric(value)}, odd


def shown_metrics(run_dir: Path, tell: Tell) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl` that are whole, in order; empty where there is none."""
    path = Path(run_dir) / "metrics.jsonl"
    rows, faults = [], []
    for number, line in enumerate(_bytes(path, tell).split(b"\n"), start=1):
        row, odd = metrics_row(line) if line.strip() else (None, [])
        rows += [row] if row is not None else []
        faults += [f"line {number}: {fault}" for fault in odd]
    if faults and faults[-1].startswith(f"line {number}: {_NOT_METRICS}"):
        faults.pop()  # cut by a kill, or being written
    tell_faults(path, faults, tell)
    return rows


def shown_json(path: Path, tell: Tell) -> dict[str, Any]:
    """A JSON file that holds an object; empty where there is none, or where it holds something else."""
    try:
        found = json.loads(_bytes(path, tell) or b"{}")
    except (ValueError, RecursionError) as error:
        tell(f"{path}: not JSON ({shown(str(error))}); remove it")
        return {}
    if not isinstance(found, dict):
        tell(f"{path}: holds {shown(found)}, not names with values; remove it")
        return {}
    return found


def shown_evaluation(path: Path, tell: Tell, lone: str = "eval") -> dict[str, dict[str, dict[str, Any]]]:
    """`eval.json` as phase -> split -> metric -> value; empty where there is none.

    A file with a lone evaluation (split -> metric -> value, by `vlm-r1 eval --out`) has the one phase `lone`.
    """
    content = shown_json(path, tell)
    if not any(isinstance(value, dict) for of in _dicts(content) for value in of.values()):
        content = {lone: content} if content else {}
    faults = [f"{shown(name)} is not the name of an evaluation" for name in content if not _PHASE.fullmatch(name)]
    found = {}
    for phase, splits in _objects({n: v for n, v in content.items() if _PHASE.fullmatch(n)}, "", faults).items():
        metrics = _objects(splits, f"{phase}: ", faults)
        faults += [
            f"{phase}: {shown(split)}: {shown(name)} is {shown(value)}"
            for split, values in metrics.items()
            for name, value in values.items()
            if not _is_value(value)
        ]
        found[phase] = {
            split: {name: _finite(value) for name, value in values.items() if _is_value(value)}
            for split, values in metrics.items()
        }
    tell_faults(path, faults, tell)
    return found


def shown_rows(
    path: Path, schema: pa.Schema, tell: Tell, *, columns: Sequence[str] | None = None, sample_id: str | None = None
) -> list[dict[str, Any]]:
    """The rows of a table of answers (`ROLLOUT_COLUMNS` or `EVAL_COLUMNS`), or those of one sample, with all columns or
    some; a column that the table lacks, or that is of another type, is None.

    Raises `CheckpointError` where there is no such table, or it cannot be read.
    """
    filters = None if sample_id is None else [("sample_id", "==", sample_id)]
    try:
        names = pq.read_schema(path).names
        wanted = [field for field in schema if columns is None or field.name in columns]
        kept = [field.name for field in wanted if field.name in names]
        if not kept:
            raise CheckpointError(f"{path}: not a table of answers, by its columns; remove it")
        table = pq.read_table(path, columns=kept, filters=filters)
        faults: list[str] = []
        rows = pa.table([_fitted(table, field, faults) for field in wanted], schema=pa.schema(wanted)).to_pylist()
    except (OSError, pa.ArrowException, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a whole Parquet file ({shown(str(error))}); remove it") from None
    for number, row in enumerate(rows, start=1):
        _repair(row, number, faults)
    tell_faults(path, faults, tell)
    return rows


def _fitted(table: pa.Table, field: pa.Field, faults: list[str]) -> pa.ChunkedArray:
    """A column as it should be."""
    if field.name in table.column_names:
        column = table.column(field.name)
        try:
            return column.cast(field.type)
        except pa.ArrowException:
            faults.append(f"the column {field.name} holds {shown(str(column.type))}, not {field.type}")
    return pa.chunked_array([pa.nulls(len(table), field.type)])


def _repair(row: dict[str, Any], number: int, faults: list[str]) -> None:
    """Put None in the place of each cell that nothing can be made of."""
    for name, value in row.items():
        if isinstance(value, float):
            row[name] = _finite(value) if _is_value(value) else None
        elif name in ("image_width", "image_height") and value is not None and value < 1:
            row[name] = None
        elif name in _CELLS and value is not None and not _CELLS[name](value):
            faults.append(f"row {number}: {name} is {shown(value)}")
            row[name] = None


def _are_boxes(text: str) -> bool:
    try:
        boxes_from_json(text)
    except (ValueError, TypeError, RecursionError):
        return False
    return True


def _are_parts(text: str) -> bool:
    try:
        parts = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(parts, dict) and all(map(_is_value, parts.values()))


_CELLS: dict[str, Callable[[str], bool]] = {"true_boxes": _are_boxes, "pred_boxes": _are_boxes, "parts": _are_parts}
"""Column that holds JSON -> whether a cell holds what it should."""


def _bytes(path: Path, tell: Tell) -> bytes:
    try:
        return path.read_bytes() if path.exists() else b""
    except OSError as error:
        tell(f"{path}: cannot be read ({error.strerror or error})")
        return b""


def _dicts(of: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    return (value for value in of.values() if isinstance(value, dict))


def _objects(of: Mapping[str, Any], where: str, faults: list[str]) -> dict[str, dict[str, Any]]:
    """The values that are objects; the others are faults."""
    faults += [f"{where}{shown(name)} is {shown(value)}" for name, value in of.items() if not isinstance(value, dict)]
    return {name: value for name, value in of.items() if isinstance(value, dict)}


def is_step(value: Any) -> TypeGuard[int]:
    """Whether a value is a number of steps."""
    return type(value) is int and 0 <= value <= LAST_STEP


def _is_value(value: Any) -> bool:
    """Whether a value is a number that can be shown, or the lack of one."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return True
    return isinstance(value, int | float) and abs(value) <= LARGEST


def _is_metric(value: Any) -> bool:
    return _is_value(value) or (isinstance(value, list) and all(isinstance(text, str) for text in value))


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
