"""Phase times for `plan.generation`: from the metrics of runs, or from a file of numbers."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vlm_r1.config import Recipe
from vlm_r1.config_file import load_config, parse_yaml
from vlm_r1.errors import CheckpointError, ConfigError
from vlm_r1.plan.generation import Cost, Phases
from vlm_r1.runtime.runlog import read_metrics

NEEDED = (
    *(f"time/{phase}_s" for phase in ("rollout", "update", "sync", "reward", "data", "step")),
    *("tokens/prompt", "tokens/answer", "perf/throughput"),
)
ALIKE = ("model.path", "rl.group_size", "rl.iterations", "rl.beta", "rollout.engine", "rollout.max_new_tokens")
"""What runs must have in common whose times are put together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The steps of a run. `generation_load` and `training_load` are the prompts of the GPU with the most of them.

    `generation_s` and `training_s` are of each step; training is update, rewards and waiting for data.
    """

    folder: Path
    recipe: Recipe
    prompts: int
    generation_load: int
    training_load: int
    generation_s: list[float]
    training_s: list[float]
    sync_s: float


def read_phases(paths: Sequence[Path], sync_s: float | None = None) -> Phases:
    """Phase times from run folders, or from one YAML file with the fields of `Phases`.

    The plan is for as many prompts as the run with the most of them had in a step. Runs with different numbers of
    prompts on a GPU tell the fixed part of a phase from the rest; of one run, all counts as proportional to the
    prompts. What colocated servers take to wake counts as generation. Raises `CheckpointError` for a folder
    without phase times, `ConfigError` for runs that cannot be compared.
    """
    if len(paths) == 1 and paths[0].is_file():
        phases = _read_file(paths[0])
    else:
        runs = [read_run(path) for path in paths]
        _check_alike(runs)
        phases = _fit(runs)
    return phases if sync_s is None else phases.model_copy(update={"sync_s": sync_s})


def read_run(folder: Path) -> Measured:
    """The steps of a run but the first, which warms up."""
    rows = read_metrics(folder)
    if not rows:
        raise CheckpointError(f"{folder}: no metrics.jsonl with steps; give the run folder of a `vlm-r1 train`")
    rows = rows[1:] or rows
    for row in rows:
        missing = [name for name in NEEDED if not isinstance(row.get(name), int | float)]
        if missing:
            raise CheckpointError(
                f"{folder / 'metrics.jsonl'}: step {row['step']} has no {missing[0]}, so phase times are not known; "
                "give the run folder of a `vlm-r1 train` (a few steps are enough: run.steps=10)"
            )
    recipe = load_config(folder / "config.yaml")
    if recipe.rollout.staleness:
        raise CheckpointError(
            f"{folder}: was run with rollout.staleness: {recipe.rollout.staleness}, and its phases overlap; measure "
            "with rollout.staleness=0"
        )
    gpus, P = _processes(rows, recipe), recipe.rl.prompts_per_step
    servers = len(recipe.rollout.servers) * recipe.rollout.tensor_parallel
    return Measured(
        folder=folder,
        recipe=recipe,
        prompts=P,
        generation_load=-(-P // (servers or gpus)),
        training_load=-(-P // gpus),
        generation_s=[row["time/rollout_s"] for row in rows],
        training_s=[row["time/update_s"] + row["time/reward_s"] + row["time/data_s"] for row in rows],
        sync_s=statistics.median(row["time/sync_s"] for row in rows),
    )


def _processes(rows: Sequence[dict[str, Any]], recipe: Recipe) -> int:
    """How many processes trained: what all did a second over what each did (`perf/throughput`)."""
    row = rows[-1]
    tokens = recipe.rl.group_size * row["tokens/prompt"] + row["tokens/answer"]
    return max(1, round(tokens / row["time/step_s"] / row["perf/throughput"]))


def _check_alike(runs: Sequence[Measured]) -> None:
    for other in runs[1:]:
        for key in ALIKE:
            section, _, name = key.partition(".")
            a, b = (getattr(getattr(run.recipe, section), name) for run in (runs[0], other))
            if a != b:
                raise ConfigError(
                    f"{other.folder}: {key} is {b}, and {a} in {runs[0].folder}; runs that are put together may "
                    "differ in rl.prompts_per_step and the number of GPUs alone"
                )


def _fit(runs: Sequence[Measured]) -> Phases:
    largest = max(runs, key=lambda run: run.prompts)
    generation = line([(run.generation_load, statistics.median(run.generation_s)) for run in runs])
    training = line([(run.training_load, statistics.median(run.training_s)) for run in runs])
    expected = (
        generation.fixed_s + generation.prompt_s * largest.generation_load,
        training.fixed_s + training.prompt_s * largest.training_load,
    )
    pairs = zip(largest.generation_s, largest.training_s, strict=True)
    return Phases(
        prompts=largest.prompts,
        generation=generation,
        training=training,
        sync_s=largest.sync_s,
        spread=tuple((g / expected[0], t / expected[1]) for g, t in pairs),
    )


def line(points: Sequence[tuple[int, float]]) -> Cost:
    """Seconds as a fixed part and one for each prompt: least squares over (prompts, seconds), neither below 0."""
    mean_x, mean_y = (statistics.fmean(values) for values in zip(*points, strict=True))
    square = sum((x - mean_x) ** 2 for x, _ in points)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / square if square else mean_y / mean_x
    slope = min(max(slope, 1e-3 * mean_y / mean_x), mean_y / mean_x)
    return Cost(fixed_s=max(0.0, mean_y - slope * mean_x), prompt_s=slope)


def _read_file(path: Path) -> Phases:
    try:
        return Phases.model_validate(parse_yaml(path.read_text(encoding="utf-8"), str(path)))
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: not YAML ({error}); give a run folder or a file like that of: vlm-r1 docs scale-out"
        ) from None
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(map(str, problem["loc"])) or "the file"
        raise ConfigError(f"{path}: {key}: {problem['msg']}; vlm-r1 docs scale-out has an example") from None
