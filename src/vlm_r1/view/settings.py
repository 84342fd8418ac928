"""What the runs were made with, and where their settings differ."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlm_r1.report.html import parsed_recipe
from vlm_r1.runtime.shown import shown_json
from vlm_r1.view.folder import RunFolder

WHERE = ("run.dir",)
"""Settings that always differ."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """One run: its folder, its settings as they stand in `config.yaml`, and "name version" of what made it."""

    name: str
    path: str
    config: str | None
    versions: tuple[str, ...]


def made(run: RunFolder) -> Made:
    """What a run folder says of how it was made."""
    versions = shown_json(run.inside("environment.json"), run.tell("environment.json"))
    told = tuple(f"{name} {value}" for name, value in versions.items())
    return Made(name=run.name, path=str(run.path), config=run.text("config.yaml"), versions=told)


def recipe_of(run: RunFolder) -> Mapping[str, Any]:
    """The settings of a run; empty where `config.yaml` is missing or not a mapping."""
    return parsed_recipe(run.text("config.yaml"), str(run.path / "config.yaml"), run.tell("config.yaml"))


def differences(runs: Sequence[RunFolder]) -> list[tuple[str, list[str]]]:
    """(setting, its value in each run) where they are not all equal; a setting that a run lacks is empty."""
    flat = [_flat(recipe_of(run)) for run in runs]
    names = list(dict.fromkeys(name for recipe in flat for name in recipe))
    values = [(name, [recipe.get(name, "") for recipe in flat]) for name in names if name not in WHERE]
    return [(name, found) for name, found in values if len(set(found)) > 1]


def _flat(value: Any, name: str = "") -> dict[str, str]:
    if isinstance(value, dict) and value:
        return {k: v for key, of in value.items() for k, v in _flat(of, f"{name}.{key}" if name else str(key)).items()}
    return {name: json.dumps(value, default=str) if not isinstance(value, str) else value}
