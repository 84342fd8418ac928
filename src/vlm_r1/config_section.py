"""What every section of a recipe is, and how it takes leave of old spellings."""

from __future__ import annotations

import warnings
from typing import Any

from pydantic import BaseModel, ConfigDict


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
    """A part of a recipe; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)
