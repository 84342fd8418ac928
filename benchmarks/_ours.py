"""Our side: `rl.loop.train` on a recipe, in a process of its own. Usage: _ours.py JOB.json RESULT.json

Two things are added from outside: the end-of-text token is suppressed like an image placeholder, so that every answer
has all its tokens, and the start of each step is noted. The seconds of the phases are the run's own metrics.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from _measure import machine, moved, now, peak_memory, snapshot, trained_dtype, versions
from _setting import Setting, prepare, read_job

from vlm_r1.config import (
    DataConfig,
    DataSource,
    ModelConfig,
    OptimConfig,
    PromptConfig,
    Recipe,
    RewardConfig,
    RLConfig,
    RolloutConfig,
    RunConfig,
    TrainConfig,
)
from vlm_r1.rl import loop, rollouts
from vlm_r1.rollout.native import eos_token_ids
from vlm_r1.runtime.inputs import Inputs
from vlm_r1.runtime.runlog import read_metrics
from vlm_r1.runtime.session import Session

REWARD = f"{Path(__file__).resolve().parent / '_reward.py'}:by_hash"


def recipe_of(setting: Setting, run_dir: Path, *, gradient_checkpointing: bool = False, **rl: Any) -> Recipe:
    """The benchmark's step as a recipe: the paper's algorithm, everything else at its default."""
    parts = {"vision": setting.vision, "connector": setting.vision, "language": setting.language}
    return Recipe(
        model=ModelConfig(
            path=str(setting.model_path), precision=setting.precision, gradient_checkpointing=gradient_checkpointing
        ),
        train=TrainConfig(**parts),
        data=DataConfig(train=[DataSource(path=str(setting.data_path))]),
        prompt=PromptConfig(template="plain"),
        rollout=RolloutConfig(max_new_tokens=setting.answer_tokens, stop_at_answer=False),
        rewards=RewardConfig(parts={REWARD: 1.0}),
        rl=RLConfig(group_size=setting.group, prompts_per_step=setting.prompts, **rl),
        optim=OptimConfig(lr=setting.lr),
        run=RunConfig(
            dir=str(run_dir),
            seed=setting.seed,
            steps=setting.steps,
            threads=setting.threads,
            save_every=1_000_000,
            log_rollouts_every=0,
        ),
    )


def ban_end_of_text(session: Session) -> None:
    """Answers never end by themselves: both sides sample exactly as many tokens."""
    policy = session.loaded.policy
    ends = torch.tensor(eos_token_ids(policy, session.loaded.tokenizer), device=policy.suppressed.device)
    policy.suppressed = torch.cat([policy.suppressed, ends])


def measure(setting: Setting, options: dict[str, Any]) -> dict[str, Any]:
    """Run the loop and return every measured step."""
    starts: list[float] = []
    cpu: list[float] = []
    before: dict[str, Any] = {}
    sessions: list[Session] = []
    after: dict[str, float] = {}
    open_session, deal = loop.open_session, rollouts.deal

    @contextmanager
    def opened(recipe: Recipe, inputs: Inputs) -> Iterator[Session]:
        with open_session(recipe, inputs) as session:
            ban_end_of_text(session)
            before.update(snapshot(session.policy.model))
            sessions.append(session)
            yield session
            after.update(moved(session.policy.model, before))

    def dealt(*args: Any, **kwargs: Any) -> Any:
        starts.append(now())
        cpu.append(time.process_time())
        return deal(*args, **kwargs)

    loop.open_session, rollouts.deal = opened, dealt
    with tempfile.TemporaryDirectory() as run_dir:
        recipe = recipe_of(setting, Path(run_dir), **options)
        loop.train(recipe)
        lines = read_metrics(Path(run_dir))
    model = sessions[0].policy.model
    steps = [
        {
            "step_s": starts[i + 1] - starts[i],
            "cpu_s": cpu[i + 1] - cpu[i],
            "data_s": lines[i]["time/data_s"],
            "rollout_s": lines[i]["time/rollout_s"],
            "reward_s": lines[i]["time/reward_s"],
            "update_s": lines[i]["time/update_s"],
            "prompt_tokens": lines[i]["tokens/prompt"],
            "answer_tokens": lines[i]["tokens/answer"],
            # each answer's last token is scored and not run
            "updated_answer_tokens": int(lines[i]["tokens/update_answer"]) + setting.prompts * setting.group,
        }
        for i in range(setting.warmup, setting.steps - 1)
    ]
    return {
        "steps": steps,
        "moved": after,
        "attention": {
            "text": model.config.text_config._attn_implementation,
            "vision": model.config.vision_config._attn_implementation,
        },
        "parameters": sum(p.numel() for p in model.parameters()),
        "trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "optimizer": type(sessions[0].optimizer).__name__,
        "dtype": trained_dtype(model),
        "versions": versions(),
        "threads": torch.get_num_threads(),
        "settings": options,
        "machine": machine(),
        **peak_memory(),
    }


if __name__ == "__main__":
    given, rest = read_job(sys.argv[1])
    prepare(given)
    Path(sys.argv[2]).write_text(json.dumps(measure(given, rest.get("options", {}))), encoding="utf-8")
