"""What every section of a recipe is, and how it takes leave of old spellings."""

from __future__ import annotations

import math
import warnings
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator, model_validator

MAX_INTEGER = (1 << 31) - 1
"""The highest integer of a setting that names no other limit."""


def renamed(what: str, instead: str) -> None:
    """Warn that a recipe spells something as the release before did."""
    warnings.warn(f"{what}; write {instead}", FutureWarning, stacklevel=2)


def without(values: Any, key: str, what: str) -> Any:
    """A section's values without a key that the release before had; a warning says so."""
    if not isinstance(values, dict) or key not in values:
        return values
    renamed(what, f"the recipe without {key}")
    return {name: value for name, value in values.items() if name != key}


class Section(BaseModel):
    """A part of a recipe; unknown keys are errors, and so are numbers that are not finite.

    `old_names` are spellings of the release before, which are read with a warning: old key -> key.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)
    old_names: ClassVar[dict[str, str]] = {}

    @model_validator(mode="before")
    @classmethod
    def _read_old_names(cls, values: Any) -> Any:
        for old, new in cls.old_names.items():
            if not isinstance(values, dict) or old not in values:
                continue
            if new in values:
                raise ValueError(f"{old} is the old spelling of {new}; give one of them")
            renamed(f"the key {old} is an old spelling", new)
            values = {new if key == old else key: value for key, value in values.items()}
        return values

    @field_validator("*")
    @classmethod
    def _numbers_in_range(cls, value: Any, info: ValidationInfo) -> Any:
        limits = cls.model_fields[str(info.field_name)].metadata
        if not any(hasattr(limit, "le") or hasattr(limit, "lt") for limit in limits):
            _check_numbers(value, "")
        return value


def _check_numbers(value: Any, name: str) -> None:
    """Raise `ValueError` for a number in plain values (also within lists and mappings) that no setting can have."""
    if isinstance(value, dict):
        for key, inner in value.items():
            _check_numbers(inner, f"{name}{key}: ")
    elif isinstance(value, list):
        for inner in value:
            _check_numbers(inner, name)
    elif isinstance(value, int) and abs(value) > MAX_INTEGER:
        raise ValueError(f"{name}must be an integer of at most {MAX_INTEGER}")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name}must be a finite number; got {value}")
