"""Annotation files in their original layouts become JSONL: one file a format, one function for all."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_type_hints

import pydantic

from vlm_r1.data.convert.coco import convert_coco
from vlm_r1.data.convert.d3 import convert_d3
from vlm_r1.data.convert.lisa import convert_lisa
from vlm_r1.data.convert.ovdeval import convert_ovdeval
from vlm_r1.data.convert.refcoco import convert_refcoco
from vlm_r1.data.convert.refl4 import convert_ref_l4, convert_refcoco_reviewed
from vlm_r1.errors import ConfigError, DataError, half_character, nearest
from vlm_r1.files import replacing

CONVERTERS: dict[str, Callable[..., Iterator[dict[str, Any]]]] = {
    "refcoco": convert_refcoco,
    "refcoco_reviewed": convert_refcoco_reviewed,
    "ref_l4": convert_ref_l4,
    "coco": convert_coco,
    "lisa": convert_lisa,
    "ovdeval": convert_ovdeval,
    "d3": convert_d3,
}
"""Format name -> function `(inputs, **options)` that yields JSONL rows."""


def convert(name: str, inputs: Sequence[Path], out: Path, **options: Any) -> int:
    """Write annotation files of a named format as JSONL; prints and returns the number of rows.

    Images are named as the annotations name them: put the JSONL into their folder or set `image_root`. An existing
    `out` is replaced only when all rows are written. Raises `ConfigError` for an unknown format or option, and
    `DataError` for inputs that are not in the format.
    """
    if name not in CONVERTERS:
        raise ConfigError(f'unknown format "{name}": {nearest(name, CONVERTERS)}')
    function = CONVERTERS[name]
    known = [key for key in inspect.signature(function).parameters if key != "inputs"]
    for key in options:
        if key not in known:
            raise ConfigError(f'{name} has no option "{key}": {nearest(key, known)}')
        _check_type(name, key, options[key])
    for path in inputs:
        if not path.exists():
            raise DataError(f'input "{path}" does not exist; correct the path')
    if not inputs:
        raise ConfigError(f"{name} needs at least one input file")
    rows = 0
    try:
        with replacing(out) as aside:
            with aside.open("w", encoding="utf-8") as file:
                for row in function(inputs, **options):
                    if half := half_character(row):
                        raise DataError(f"{', '.join(map(str, inputs))}: {half}; write the whole character")
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
                    rows += 1
            if not rows:
                raise DataError(f"{', '.join(map(str, inputs))}: no rows to write; check the inputs and the options")
    except OSError as error:
        raise DataError(f'"{out}" cannot be written ({error}); choose another place') from None
    print(f"{out}: {rows} rows")
    return rows


def _check_type(name: str, key: str, value: Any) -> None:
    """Hold an option to the type its converter declares. Raises `ConfigError`."""
    hint = get_type_hints(CONVERTERS[name], include_extras=True)[key]
    try:
        pydantic.TypeAdapter(hint).validate_python(value, strict=True)
    except pydantic.ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise ConfigError(f"{name}: option {key}={value!r}: {reason[0].lower()}{reason[1:]}") from None
