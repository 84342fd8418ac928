"""The command that runs a vLLM server for rollouts: serve."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Annotated

import typer

from vlm_r1.cli.app import Overrides, RecipeArgument, app, command, load_recipe
from vlm_r1.errors import EngineError

if TYPE_CHECKING:
    from vlm_r1.rollout.vllm_server import ServerProcess


@command(app, "serve")
def serve(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on. Others than this computer's own need VLM_R1_SECRET.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    gpu_memory: Annotated[
        float, typer.Option(min=0.05, max=0.98, help="Share of each GPU's memory that it may take.")
    ] = 0.9,
    max_model_len: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens of a prompt and its completion; default: from the recipe and its data."),
    ] = None,
    print_line: Annotated[bool, typer.Option("--print", help="Print the line for a shell instead.")] = False,
) -> None:
    """Run a vLLM server for the model of a recipe, for runs whose rollout.servers names it. Ctrl-C ends it.

    It takes the first GPUs that CUDA_VISIBLE_DEVICES names (as many as rollout.tensor_parallel), or the CPU. The secret
    that clients must know is read from the environment variable VLM_R1_SECRET; without one everybody on this computer
    can use the server. See: vlm-r1 docs vllm.

    Example: vlm-r1 serve my.yaml --port 8000
    """
    secret = _secret(host)
    settings = load_recipe(recipe, overrides)
    from vlm_r1.distributed.wire import MEMORY
    from vlm_r1.models.load import load_without_weights
    from vlm_r1.rollout.vllm_launch import command as command_line
    from vlm_r1.rollout.vllm_launch import find_python, launch_of, refuse_scratch, shell_line
    from vlm_r1.rollout.vllm_server import ServerProcess

    refuse_scratch(settings)
    python = find_python(settings.rollout.vllm_python)
    launch = launch_of(
        settings,
        load_without_weights(settings.model, settings.prompt).family,
        host=host,
        port=port,
        gpus=_gpus(settings.rollout.tensor_parallel),
        gpu_memory=gpu_memory,
        max_model_len=max_model_len,
        secret=secret,
        weights_dir=os.path.abspath(settings.rollout.weights_dir or MEMORY),
    )
    if print_line:
        typer.echo(shell_line(*command_line(launch, python)))
        return
    _run(ServerProcess(launch, python))


def _run(process: ServerProcess) -> None:
    process.start()
    try:
        process.wait_ready()
        typer.echo(f'Ready. In the recipe of a run on this computer: rollout.servers: ["{process.url}"]', err=True)
        while process.alive():
            time.sleep(0.5)
        raise EngineError(f"the vLLM server at {process.url} ended by itself. {process.last_lines()}")
    finally:
        process.kill()


def _secret(host: str) -> str | None:

    secret = os.environ.get("VLM_R1_SECRET") or None
    if secret is not None and not (secret.isascii() and secret.isprintable() and " " not in secret):
        raise EngineError("VLM_R1_SECRET: a secret has printable ASCII characters without spaces; set another one")
    from vlm_r1.rollout.vllm_launch import is_loopback

    if secret is None and not is_loopback(host):
        raise EngineError(
            f"--host {host}: whoever reaches this server can load weights into it and call methods of its workers; set "
            'a secret, here and for the runs that use it: export VLM_R1_SECRET="$(openssl rand -hex 16)"'
        )
    return secret


def _gpus(wanted: int) -> tuple[str, ...]:
    import torch

    if not torch.cuda.is_available():
        if wanted > 1:
            raise EngineError(f"rollout.tensor_parallel: {wanted} GPUs are wanted, and there is none; set it to 1")
        return ()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    there = named.split(",") if named else [str(i) for i in range(torch.cuda.device_count())]
    if len(there) < wanted:
        raise EngineError(f"rollout.tensor_parallel: {wanted} GPUs are wanted, and {len(there)} are there")
    return tuple(there[:wanted])
