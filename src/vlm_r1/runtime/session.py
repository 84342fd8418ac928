"""What every training run starts with: processes, threads, seeds, run folder, model, and where it left off."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vlm_r1 import __version__
from vlm_r1.config import Recipe
from vlm_r1.config_file import load_config, resolved_yaml
from vlm_r1.distributed.check import check_cluster, join
from vlm_r1.distributed.checkpoints import CheckpointWriter, load_checkpoint
from vlm_r1.distributed.finite import demand_finite
from vlm_r1.distributed.loading import open_policy
from vlm_r1.distributed.processes import World
from vlm_r1.distributed.watchdog import Watchdog
from vlm_r1.distributed.whole import list_checkpoints, newest_state, read_state
from vlm_r1.envs.host import open_host
from vlm_r1.errors import CheckpointError, UserError
from vlm_r1.models.adapters import REFERENCE, adapt, base_of_adapter, load_adapter, trained_parameters
from vlm_r1.models.family import Family, Part
from vlm_r1.models.freeze import freeze, frozen_features, learning_rate_scales
from vlm_r1.models.load import LoadedPolicy, compute_dtype, resolve_path
from vlm_r1.models.vision_cache import VisionCache
from vlm_r1.rollout.native import NativeEngine
from vlm_r1.runtime.alive import Lock, sign
from vlm_r1.runtime.heap import keep_freed_memory
from vlm_r1.runtime.inputs import Inputs, read_inputs
from vlm_r1.runtime.model_folder import save_policy
from vlm_r1.runtime.optim import build_optimizer, place_of
from vlm_r1.runtime.runlog import RunLog, check_writable, read_eval, read_metrics, write_atomically
from vlm_r1.runtime.stopping import Signals
from vlm_r1.runtime.trackers import Trackers, check_trackers


@dataclass(slots=True, kw_only=True)
class Session:
    """A run in progress. `start` is the number of optimizer steps already done; `state` what the checkpoint kept.

    `engine` answers with the policy itself. The last `skipped` optimizer steps, from step `skipped_from` on, were not
    made (`runtime.divergence`).
    """

    recipe: Recipe
    inputs: Inputs
    run_dir: Path
    world: World
    loaded: LoadedPolicy
    engine: NativeEngine
    optimizer: Any
    log: RunLog
    trackers: Trackers
    writer: CheckpointWriter
    start: int
    state: dict[str, Any]
    skipped: int = 0
    skipped_from: int = 0

    @property
    def policy(self) -> Any:
        """The policy that is trained."""
        return self.loaded.policy

    @property
    def sharing(self) -> dict[str, Any]:
        """What a policy beside this one is opened with."""
        return {"seed": self.recipe.run.seed, "shard_size": self.recipe.run.shard_size}

    def track(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Add the metrics of a step to `metrics.jsonl` and to the trackers; a checkpoint that is written gets its name.

        Every process calls it.
        """
        self.writer.poll()
        if self.world.is_main:
            self.log.metrics(step, metrics)
            self.trackers.log(metrics, step)

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """Start to write the checkpoint of `step`; every process calls it."""
        self.world.beat("saving a checkpoint")
        if self.world.is_main:
            self.log.sync()
        self.writer.save(step, self.policy, self.optimizer, state)

    def load(self, step: int) -> None:
        """Load the weights of an earlier checkpoint; every process calls it. Raises `CheckpointError`."""
        self.writer.wait()
        checkpoint = self.run_dir / f"checkpoint-{step}"
        if not checkpoint.is_dir():
            raise CheckpointError(
                f"{checkpoint}: is not there (eval.keep_best was not set when it was written, or it was deleted); "
                "set eval.load_best_at_end: false, and the same command finishes the run with the last step"
            )
        read_state(checkpoint, self.world)
        load_checkpoint(checkpoint, self.loaded.policy, lambda p: place_of(self.optimizer, p), self.world)

    def finish(self) -> Path:
        """Finish the last checkpoint, write `final/`, close the trackers, and return the folder."""
        self.writer.wait()
        self.trackers.finish()
        final = self.run_dir / "final"
        save_policy(final, self.loaded, self.recipe.prompt, self.world)
        return final


@contextmanager
def open_session(recipe: Recipe, inputs: Inputs | None = None) -> Iterator[Session]:
    """Load the model of a recipe (and the last checkpoint of its run folder) and prepare everything around it.

    `inputs` are the recipe's (default: they are read first, so that no folder is made where they are wrong). Raises
    `CheckpointError` where the folder holds another recipe's run or a damaged checkpoint, `ClusterError` where the
    processes cannot work together.
    """
    inputs = inputs or read_inputs(recipe)
    if recipe.run.threads:
        torch.set_num_threads(recipe.run.threads)
    torch.set_flush_denormal(True)  # tiny weights of a tiny model otherwise cost ten times as much on a CPU
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(recipe.run.seed)
    world = join()
    if world.device.type == "cpu":
        keep_freed_memory()
    run_dir = Path(recipe.run.dir)
    check_trackers(recipe.run.trackers)
    check_writable(run_dir)
    with Lock(run_dir) as lock, Signals(world) as signals:
        _claim(lock, recipe, world)
        check_cluster(world, run_dir, f"vlm-r1 {__version__}, torch {torch.__version__}")
        loaded = open_trained(recipe, world)  # before the folder is made: a model that cannot be loaded leaves none
        demand_finite(loaded.policy, world, recipe.model.path)
        _claim(lock, recipe, world, make=True)
        log = RunLog(run_dir, repair=world.is_main)
        if world.is_main:
            log.environment()
            write_atomically(run_dir / "config.yaml", resolved_yaml(recipe).encode())
        with sign(run_dir) if world.is_main else nullcontext():
            world.barrier()  # what fails on all fails at one time, and is said once
            session = _session(recipe, inputs, run_dir, world, loaded, log)
            with Watchdog(world, recipe.run.hang_timeout_s):
                signals.begin()
                try:
                    yield session
                finally:
                    if world.size == 1:  # with several, the others may not come to name it together
                        session.writer.wait()
                session.writer.wait()
                world.barrier()


def _claim(lock: Lock, recipe: Recipe, world: World, *, make: bool = False) -> None:
    """Lock the run folder (with `make` also a new one) and check what it holds.

    Raises `CheckpointError` on every process where another one trains in it, or where it holds another run.
    """
    failure: UserError | None = None
    try:
        if world.is_main:
            if make:
                RunLog(lock.run_dir, repair=False)
            if lock.take():  # nobody else changes the folder from here on
                _refuse_other_settings(recipe, lock.run_dir)
                read_eval(lock.run_dir)
    except UserError as error:
        failure = error
    world.raise_together(failure)


def _session(recipe: Recipe, inputs: Inputs, run_dir: Path, world: World, loaded: LoadedPolicy, log: RunLog) -> Session:
    trackers = Trackers(recipe.run.trackers if world.is_main else (), run_dir)
    if world.is_main:
        print(trained_parameters(loaded.family, recipe.train), file=sys.stderr)
    cache_features(loaded, recipe)
    rates: dict[Part, float | None] = {"vision": recipe.optim.lr_vision, "connector": recipe.optim.lr_connector}
    scales = learning_rate_scales(loaded.family, rates, recipe.optim.lr)
    optimizer = build_optimizer(loaded.policy, recipe.optim, scales)
    checkpoint, state = newest_state(run_dir, world, skip_damaged=recipe.run.skip_damaged)
    if checkpoint is not None:
        load_checkpoint(checkpoint, loaded.policy, lambda p: place_of(optimizer, p), world)
        demand_finite(loaded.policy, world, checkpoint)
    start = int(state.get("step", 0))
    if world.is_main:
        log.truncate_after(start)
    return Session(
        recipe=recipe,
        inputs=inputs,
        run_dir=run_dir,
        world=world,
        loaded=loaded,
        engine=NativeEngine(loaded, recipe.rollout, world, open_host(recipe.env, loaded.family)),
        optimizer=optimizer,
        log=log,
        trackers=trackers,
        writer=CheckpointWriter(run_dir, world, recipe.run.keep),
        start=start,
        state=state,
    )


def open_trained(recipe: Recipe, world: World) -> LoadedPolicy:
    """The policy that a recipe trains, on this process's device, as it is before the first step."""
    return open_policy(
        recipe.model,
        recipe.prompt,
        world,
        prepare=lambda family: choose_trained(family, recipe),
        seed=recipe.run.seed,
        shard_size=recipe.run.shard_size,
    )


def choose_trained(family: Family, recipe: Recipe) -> None:
    """Freeze and adapt a model as the recipe says; beside an adapter that the run starts from, keep it for the KL."""
    if "lora" not in recipe.train.how().values():
        adapt(family, recipe.train, recipe.lora, recipe.run.seed)
        freeze(family, recipe.train)
        return
    path = resolve_path(recipe.model.path)
    if recipe.method == "grpo" and recipe.rl.beta and base_of_adapter(path):
        load_adapter(family.model, path, REFERENCE)
    adapt(family, recipe.train, recipe.lora, recipe.run.seed)


def cache_features(loaded: LoadedPolicy, recipe: Recipe) -> None:
    """Give a policy with a frozen tower a cache of what it makes of images, as the recipe says."""
    folder = recipe.model.vision_cache_dir
    if not recipe.model.vision_cache_mb and folder is None:
        return
    if (frozen := frozen_features(loaded.family)) is not None:
        cache = VisionCache(recipe.model.vision_cache_mb * 2**20, Path(folder) if folder else None)
        loaded.policy.cache_features(cache, *frozen)


MAY_CHANGE = {
    *(
        f"run.{key}"
        for key in ("steps", "save_every", "keep", "skip_damaged", "threads", "dir", "log_rollouts_every", "trackers")
    ),
    *("run.track_images_every", "run.shard_size", "run.hang_timeout_s"),
    *("rl.token_budget", "sft.token_budget", "rl.reference_offload", "rollout.max_sequences", "rollout.kv_cache_gb"),
    *("rollout.gather", "rollout.cuda_graphs", "model.attention", "model.compile"),
    *(f"rollout.{key}" for key in ("servers", "tensor_parallel", "server_memory", "vllm_python", "weights_dir")),
    *("rollout.request_timeout_s", "rollout.server_timeout_s", "rollout.max_mismatch"),
    *("model.gradient_checkpointing", "model.logprob_kernel", "model.vision_cache_mb", "model.vision_cache_dir"),
    *("eval.batch_size", "eval.max_new_tokens", "eval.every", "eval.suites", "eval.resamples", "data.eval"),
    *("optim.max_skipped", "eval.keep_best", "eval.early_stopping_patience", "eval.load_best_at_end"),
}
"""Settings that a run may be continued with another value of: they change speed, memory, or what is measured."""


def _refuse_other_settings(recipe: Recipe, run_dir: Path) -> None:
    """Raise `CheckpointError` where a run would be continued under other settings."""
    file = run_dir / "config.yaml"
    if file.is_file() and (list_checkpoints(run_dir) or read_metrics(run_dir)):
        old = load_config(file, [])
        changed = differences(old.model_dump(), recipe.model_dump())
        if compute_dtype(old.model) == compute_dtype(recipe.model):
            changed = [name for name in changed if name != "model.precision"]
        if changed:
            raise CheckpointError(
                f"{run_dir}: holds a run with other settings ({', '.join(changed)}); "
                "give run.dir another folder, or the same settings to continue, or delete that folder"
            )


def differences(old: dict[str, Any], new: dict[str, Any], at: str = "") -> list[str]:
    """Dotted keys of settings that differ and must not."""
    found = []
    for key in new:
        name = f"{at}{key}"
        if name in MAY_CHANGE:
            continue
        if isinstance(new[key], dict) and isinstance(old.get(key), dict):
            found += differences(old[key], new[key], f"{name}.")
        elif old.get(key) != new[key]:
            found.append(name)
    return found
