"""Greedy evaluation on held-out questions, split by split, with the parser and the box arithmetic that rewards use."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vlm_r1.config import Recipe
from vlm_r1.distributed import processes
from vlm_r1.distributed.processes import ALONE, World
from vlm_r1.errors import ConfigError, EngineError, Stopped
from vlm_r1.eval.answering import open_answering
from vlm_r1.eval.measures import summary
from vlm_r1.eval.outcomes import Outcome, outcome
from vlm_r1.models.family import Family
from vlm_r1.prompts.parse import read_answer
from vlm_r1.records import Answer, RolloutGroup, Sample, SamplingParams
from vlm_r1.rollout.engine import RolloutEngine, at_own_pace, awake
from vlm_r1.runtime.inputs import read_inputs
from vlm_r1.runtime.progress import Countdown
from vlm_r1.runtime.rows import answer_row, image_bytes
from vlm_r1.runtime.runlog import write_atomically

SERVED_AT_ONCE = 512
"""Questions that servers are asked at once by a process; it holds their images."""
IMAGES_KEPT = 24
"""Images of each split that the table of outcomes keeps, for the report."""


def read_rollouts(group: RolloutGroup) -> list[Answer]:
    """The answers of a group, in pixels of the original image; the one reader of training and evaluation."""
    prompt, talks = group.prompt, group.sampling is not None and group.sampling.max_calls > 0
    return [
        replace(
            read_answer(
                rollout.text,
                prompt.sample,
                prompt.box_map,
                n_tokens=len(rollout.token_ids),
                truncated=rollout.finish == "length",
                calls=[turn.call for turn in rollout.turns] if talks else None,
            ),
            environment=rollout.score,
        )
        for rollout in group.rollouts
    ]


def evaluate(
    engine: RolloutEngine,
    family: Family,
    splits: Mapping[str, Sequence[Sample]],
    recipe: Recipe,
    world: World = ALONE,
    *,
    version: int | None = None,
    phase: str = "evaluation",
) -> tuple[dict[str, dict[str, float]], list[dict[str, Any]]]:
    """Metrics per split, and one row per question (`runtime.runlog.EVAL_COLUMNS`).

    The questions are spread over the processes, which all call it; the main one gets the result, the others nothing.
    Raises `EngineError` on all of them where one gets no answers, or where other weights than those of `version`
    (None: than those of the other answers) wrote one. `phase` is what the lines of progress call it.
    """
    sampling = SamplingParams(
        max_new_tokens=recipe.eval.max_new_tokens,
        stop_at_answer=recipe.rollout.stop_at_answer,
        max_calls=recipe.max_calls,
    )
    served = recipe.rollout.engine == "vllm"  # servers queue what they are asked
    at_once = max(recipe.eval.batch_size, SERVED_AT_ONCE) if served else recipe.eval.batch_size
    metrics: dict[str, dict[str, float]] = {}
    rows: list[dict[str, Any]] = []
    versions: set[int] = set() if version is None else {version}
    countdown = Countdown(phase, sum(map(len, splits.values())), world.is_main)
    answered = 0  # by all processes, in the splits before
    with awake(engine):
        for split, samples in splits.items():
            mine = range(world.rank, len(samples), world.size)
            found: list[tuple[int, Outcome, dict[str, Any]]] = []
            share = -(-len(samples) // world.size)  # the largest: every process makes as many batches
            failure: EngineError | Stopped | None = None
            try:
                with at_own_pace(engine, world):
                    for start in range(0, share, at_once):
                        numbers = mine[start : start + at_once]
                        world.beat("evaluation")
                        prompts = [replace(family.encode(samples[i]), number=i) for i in numbers]
                        for group in engine.generate(prompts, sampling, n=1):
                            found.append(_measured(split, group))
                            versions.add(group.rollouts[0].version)
                            countdown.show(answered + min(len(samples), len(found) * world.size))
            except (EngineError, Stopped) as error:
                failure = error
            versions.update(*world.gather(versions))
            world.raise_together(failure or world.asked() or _mixed(versions, split))
            answered += len(samples)
            everything = sorted(world.collect(found), key=lambda item: item[0])
            if world.is_main:
                rows += [row for _, _, row in everything]
                metrics[split] = summary(
                    [o for _, o, _ in everything],
                    recipe.eval.suites.get(split),
                    resamples=recipe.eval.resamples,
                    seed=recipe.run.seed,
                    calls=recipe.env is not None,
                )
    return metrics, rows


def _mixed(versions: set[int], split: str) -> EngineError | None:
    """What to say where answers that are compared come from different weights."""
    if len(versions) <= 1:
        return None
    return EngineError(
        f"{split}: its answers were to be written by one version of the weights, and there are {len(versions)} "
        f"({', '.join(map(str, sorted(versions)))}): a server did not take over the current ones. Start the servers "
        "again; the same command continues the run"
    )


def _measured(split: str, group: RolloutGroup) -> tuple[int, Outcome, dict[str, Any]]:
    """The number of a question, its outcome, and its row of the table."""
    sample, answer = group.prompt.sample, read_rollouts(group)[0]
    found = outcome(sample, answer)
    row = {
        "split": split,
        **answer_row(sample, answer),
        "source": sample.source,
        "iou": found.iou,
        "score": found.score,
        "correct": found.correct,
        "well_formed": found.well_formed,
        "n_tokens": found.n_tokens,
        "image": image_bytes(sample) if group.prompt.number < IMAGES_KEPT else None,
    }
    if group.prompt.number >= IMAGES_KEPT:
        row["shown"] = None
    return group.prompt.number, found, row


def data_of(recipe: Recipe) -> dict[str, Any]:
    """Where the held-out samples of a recipe come from, as the table of their outcomes keeps it."""
    splits = {name: source.model_dump(mode="json") for name, source in recipe.data.eval.items()}
    return {"folder": str(Path.cwd()), "seed": recipe.run.seed, "splits": splits}


def evaluate_model(recipe: Recipe, out: Path | None = None) -> dict[str, dict[str, float]]:
    """`vlm-r1 eval`: evaluate `model.path` on the splits of `data.eval`; write the metrics as JSON to `out`.

    Beside `out` a Parquet file of the same name keeps every outcome. Raises `ConfigError` without any split.
    """
    if not recipe.data.eval:
        raise ConfigError("data.eval: is empty; name at least one held-out split (a name and a source)")
    splits = read_inputs(recipe, trains=False).splits
    if recipe.run.threads:
        torch.set_num_threads(recipe.run.threads)
    world = processes.start()
    with open_answering(recipe, world) as (loaded, engine):
        metrics, rows = evaluate(engine, loaded.family, splits, recipe, world)
    if out is not None and world.is_main:
        from vlm_r1.runtime.runlog import write_eval_samples

        write_atomically(out, (json.dumps(metrics, indent=2) + "\n").encode())
        write_eval_samples(out.with_suffix(".parquet"), rows, data_of(recipe))
    return metrics
