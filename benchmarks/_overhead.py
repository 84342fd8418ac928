"""Share of a step outside model forward, backward and optimiser, at the demo's size. Usage: _overhead.py JOB RESULT

The recipe is the demo's as it stands (24 prompts, G = 16, 96x96 images, logging on) with a short run, no evaluation,
a reward that is never without variance beside its own, and a model of the shipped architecture with random weights,
whose answers are nearly all 64 tokens long, unless the job names a model folder. Clocks are wrapped around the
functions below; nothing is sampled or traced.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from _measure import Clock, now, versions

from vlm_r1 import demo
from vlm_r1.config import Recipe
from vlm_r1.config_file import load_config
from vlm_r1.models import policy as policy_module
from vlm_r1.rl import loop, rollouts, step
from vlm_r1.rollout.lean import LeanLayers
from vlm_r1.runtime.inputs import Inputs
from vlm_r1.runtime.session import Session

ROOT = Path(__file__).resolve().parent.parent
REWARD = f"{Path(__file__).resolve().parent / '_reward.py'}:by_hash"
INSIDE = ("tower", "language model", "head", "log-probs", "backward", "clip", "optimizer")
"""What counts as forward, backward and optimiser; everything else of a step is overhead."""


def demo_recipe(folder: Path, steps: int, model: str | None, threads: int | None) -> Recipe:
    """The demo's recipe, shortened. Without `model` a random one of the shipped architecture is written first."""
    path = model or str(folder / "model")
    if model is None:
        from vlm_r1.models.scratch import build_scratch

        base = load_config(ROOT / "recipes/lab/base-medium.yaml", [])
        scratch, processor = build_scratch(base.model.scratch, 0)
        scratch.save_pretrained(path)
        processor.save_pretrained(path)
    recipe = demo.demo_recipe(folder / "run", 0, steps)
    changes = {
        "model": recipe.model.model_copy(update={"path": path}),
        "data": recipe.data.model_copy(update={"eval": {}}),
        # Answers of random weights all score 0; without variance the update would be skipped.
        "rewards": recipe.rewards.model_copy(update={"parts": {**recipe.rewards.parts, REWARD: 1.0}}),
        "run": recipe.run.model_copy(update={"save_every": 1_000_000, "threads": threads}),
    }
    return recipe.model_copy(update=changes)


def wrap_everything(session: Session, clock: Clock) -> None:
    """Clocks around the model's parts and the optimiser of an open session."""
    policy, model = session.policy, session.policy.model
    model.model.get_image_features = clock.wrap("tower", model.model.get_image_features)
    model.model.forward = clock.wrap("language model", model.model.forward)
    LeanLayers.__call__ = clock.wrap("language model", LeanLayers.__call__)  # type: ignore[method-assign]
    head = model.get_output_embeddings()
    head.forward = clock.wrap("head", head.forward)
    torch.Tensor.backward = clock.wrap("backward", torch.Tensor.backward)  # type: ignore[method-assign]
    step.clip_gradients = clock.wrap("clip", step.clip_gradients)
    session.optimizer.step = clock.wrap("optimizer", session.optimizer.step)
    # The scoring of a row is part of its forward pass; what samplers do with logits is not.
    policy_module.token_logprobs = clock.wrap("log-probs", policy_module.token_logprobs)
    assert policy.model is model


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Seconds of each part of every measured step, and the share outside `INSIDE`."""
    clock = Clock()
    marks: list[float] = []
    parts: list[dict[str, float]] = []
    open_session, deal = loop.open_session, rollouts.deal

    @contextmanager
    def opened(recipe: Recipe, inputs: Inputs) -> Iterator[Session]:
        with open_session(recipe, inputs) as session:
            wrap_everything(session, clock)
            yield session

    def dealt(*args: Any, **kwargs: Any) -> Any:
        marks.append(now())
        parts.append(clock.take())
        return deal(*args, **kwargs)

    loop.open_session, rollouts.deal = opened, dealt
    with tempfile.TemporaryDirectory() as folder:
        steps = job["warmup"] + job["repetitions"] + 1
        recipe = demo_recipe(Path(folder), steps, job.get("model"), job.get("threads"))
        loop.train(recipe)
    rows = []
    for i in range(job["warmup"], steps - 1):
        total, seconds = marks[i + 1] - marks[i], parts[i + 1]
        inside = sum(seconds.get(name, 0.0) for name in INSIDE)
        rows.append({"step_s": total, **seconds, "outside_s": total - inside, "overhead_share": 1 - inside / total})
    shares = sorted(row["overhead_share"] for row in rows)
    return {
        "overhead_share": shares[len(shares) // 2],
        "steps": rows,
        "model": job.get("model") or "random weights",
        "prompts": recipe.rl.prompts_per_step,
        "group": recipe.rl.group_size,
        "versions": versions(),
        "threads": torch.get_num_threads(),
    }


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    Path(sys.argv[2]).write_text(json.dumps(measure(given)), encoding="utf-8")
