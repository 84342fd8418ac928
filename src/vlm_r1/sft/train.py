"""Supervised fine-tuning: the same samples and prompts as RL, loss on answer tokens, each image encoded once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from vlm_r1.config import Recipe
from vlm_r1.data.mixture import SampleStream
from vlm_r1.distributed.sharding import clip_gradients, sum_whole_gradients
from vlm_r1.eval.best import check_best
from vlm_r1.eval.during import Checkpoints, evaluate_splits
from vlm_r1.models.packing import PrefixGroup, cut_by_budget, pack
from vlm_r1.records import Sample
from vlm_r1.runtime.clock import Clock
from vlm_r1.runtime.divergence import optimizer_step
from vlm_r1.runtime.inputs import Inputs, read_inputs, with_steps
from vlm_r1.runtime.optim import learning_rate, set_learning_rate
from vlm_r1.runtime.prefetch import Prefetcher
from vlm_r1.runtime.progress import Progress
from vlm_r1.runtime.session import Session, open_session
from vlm_r1.runtime.tally import Tally, cache_tally, merged
from vlm_r1.runtime.throughput import Shape, Throughput
from vlm_r1.runtime.together import fill_rows
from vlm_r1.sft.batch import ByImage, make_prefix_groups

SHOWN = ("loss", "grad_norm", "lr", "perf/trained_tokens_per_s", "perf/mfu")
"""What the panel and the lines of a run show, where it is known."""


def train(recipe: Recipe, inputs: Inputs | None = None) -> Path:
    """Run a recipe with `method: sft` (or continue it) and return the folder of the final model.

    `inputs` are the recipe's; default: they are read.
    """
    inputs = inputs or read_inputs(recipe)
    check_best(recipe, inputs.splits)
    if recipe.run.epochs is not None:
        images = sum(len(ByImage(samples)) for _, samples in inputs.train)
        recipe = with_steps(recipe, images, recipe.sft.images_per_step)
    with open_session(recipe, inputs) as session:
        return run(session)


def run(session: Session) -> Path:
    """Evaluate, train, and evaluate again."""
    recipe, world = session.recipe, session.world
    sources = [(weight, ByImage(samples)) for weight, samples in session.inputs.train]
    stream = SampleStream(sources, seed=recipe.run.seed)
    if session.state:
        stream.load_state_dict(session.state["stream"])
    else:
        evaluate_splits(session, "before")
    throughput = Throughput(session.loaded, world)
    drawn: dict[int, Any] = {}  # step -> where the stream stood before it
    progress = Progress(recipe.run.steps, session.start, world.is_main, recipe.run.dir)
    with (
        progress,
        group_batches(session, stream) as batches,
        Checkpoints(
            session,
            lambda step: {"stream": drawn.get(step) or batches.state_dict()},
            lambda phase, step: evaluate_splits(session, phase),
        ) as checkpoints,
    ):
        for step in checkpoints.steps():
            clock, drawn = Clock(world), {step: batches.state_dict()}
            with clock("data"):
                groups = [group for _, made in batches.take(recipe.sft.images_per_step) for group in made]
            if step + 1 < recipe.run.steps:
                batches.prefetch(recipe.sft.images_per_step)
            with clock("update"):
                tally = sft_step(session, groups, step)
            tally.add(clock.tally())
            tally.add(cache_tally(session.policy.vision_cache))
            shapes = [Shape.of(group) for group in groups]
            throughput.count(tally, shapes, shapes, rollout=False)
            metrics = merged(world.gather(tally)).values()
            metrics |= throughput.rates(metrics)
            session.track(step + 1, metrics)
            progress.show(step + 1, metrics, SHOWN)
            checkpoints.done = step + 1
            checkpoints.step_done()
    return checkpoints.finish()


def group_batches(
    session: Session, stream: SampleStream[tuple[Sample, ...]]
) -> Prefetcher[tuple[Sample, ...], list[PrefixGroup]]:
    """The prefix groups of a stream of images with their samples, batch by batch."""
    policy, family, thought = session.policy, session.loaded.family, session.recipe.sft.thought
    host = session.engine.host
    return Prefetcher(
        stream,
        session.world,
        lambda samples: sum(map(family.expected_tokens, samples)),
        lambda samples: [policy.stage(group) for group in make_prefix_groups(samples, family, thought, host)],
    )


def sft_step(session: Session, groups: Sequence[PrefixGroup], step: int) -> Tally:
    """One optimizer step on the mean negative log-likelihood per answer token of all prefix groups of all processes."""
    recipe, world, tally = session.recipe, session.world, Tally()
    cut = cut_by_budget(groups, recipe.sft.token_budget)
    real = [sum(b.n_scored for group in row for b in group.completions) for row in cut]
    rows = fill_rows(session, cut)
    real += [0] * (len(rows) - len(real))
    total = world.sum(sum(real))[0]
    parameters = [p for p in session.policy.parameters() if p.requires_grad]
    session.policy.train()
    if recipe.lora is not None and recipe.lora.dropout:  # the same draws after a restart
        torch.manual_seed((recipe.run.seed * 1_000_003 + step) * 1009 + world.rank)
    loss_sum = torch.zeros((), device=world.device)
    for row, scored in zip(rows, real, strict=True):
        world.beat("update")
        logprobs, _ = session.policy(pack(row).to(world.device))
        loss = -logprobs[:scored].sum() / total
        if scored < len(logprobs):  # prefix groups that are there so that all processes run the same modules
            loss = loss + 0.0 * logprobs[scored:].sum()
        loss.backward()
        loss_sum += loss.detach()
    sum_whole_gradients(parameters, world)
    norm = clip_gradients(parameters, recipe.optim.max_grad_norm)
    lr = learning_rate(recipe.optim, step, recipe.run.steps)
    set_learning_rate(session.optimizer, lr)
    made = optimizer_step(session, step, norm, float(loss_sum), answers=True)
    tally.total("loss", float(loss_sum))
    tally.maximum("grad_norm", norm)
    tally.maximum("lr", lr)
    tally.maximum("skipped_updates", not made)
    tally.total("tokens/prompt", sum(group.n_tokens for group in groups) - sum(real))
    tally.total("tokens/answer", sum(real))
    return tally
