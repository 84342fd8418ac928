"""Supervised fine-tuning: the same samples and prompts as RL, loss on answer tokens, each picture encoded once."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch

from vlm_r1.config import Recipe
from vlm_r1.data.mixture import SampleStream
from vlm_r1.data.source import load_source
from vlm_r1.errors import ConfigError
from vlm_r1.models.packing import Tree, cut_by_budget, pack
from vlm_r1.runtime.optim import learning_rate, set_learning_rate
from vlm_r1.runtime.progress import Progress
from vlm_r1.runtime.session import Session, open_session
from vlm_r1.sft.batch import ByPicture, make_trees


def train(recipe: Recipe) -> Path:
    """Run a recipe with `method: sft` (or continue it) and return the folder of the final model."""
    if not recipe.data.train:
        raise ConfigError("data.train: is empty; name at least one source (path, hub or scenes)")
    session = open_session(recipe)
    sources = [(s.weight, ByPicture(load_source(s, seed=recipe.run.seed))) for s in recipe.data.train]
    stream = SampleStream(sources, seed=recipe.run.seed)
    if "stream" in session.state:
        stream.load_state_dict(session.state["stream"])
    session.share_of(recipe.sft.pictures_per_step, "sft.pictures_per_step")
    rank, world = session.accelerator.process_index, session.accelerator.num_processes
    with Progress(recipe.run.steps, session.start, session.accelerator.is_main_process, recipe.run.dir) as progress:
        for step in range(session.start, recipe.run.steps):
            started = time.perf_counter()
            pictures = stream.take(recipe.sft.pictures_per_step)
            shown = pictures[rank::world]
            trees = [tree for samples in shown for tree in make_trees(samples, session.loaded.family)]
            prepared = time.perf_counter()
            metrics = sft_step(session, trees, step)
            metrics |= {"time/data_s": prepared - started, "time/step_s": time.perf_counter() - started}
            session.track(step + 1, metrics)
            progress.show(step + 1, metrics, ("loss", "grad_norm", "lr"))
            if (step + 1) % recipe.run.save_every == 0 or step + 1 == recipe.run.steps:
                session.save(step + 1, {"stream": stream.state_dict()})
    return session.finish()


def sft_step(session: Session, trees: Sequence[Tree], step: int) -> dict[str, float]:
    """One optimiser step on the mean negative log-likelihood per answer token of all trees of all processes."""
    recipe, accelerator = session.recipe, session.accelerator
    rows = [pack(piece).to(accelerator.device) for piece in cut_by_budget(trees, recipe.sft.token_budget)]
    n_scored = torch.tensor(sum(len(row.targets) for row in rows), device=accelerator.device)
    total = int(accelerator.reduce(n_scored, "sum")) / accelerator.num_processes  # DDP averages over processes
    loss_sum = torch.zeros((), device=accelerator.device)
    session.policy.train()
    if recipe.lora is not None and recipe.lora.dropout:  # the same draws after a restart
        torch.manual_seed((recipe.run.seed * 1_000_003 + step) * 1009 + accelerator.process_index)
    for i, row in enumerate(rows):
        sync = nullcontext() if i == len(rows) - 1 else accelerator.no_sync(session.policy)
        with sync, accelerator.autocast():
            logprobs, _ = session.policy(row)
            loss = -logprobs.sum() / total
            accelerator.backward(loss)
        loss_sum += loss.detach()
    norm = accelerator.clip_grad_norm_(session.policy.parameters(), recipe.optim.max_grad_norm)
    lr = learning_rate(recipe.optim, step, recipe.run.steps)
    set_learning_rate(session.optimizer, lr)
    session.optimizer.step()
    session.optimizer.zero_grad()
    return {
        "loss": float(accelerator.reduce(loss_sum, "mean")),
        "grad_norm": float(norm),
        "lr": lr,
        "tokens/answer": float(n_scored),
        **session.loaded.policy.cache_metrics(),
    }
