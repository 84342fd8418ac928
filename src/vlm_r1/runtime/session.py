"""What every training run starts with: threads, seeds, device, run folder, and where it left off."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from vlm_r1.config import Recipe
from vlm_r1.config_file import resolved_yaml
from vlm_r1.errors import CheckpointError, ConfigError
from vlm_r1.models.adapters import adapt, trained_parameters
from vlm_r1.models.family import Part
from vlm_r1.models.freeze import freeze, learning_rate_scales
from vlm_r1.models.load import LoadedPolicy, load_policy
from vlm_r1.models.vision_cache import VisionCache
from vlm_r1.runtime.checkpoint import (
    list_checkpoints,
    load_optimizer,
    read_state,
    save_checkpoint,
    save_model,
    write_folder,
)
from vlm_r1.runtime.optim import build_optimizer
from vlm_r1.runtime.runlog import RunLog

LEAST_BF16_LR = 1e-4
"""Below this learning rate a step of AdamW (about the rate itself) is under half a bfloat16 step of a usual weight."""


@dataclass(slots=True, kw_only=True)
class Session:
    """A run in progress. `start` is the number of optimiser steps already done; `state` what the checkpoint kept."""

    recipe: Recipe
    run_dir: Path
    accelerator: Accelerator
    loaded: LoadedPolicy
    policy: Any
    optimizer: Any
    log: RunLog
    start: int
    state: dict[str, Any]

    def share_of(self, total: int, key: str) -> int:
        """How many of `total` fall to each process. Raises `ConfigError` naming `key` where they cannot be divided."""
        share, rest = divmod(total, self.accelerator.num_processes)
        if rest or not share:
            processes = self.accelerator.num_processes
            raise ConfigError(
                f"{key}: {total} cannot be divided among {processes} processes; use a multiple of {processes}"
            )
        return share

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write the checkpoint of `step` (on the main process)."""
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            save_checkpoint(
                self.run_dir,
                step,
                model=self.loaded.policy.model,
                processor=self.loaded.processor,
                prompt=self.recipe.prompt,
                optimizer=self.optimizer,
                state=state,
                keep=self.recipe.run.keep,
            )

    def track(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Add the metrics of a step to `metrics.jsonl` and to the trackers."""
        if self.accelerator.is_main_process:
            self.log.metrics(step, metrics)
        if self.recipe.run.trackers:
            self.accelerator.log({k: v for k, v in metrics.items() if isinstance(v, (int, float))}, step=step)

    def finish(self) -> Path:
        """Write `final/`, close the trackers, and return the folder."""
        if self.recipe.run.trackers:
            self.accelerator.end_training()
        final = self.run_dir / "final"
        if self.accelerator.is_main_process:
            model, processor = self.loaded.policy.model, self.loaded.processor
            write_folder(final, lambda folder: save_model(folder, model, processor, self.recipe.prompt))
        return final


def open_session(recipe: Recipe) -> Session:
    """Load the model of a recipe (or of the last checkpoint of its run folder) and prepare everything around it.

    Raises `CheckpointError` where the folder holds another recipe's run or a damaged checkpoint.
    """
    if recipe.run.threads:
        torch.set_num_threads(recipe.run.threads)
    torch.set_flush_denormal(True)  # tiny weights of a tiny model otherwise cost ten times as much on a CPU
    run_dir = Path(recipe.run.dir)
    accelerator = _accelerator(recipe, run_dir)
    set_seed(recipe.run.seed)
    log = RunLog(run_dir)
    log.environment()
    _claim_folder(recipe, run_dir, accelerator)
    checkpoints = list_checkpoints(run_dir)
    state: dict[str, Any] = {}
    model_config = recipe.model
    if checkpoints:
        state = read_state(checkpoints[-1])
        model_config = model_config.model_copy(update={"path": str(checkpoints[-1]), "init": "pretrained"})
    how = recipe.train.how()
    own_float32 = recipe.optim.master_weights or "lora" in how.values()
    if recipe.model.dtype == "bfloat16" and not own_float32 and recipe.optim.lr < LEAST_BF16_LR:
        accelerator.print(
            f"warning: model.dtype bfloat16 keeps 8 bits of a weight: steps of optim.lr {recipe.optim.lr:g} are mostly "
            "lost to rounding. Use optim.master_weights true, or model.dtype float32 with model.autocast bf16"
        )
    loaded = load_policy(model_config, recipe.prompt, seed=recipe.run.seed)
    adapt(loaded.family, recipe.train, recipe.lora, recipe.run.seed)
    if "lora" not in how.values():
        freeze(loaded.family, recipe.train)
    accelerator.print(trained_parameters(loaded.family, recipe.train), file=sys.stderr)
    if how["vision"] == how["connector"] == "frozen":
        cache_features(loaded, recipe)
    loaded.policy.to(accelerator.device)
    rates: dict[Part, float | None] = {"vision": recipe.optim.lr_vision, "connector": recipe.optim.lr_connector}
    scales = learning_rate_scales(loaded.family, rates, recipe.optim.lr)
    optimizer = build_optimizer(loaded.policy, recipe.optim, scales)
    if checkpoints:
        load_optimizer(checkpoints[-1], optimizer)
    policy, optimizer = accelerator.prepare(loaded.policy, optimizer)
    start = int(state.get("step", 0))
    if accelerator.is_main_process:
        log.truncate_after(start)
    return Session(
        recipe=recipe,
        run_dir=run_dir,
        accelerator=accelerator,
        loaded=loaded,
        policy=policy,
        optimizer=optimizer,
        log=log,
        start=start,
        state=state,
    )


def cache_features(loaded: LoadedPolicy, recipe: Recipe) -> None:
    """Give a policy with frozen tower and connector a cache of features, as the recipe says."""
    folder = recipe.model.vision_cache_dir
    if not recipe.model.vision_cache_mb and folder is None:
        return
    cache = VisionCache(recipe.model.vision_cache_mb * 2**20, Path(folder) if folder else None)
    parts = loaded.family.parameters()
    loaded.policy.cache_features(cache, [*parts["vision"], *parts["connector"]])


def _accelerator(recipe: Recipe, run_dir: Path) -> Accelerator:
    """Processes, device, precision and trackers. Raises `ConfigError` for a tracker that is not installed."""
    for name in recipe.run.trackers:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"run.trackers: {name} is not installed; run: pip install {name}")
    names: list[Any] = list(recipe.run.trackers)
    accelerator = Accelerator(mixed_precision=recipe.model.autocast, log_with=names or None, project_dir=run_dir)
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != accelerator.num_processes:
        raise ConfigError(
            f"{started} processes were started, but each thinks that it is one of {accelerator.num_processes}; "
            "for several processes without a GPU set ACCELERATE_USE_CPU=true"
        )
    if names:
        accelerator.init_trackers(run_dir.name)
    return accelerator


_MAY_CHANGE = {
    "steps",
    "save_every",
    "keep",
    "threads",
    "dir",
    "log_rollouts_every",
    "trackers",
    "track_pictures_every",
}


def _claim_folder(recipe: Recipe, run_dir: Path, accelerator: Accelerator) -> None:
    """Write config.yaml, or refuse to continue a run under other settings."""
    file = run_dir / "config.yaml"
    text = resolved_yaml(recipe)
    if file.is_file() and list_checkpoints(run_dir):
        from vlm_r1.config_file import load_config

        old = load_config(file, [])
        changed = _differences(old.model_dump(), recipe.model_dump())
        if changed:
            raise CheckpointError(
                f"{run_dir}: holds a run with other settings ({', '.join(changed)}); "
                "give run.dir another folder, or the same settings to continue"
            )
    if accelerator.is_main_process:
        aside = file.with_suffix(".tmp")
        aside.write_text(text, encoding="utf-8")
        os.replace(aside, file)


def _differences(old: dict[str, Any], new: dict[str, Any], at: str = "") -> list[str]:
    found = []
    for key in new:
        name = f"{at}{key}"
        if at == "run." and key in _MAY_CHANGE:
            continue
        if isinstance(new[key], dict) and isinstance(old.get(key), dict):
            found += _differences(old[key], new[key], f"{name}.")
        elif old.get(key) != new[key]:
            found.append(name)
    return found
