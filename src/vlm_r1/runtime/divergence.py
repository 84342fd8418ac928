"""What keeps a run from training on numbers that are not finite: optimizer steps are skipped, and a model that can no
longer answer stops the run with the first layer at fault and the last checkpoint before it."""

from __future__ import annotations

import math
import sys
from typing import Any

import torch
from torch import Tensor, nn

from vlm_r1.distributed.finite import not_finite
from vlm_r1.distributed.sharding import reshard
from vlm_r1.distributed.whole import list_checkpoints, step_of
from vlm_r1.errors import DivergenceError
from vlm_r1.models.packing import pack
from vlm_r1.runtime.session import Session
from vlm_r1.runtime.together import filler

WATCHED = ("the log-probs of answers are not finite", "the loss is not finite", "the gradient is not finite")


def optimizer_step(session: Session, step: int, norm: float, loss: float, *, answers: bool, first: bool = True) -> bool:
    """One optimizer step on the gradients at hand, unless answers, loss or gradient norm are not finite on some
    process; whether it was made. Gradients are cleared. Every process calls it, and all do the same.

    `step` counts from 0; `answers` says whether the log-probs of this process's rollouts are finite; `first`, that it
    is the first on this batch. Raises `DivergenceError` where the model cannot answer a small prompt any more, or after
    `optim.max_skipped` skipped steps in a row, and `Stopped` where a signal asked for it.
    """
    world = session.world
    *found, asked = world.maximum(
        not answers, not math.isfinite(loss), not math.isfinite(norm), world.signal if first else 0
    )
    world.stop_if(int(asked))
    world.may_stop = False  # from here until the step is written down, weights and logs are of different steps
    bad = [name for name, is_bad in zip(WATCHED, found, strict=True) if is_bad]
    if not bad:
        session.skipped = 0
        session.optimizer.step()
        session.optimizer.zero_grad()
        return True
    session.optimizer.zero_grad()
    session.skipped += 1
    if session.skipped == 1:
        session.skipped_from = step
    limit = session.recipe.optim.max_skipped
    broken = _first_broken(session)
    if broken or session.skipped >= limit:
        raise _diverged(session, step + 1, session.skipped_from, bad[0], broken)
    if world.is_main:
        told = f"{bad[0]}, so the update was skipped ({session.skipped} in a row; the run stops at {limit})"
        print(f"warning: step {step + 1}: {told}", file=sys.stderr, flush=True)
    return False


def check_weights(session: Session, step: int) -> None:
    """Raise `DivergenceError` on every process where trained weights after `step` steps are not finite."""
    if name := not_finite(session.policy, session.world, trained=True):
        raise _diverged(session, step, step, "weights are not finite", name)


def _diverged(session: Session, step: int, version: int, what: str, broken: str | None) -> DivergenceError:
    """What to say at `step` (from 1) where the weights after `version` steps gave numbers that are not finite.

    Every process calls it: the checkpoint that is being written is finished first.
    """
    session.writer.wait()
    optim, run_dir = session.recipe.optim, session.run_dir
    good = [path for path in list_checkpoints(run_dir) if step_of(path) <= version - bool(broken)]
    times = f", {session.skipped} times in a row since step {session.skipped_from + 1}" if session.skipped > 1 else ""
    where = f"first in {broken}" if broken else "the weights are, and so is what they make of a small prompt"
    begin = (
        f"The last good checkpoint is {good[-1]}: to begin a run there, vlm-r1 export {good[-1]} --out FOLDER, "
        "and set model.path=FOLDER and another run.dir"
        if good
        else "There is no good checkpoint: begin again in another run.dir"
    )
    look = "" if broken else ", and look at the samples of these steps"
    return DivergenceError(
        f"step {step}: {what}{times} ({where}). {begin}. Lower optim.lr (it is {optim.lr:g}) or optim.max_grad_norm, "
        f"or raise optim.warmup_steps{look}"
    )


def _first_broken(session: Session) -> str | None:
    """The first weight that is not finite, else the first module whose output on a small prompt is not; None where all
    are. Every process calls it."""
    policy, world = session.policy, session.world
    if name := not_finite(policy, world):
        return name
    found: list[str] = []

    def look(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if not found and isinstance(output, Tensor) and not bool(output.isfinite().all()):
                found.append(name.removeprefix("model."))

        return hook

    hooks = [module.register_forward_hook(look(name)) for name, module in policy.named_modules()]
    try:
        with torch.no_grad():
            policy(pack([filler(session, image=True)]).to(world.device))
    finally:
        for handle in hooks:
            handle.remove()
        reshard(policy)
    return next((names[0] for names in world.gather(found) if names), None)
