"""GRPO, one call per arrow of the method: samples, prompts, rollouts, answers, scores, advantages, update, sync."""

from __future__ import annotations

from pathlib import Path

from vlm_r1.config import Recipe
from vlm_r1.data.mixture import SampleStream
from vlm_r1.eval.best import check_best
from vlm_r1.eval.during import Checkpoints, evaluate_splits
from vlm_r1.eval.run import read_rollouts
from vlm_r1.rewards.rubric import build_rubric
from vlm_r1.rl.ahead import open_rollouts
from vlm_r1.rl.algorithms import ALGORITHMS
from vlm_r1.rl.engines import correction, demand_parity, open_engine
from vlm_r1.rl.experience import RESAMPLE_ROUNDS, Experience, batch_of, judge, prompt_batches
from vlm_r1.rl.journal import Journal
from vlm_r1.rl.metrics import step_metrics
from vlm_r1.rl.reference import load_reference
from vlm_r1.rl.rollouts import sampling_of
from vlm_r1.rl.step import Trainer
from vlm_r1.rollout.engine import RolloutEngine
from vlm_r1.runtime.clock import Clock
from vlm_r1.runtime.inputs import Inputs, read_inputs, with_steps
from vlm_r1.runtime.session import Session, open_session
from vlm_r1.runtime.throughput import Throughput


def train(recipe: Recipe, inputs: Inputs | None = None) -> Path:
    """Run a recipe with `method: grpo` (or continue it) and return its run folder. Every process calls it.

    `inputs` are the recipe's; default: they are read.
    """
    inputs = inputs or read_inputs(recipe)
    check_best(recipe, inputs.splits)
    recipe = with_steps(recipe, sum(len(samples) for _, samples in inputs.train), recipe.rl.prompts_per_step)
    with (
        open_session(recipe, inputs) as session,
        open_engine(recipe, session.loaded, session.world, session.start) as engine,
    ):
        demand_parity(session, engine)
        reference = load_reference(session)
        trainer = Trainer(session, ALGORITHMS[recipe.rl.algorithm], reference, correction(recipe, engine.check()))
        run(session, engine, trainer)
        return session.run_dir


def run(session: Session, engine: RolloutEngine, trainer: Trainer) -> None:
    """Evaluate, train, and evaluate again."""
    recipe, world = session.recipe, session.world
    algorithm, P, G = trainer.algorithm, recipe.rl.prompts_per_step, recipe.rl.group_size
    rounds = RESAMPLE_ROUNDS if algorithm.dynamic_sampling else 1
    stream = SampleStream(session.inputs.train, seed=recipe.run.seed)
    rubric, throughput = build_rubric(recipe.rewards, world.beat), Throughput(session.loaded, world)
    if session.state:
        stream.load_state_dict(session.state["stream"])
    else:
        evaluate_at(session, engine, "before", session.start)

    with (
        Journal(session) as journal,
        prompt_batches(session, stream) as batches,
        open_rollouts(session, engine, batches) as rollouts,
        Checkpoints(
            session,
            lambda step: rollouts.state(step) | {"monitor": journal.state()},
            lambda phase, step: evaluate_at(session, engine, phase, step),
        ) as checkpoints,
    ):
        for step in checkpoints.steps():
            clock, found, drawn, kept = Clock(world), Experience.empty(G), 0, 0
            for attempt in range(1, rounds + 1):
                with clock("data"):
                    prompts = rollouts.prompts(step, P - kept, drawn, float(found.lengths_PG.sum()))
                with clock("rollout"):
                    groups = rollouts.generate(step, prompts)
                with clock("reward"):
                    answers = [read_rollouts(group) for group in groups]
                    new = judge(groups, answers, rubric, algorithm, G)
                found = found.joined(new.informative() if attempt < rounds else new)
                drawn, kept = drawn + P - kept, int(world.sum(len(found.groups))[0])
                if kept >= P:
                    break
            rollouts.prefetch(step)  # only here: the rounds of this step draw before the next step
            with clock("update"):
                limit = sampling_of(recipe, step).max_tokens
                batch = batch_of(found, algorithm, world, limit, keep_all=trainer.reference is not None)
                update = trainer.step(batch, step)
            with clock("sync"):
                rollouts.sync(trainer.weights(), version=step + 1)
            update.add(rollouts.tally())
            journal.write(step + 1, step_metrics(trainer, throughput, found, batch, rubric, update, clock), found)
            checkpoints.done = step + 1
            rollouts.raise_if_lost()  # not in the sync: what is done is written down first
            checkpoints.step_done()
    checkpoints.finish()


def evaluate_at(session: Session, engine: RolloutEngine, phase: str, version: int) -> None:
    """Evaluate the weights after `version` steps with the run's engine; a replay has no answers to other questions."""
    if session.recipe.rollout.engine == "replay":
        evaluate_splits(session, phase)
    else:
        evaluate_splits(session, phase, engine, version)
