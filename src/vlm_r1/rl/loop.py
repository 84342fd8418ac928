"""GRPO, one call per arrow of the method: samples, prompts, rollouts, answers, scores, advantages, update."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch

from vlm_r1.config import Recipe
from vlm_r1.data.mixture import SampleStream
from vlm_r1.data.source import load_source
from vlm_r1.errors import ConfigError
from vlm_r1.eval.run import evaluate, load_splits
from vlm_r1.rewards.rubric import build_rubric
from vlm_r1.rl.algorithms import ALGORITHMS
from vlm_r1.rl.batch import make_batch
from vlm_r1.rl.experience import Experience, answer_weights, collect
from vlm_r1.rl.metrics import Monitor, mean_over_processes, step_metrics
from vlm_r1.rl.pictures import rollout_pictures
from vlm_r1.rl.reference import load_reference
from vlm_r1.rl.step import Updater
from vlm_r1.runtime.progress import Progress
from vlm_r1.runtime.rows import rollout_rows
from vlm_r1.runtime.session import Session, open_session
from vlm_r1.runtime.trackers import track_pictures

SHOWN = ("reward", "completions/mean_length", "frac_reward_zero_std", "time/rollout_s", "time/update_s")


def train(recipe: Recipe) -> Path:
    """Run a recipe with `method: grpo` (or continue it) and return its run folder."""
    if not recipe.data.train:
        raise ConfigError("data.train: is empty; name at least one source (path, hub or scenes)")
    session = open_session(recipe)
    algorithm = ALGORITHMS[recipe.rl.algorithm]
    if algorithm.dynamic_sampling and session.accelerator.num_processes > 1:
        raise ConfigError(
            f"rl.algorithm: {recipe.rl.algorithm} samples dynamically, which several processes would do unequally; "
            "run it in one"
        )
    stream = SampleStream(
        [(s.weight, load_source(s, seed=recipe.run.seed)) for s in recipe.data.train], seed=recipe.run.seed
    )
    rubric = build_rubric(recipe.rewards)
    monitor = Monitor(recipe)
    reference = load_reference(session) if recipe.rl.beta else None
    updater = Updater(session, algorithm, reference)
    if session.state:
        stream.load_state_dict(session.state["stream"])
        monitor.load_state_dict(session.state["monitor"])
    elif session.accelerator.is_main_process:
        evaluate_splits(session, "before")

    with Progress(recipe.run.steps, session.start, session.accelerator.is_main_process, recipe.run.dir) as progress:
        for step in range(session.start, recipe.run.steps):
            started = time.perf_counter()
            experience = collect(session, stream, rubric, algorithm, step)
            batch = make_batch(
                experience.groups,
                experience.advantages_PG,
                answer_weights(session, experience, algorithm),
                keep_all=reference is not None,
                keep_one=session.accelerator.num_processes > 1,
            )
            collected = time.perf_counter()
            update_metrics = updater.update(batch, experience.prefill_for(batch), step)
            metrics = update_metrics | step_metrics(experience, batch, rubric, recipe)
            metrics |= {"time/update_s": time.perf_counter() - collected, "time/step_s": time.perf_counter() - started}
            metrics = mean_over_processes(session.accelerator, metrics)
            warnings = write_step(session, experience, metrics, monitor, step)
            progress.show(step + 1, metrics, SHOWN, warnings)
            if recipe.eval.every and (step + 1) % recipe.eval.every == 0 and step + 1 < recipe.run.steps:
                evaluate_splits(session, f"step-{step + 1}")
            if (step + 1) % recipe.run.save_every == 0 or step + 1 == recipe.run.steps:
                session.save(step + 1, {"stream": stream.state_dict(), "monitor": monitor.state_dict()})
    session.finish()
    evaluate_splits(session, "after")
    return session.run_dir


def evaluate_splits(session: Session, phase: str) -> None:
    """Evaluate the held-out splits and keep the result in the run folder under `phase`."""
    splits = load_splits(session.recipe)
    if not splits or not session.accelerator.is_main_process:
        return
    print(f"{phase}: answering {sum(map(len, splits.values()))} held-out questions", file=sys.stderr, flush=True)
    with session.accelerator.autocast():
        metrics, rows = evaluate(session.loaded, splits, session.recipe)
    session.log.evaluation(phase, metrics, rows)


def write_step(
    session: Session, experience: Experience, metrics: dict[str, float], monitor: Monitor, step: int
) -> list[str]:
    """One line of metrics, rollouts and their pictures where the recipe asks for them; returns the warnings due."""
    warnings = monitor.observe(step + 1, metrics)
    session.track(step + 1, {**metrics, **({"warnings": warnings} if warnings else {})})
    if not session.accelerator.is_main_process:
        return warnings
    pictures_every, every = session.recipe.run.track_pictures_every, session.recipe.run.log_rollouts_every
    if pictures_every and (step + 1) % pictures_every == 0:
        track_pictures(session.accelerator, step + 1, rollout_pictures(experience))
    if every and (step + 1) % every == 0:
        advantages = torch.nan_to_num(experience.advantages_PG).tolist()
        session.log.rollouts(
            step + 1, rollout_rows(experience.groups, experience.answers, experience.scores, advantages)
        )
    return warnings
