"""What a run needs beside its model: its data, its rewards and what it evaluates, checked before a model is loaded."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from vlm_r1.config import DataSource, Recipe
from vlm_r1.data.negatives import WithNegatives
from vlm_r1.data.overlap import overlap
from vlm_r1.data.sampling import rows_asked_for
from vlm_r1.data.source import LazySamples, load_source
from vlm_r1.distributed.check import join
from vlm_r1.errors import ConfigError, DataError, RowError, UserError, nearest
from vlm_r1.prompts.templates import template_text
from vlm_r1.records import Sample
from vlm_r1.rewards.rubric import Rubric, build_rubric


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """The samples of `data.train` with their weights, and those of `data.eval` by split."""

    train: list[tuple[float, Sequence[Sample]]]
    splits: Mapping[str, Sequence[Sample]]


def read_inputs(recipe: Recipe, *, trains: bool = True) -> Inputs:
    """Read the data of a recipe and check it with everything else that needs no model; `trains=False` for `data.eval`
    alone. Every process calls it, and the first one prints warnings.

    Raises, on all of them, `ConfigError` where a setting is wrong, `DataError` where a file or a row is, `RewardError`
    where a row names a reward that does not exist.
    """
    world, inputs, failure = join(), Inputs(train=[], splits={}), None  # first: machines may read at different speeds
    try:
        inputs = _read(recipe, trains)
        for note in _notes(recipe, inputs) if world.is_main else ():
            print(f"warning: {note}", file=sys.stderr, flush=True)
    except UserError as error:
        failure = DataError(str(error)) if isinstance(error, RowError) else error  # a RowError cannot be sent
    world.raise_together(failure)
    return inputs


def _read(recipe: Recipe, trains: bool) -> Inputs:
    template_text(recipe.prompt.template)
    for key, split in [*(("suites", name) for name in recipe.eval.suites), ("keep_best", best_metric(recipe)[0])]:
        if split and split not in recipe.data.eval:
            raise ConfigError(f'eval.{key}: "{split}" is not a split of data.eval: {nearest(split, recipe.data.eval)}')
    if trains and not recipe.data.train:
        raise ConfigError("data.train: is empty; name at least one source (path, hub or scenes)")
    rubric = build_rubric(recipe.rewards) if trains and recipe.method == "grpo" else None
    sources = recipe.data.train if trains else []
    train = [(source.weight, load_source(source, seed=recipe.run.seed)) for source in sources]
    splits = {name: load_source(source, seed=recipe.run.seed) for name, source in recipe.data.eval.items()}
    if rubric is not None:
        for _, samples in train:
            _check_rewards(rubric, samples)
    return Inputs(train=train, splits=splits)


def best_metric(recipe: Recipe) -> tuple[str, str]:
    """Split and metric of `eval.keep_best`; empty where it is not set."""
    split, _, metric = (recipe.eval.keep_best or "").partition("/")
    return split, metric


def with_steps(recipe: Recipe, items: int, per_step: int) -> Recipe:
    """The recipe with `run.epochs` as a number of steps: `items` are drawn once in an epoch, `per_step` in a step."""
    if recipe.run.epochs is None:
        return recipe
    steps = max(1, math.ceil(round(recipe.run.epochs * items / per_step, 9)))
    if os.environ.get("RANK", "0") == "0":
        told = f"{recipe.run.epochs:g} x {items} / {per_step}"
        print(f"run.epochs: {steps} steps ({told} in a step)", file=sys.stderr, flush=True)
    return recipe.model_copy(update={"run": recipe.run.model_copy(update={"steps": steps, "epochs": None})})


def _check_rewards(rubric: Rubric, samples: Sequence[Sample]) -> None:
    """Raise `RewardError` where a row names a reward that does not exist."""
    samples = samples.samples if isinstance(samples, WithNegatives) else samples
    if isinstance(samples, LazySamples):
        for name in sorted(samples.rewards):
            rubric.check_name(name, samples.name)
    elif isinstance(samples, list):
        for sample in samples:
            rubric.weights(sample)


def _notes(recipe: Recipe, inputs: Inputs) -> Iterator[str]:
    """What a person should know of the data."""
    read: list[tuple[str, DataSource, Sequence[Sample]]] = [
        *((f"data.train.{n}", recipe.data.train[n], samples) for n, (_, samples) in enumerate(inputs.train)),
        *((f"data.eval.{name}", recipe.data.eval[name], samples) for name, samples in inputs.splits.items()),
    ]
    for key, source, samples in read:
        if rows_asked_for(source.sampling) > len(samples):
            yield f'{key}: sampling "{source.sampling}" asks for more rows than there are; all {len(samples)} are used'
    for name, count in overlap([samples for _, samples in inputs.train], inputs.splits).items():
        yield (
            f"data.eval.{name}: {count} of its {len(inputs.splits[name])} rows are trained on too (same image and "
            "question): its numbers do not tell how the model does on new data; leave these rows out of data.train or "
            "of the split"
        )
