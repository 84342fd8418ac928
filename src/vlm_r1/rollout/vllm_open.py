"""The vLLM servers of a run: those that the recipe names, or those that the run starts on its own GPUs."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from vlm_r1.config import Recipe, RolloutConfig
from vlm_r1.distributed.processes import World
from vlm_r1.distributed.wire import MEMORY, WeightFiles
from vlm_r1.envs.host import open_host
from vlm_r1.errors import ConfigError, EngineError
from vlm_r1.models.load import LoadedPolicy
from vlm_r1.rollout.vllm import VLLMEngine
from vlm_r1.rollout.vllm_client import Server
from vlm_r1.rollout.vllm_launch import find_python, is_loopback, launch_of
from vlm_r1.rollout.vllm_server import Seat, ServerProcess, free_port

SECRET = "VLM_R1_SECRET"
"""The environment variable with the secret that servers and runs share."""


@contextmanager
def open_vllm(loaded: LoadedPolicy, recipe: Recipe, world: World, *, trains: bool = True) -> Iterator[VLLMEngine]:
    """The engine of `rollout.engine: vllm`, checked, with the weights that its servers were started with.

    With `trains` it takes others by `sync`. Every process enters it. Raises `EngineError` where a server does not
    start, does not answer or lacks something, and `ConfigError` where a setting does not fit.
    """
    settings = recipe.rollout
    files = WeightFiles(loaded.policy, world, settings.weights_dir) if trains else None
    process, engine = None, None
    try:
        if settings.servers:
            seats = _named(settings, world, takes_weights=trains)
        else:
            process, error = _started(loaded, recipe, world, files)
            seats = _agreed(process, error, world)
        sleeps = not settings.servers and world.device.type == "cuda"
        if sleeps and settings.staleness:
            raise ConfigError(
                "rollout.staleness: servers on the GPUs of the run sleep during the update; start others on GPUs of "
                "their own (vlm-r1 serve) and name them in rollout.servers, or set rollout.staleness: 0"
            )
        host = open_host(recipe.env, loaded.family)
        engine = VLLMEngine(loaded, settings, seats, world, files=files, sleeps=sleeps, host=host)
        if problems := engine.check().problems:
            raise EngineError("\n".join(problems))
        yield engine
    finally:
        if engine is not None:
            engine.close()
        elif files is not None:
            files.close()
        if process is not None:
            process.kill()


def _named(settings: RolloutConfig, world: World, *, takes_weights: bool) -> list[Seat]:
    """Servers of the recipe; where they take weights, the main process sends them."""
    for url in settings.servers:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f'rollout.servers: "{url}" is not an address; write it as http://host:port')
        if takes_weights and settings.weights_dir is None and not is_loopback(parts.hostname):
            raise ConfigError(
                f"rollout.servers: {parts.hostname} may be another machine, which does not see this one's memory; set "
                "rollout.weights_dir to a folder that both see, here and for vlm-r1 serve"
            )
    return [Seat(Server(url, os.environ.get(SECRET)), driven=world.is_main) for url in settings.servers]


def _started(
    loaded: LoadedPolicy, recipe: Recipe, world: World, files: WeightFiles | None
) -> tuple[ServerProcess | None, Exception | None]:
    """The server of this process: one on a CPU machine, one for `tensor_parallel` GPUs else. A failure is returned."""
    on_gpu, settings = world.device.type == "cuda", recipe.rollout
    each = settings.tensor_parallel if on_gpu else world.local_size
    if world.local_rank % each:
        return None, None
    process = None
    try:
        if on_gpu and world.local_size % each:
            raise ConfigError(
                f"rollout.tensor_parallel: {world.local_size} processes cannot be divided into groups of {each}"
            )
        gpus = tuple(_gpu_name(world.local_rank + i) for i in range(each)) if on_gpu else ()
        launch = launch_of(
            recipe,
            loaded.family,
            port=free_port(),
            gpus=gpus,
            sleeps=on_gpu,
            secret=secrets.token_hex(16),
            weights_dir=str(files.root if files else settings.weights_dir or MEMORY),
        )
        log = Path(recipe.run.dir) / "servers" / f"rank-{world.rank}.log"
        process = ServerProcess(launch, find_python(settings.vllm_python), log)
        process.start()
        process.wait_ready(lambda: world.beat("starting a server"))
    except (EngineError, ConfigError) as error:
        if process is not None:
            process.kill()
        return None, error
    return process, None


def _gpu_name(number: int) -> str:
    """What CUDA calls a GPU of this process outside of `CUDA_VISIBLE_DEVICES`."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",")[number] if visible else str(number)


def _agreed(process: ServerProcess | None, error: Exception | None, world: World) -> list[Seat]:
    """The servers of this machine as this process sees them. Raises, on every process, what one of them raised."""
    mine = (os.uname().nodename, process.url, process.secret) if process else (os.uname().nodename, "", "")
    world.raise_together(error)
    seats = []
    for rank, (host, url, secret) in enumerate(world.gather(mine)):
        if url and host == os.uname().nodename:
            driven = rank == world.rank
            seats.append(Seat(Server(url, secret), driven=driven, process=process if driven else None))
    return seats
