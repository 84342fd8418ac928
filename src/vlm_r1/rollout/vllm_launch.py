"""How a vLLM server is started: which Python, which flags, which environment, and why each of them."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from ipaddress import ip_address
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from vlm_r1.config import LoraConfig, Recipe
from vlm_r1.data.source import load_source
from vlm_r1.envs.host import open_host
from vlm_r1.errors import EngineError
from vlm_r1.models.adapters import base_of_adapter
from vlm_r1.models.family import Family
from vlm_r1.models.load import resolve_path
from vlm_r1.records import Sample

MODEL = "policy"
"""What a server calls the model."""
BACKEND = "vlm_r1_files"
"""The weight transfer engine that `vllm_worker/vlm_r1_vllm.py` registers."""
WORKER = Path(__file__).parent / "vllm_worker"
ENVIRONMENT = Path(".venv-vllm", "bin", "python")
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Sizes that vLLM can hold adapters in."""
LOOKED_AT = 16
"""Questions of each source whose prompts are measured."""
IMAGES_A_CALL = 2
"""Images that a server takes for each call of a tool."""
MIN_PROMPT, MIN_IMAGES = 4096, 4
"""Tokens and images that a prompt may have in any case: later questions may be longer, and room costs next to nothing.
"""
SECRETS = ("VLM_R1_SECRET", "VLLM_API_KEY")


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """A server to start.

    Example: `Launch(model="models/qwen", dtype="bfloat16", port=8000, max_model_len=4096, gpus=("0",))`. Without `gpus`
    it computes on the CPU. `image_kwargs` are those of the image processor (`Family.image_kwargs`), `lora_rank`
    the highest of its adapters, of which `loras` are in use at once; `tower_lora` says that they adapt the vision tower
    or the connector. `kv_cache_gb` is in GiB; on a GPU the default is what `gpu_memory` (share of the GPU) leaves, on a
    CPU 1. With `sleeps` it can give its GPU memory back between two rollouts. `weights_dir` is the only folder from
    which it takes weights; without a `secret` it answers to everybody who reaches its port.
    """

    model: str
    dtype: Literal["float32", "bfloat16"]
    port: int
    max_model_len: int
    host: str = "127.0.0.1"
    images: int = 1
    image_kwargs: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    gpus: tuple[str, ...] = ()
    tensor_parallel: int = 1
    gpu_memory: float = 0.9
    kv_cache_gb: float | None = None
    max_num_seqs: int = 256
    lora_rank: int | None = None
    loras: int = 2
    tower_lora: bool = False
    seed: int = 0
    sleeps: bool = False
    threads: int | None = None
    weights_dir: str | None = None
    secret: str | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        """Where it answers; on this machine, where it answers on all addresses."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"


def launch_of(
    recipe: Recipe,
    family: Family,
    *,
    port: int,
    host: str = "127.0.0.1",
    gpus: tuple[str, ...] = (),
    gpu_memory: float | None = None,
    max_model_len: int | None = None,
    sleeps: bool = False,
    secret: str | None = None,
    weights_dir: str | None = None,
) -> Launch:
    """The server that a recipe needs. `family` may be without weights.

    A sequence has room for twice the longest of the data's first prompts and the longest completion. `gpu_memory`
    defaults to `rollout.server_memory`. Raises `EngineError` where the model is not one that a server can read.
    """
    refuse_scratch(recipe)
    open_host(recipe.env, family)  # prompts may tell of its tools
    adapted = "lora" in recipe.train.how().values() or bool(getattr(family.model, "peft_config", None))
    path, settings, how = resolve_path(recipe.model.path), recipe.rollout, recipe.train.how()
    low = recipe.model.precision == "bfloat16" or (recipe.model.precision == "auto" and bool(gpus))
    prompts = [(len(family.encode(sample).token_ids), len(sample.images)) for sample in _first_questions(recipe)]
    return Launch(
        model=base_of_adapter(path) or path,
        dtype="bfloat16" if low else "float32",
        host=host,
        port=port,
        max_model_len=max_model_len or _room(recipe, family, [tokens for tokens, _ in prompts]),
        images=max([MIN_IMAGES, *(images for _, images in prompts)]) + IMAGES_A_CALL * recipe.max_calls,
        image_kwargs=family.image_kwargs(recipe.model.min_pixels, recipe.model.max_pixels),
        gpus=gpus,
        tensor_parallel=max(1, len(gpus)),
        gpu_memory=gpu_memory or settings.server_memory,
        kv_cache_gb=settings.kv_cache_gb,
        max_num_seqs=max(settings.max_sequences or 256, recipe.rl.group_size),
        lora_rank=_rank(recipe, family) if adapted else None,
        tower_lora="lora" in (how["vision"], how["connector"]),
        seed=recipe.run.seed,
        sleeps=sleeps,
        # On a CPU the trainer and the server's own HTTP need the other cores.
        threads=None if gpus else recipe.run.threads or max(1, (os.cpu_count() or 1) // 2),
        weights_dir=weights_dir,
        secret=secret,
    )


def _rank(recipe: Recipe, family: Family) -> int:
    """The rank of the adapter that the model has, else of the one that the recipe would give it."""
    adapters = getattr(family.model, "peft_config", None) or {}
    return max((adapter.r for adapter in adapters.values()), default=(recipe.lora or LoraConfig()).rank)


def refuse_scratch(recipe: Recipe) -> None:
    """Raise `EngineError` where the recipe's model has no folder."""
    if recipe.model.init == "scratch":
        raise EngineError(
            "model.init: scratch: a server reads its model from a folder; train one step with engine: native and "
            "name its final/ as model.path"
        )


def _room(recipe: Recipe, family: Family, prompts: list[int]) -> int:
    """Tokens of the longest sequence; what a tool shows may be as large as a prompt."""
    tokens = max([MIN_PROMPT, *(2 * length for length in prompts)])
    tokens += max(recipe.rollout.max_new_tokens, recipe.eval.max_new_tokens)
    tokens *= 1 + recipe.max_calls
    limit = getattr(family.model.config.get_text_config(), "max_position_embeddings", None)
    return min(tokens, limit or tokens)


def _first_questions(recipe: Recipe) -> Iterable[Sample]:
    """The first questions of each source; data sets on the hub are not read, that would download them."""
    for source in (*recipe.data.train, *recipe.data.eval.values()):
        if source.hub is not None:
            continue
        if source.scenes is None and source.sampling == "all":
            source = source.model_copy(update={"sampling": f"first:{LOOKED_AT}"})
        samples = load_source(source, seed=recipe.run.seed)
        yield from (samples[i] for i in range(min(LOOKED_AT, len(samples))))


def command(launch: Launch, python: str) -> tuple[list[str], dict[str, str]]:
    """The arguments that start a server, and what its environment must hold besides the usual."""
    return [python, "-m", "vllm.entrypoints.openai.api_server", *_flags(launch)], _variables(launch)


def _flags(launch: Launch) -> list[str]:
    flags: dict[str, Any] = {
        "model": launch.model,
        "served-model-name": MODEL,
        "host": launch.host,
        "port": launch.port,
        "dtype": launch.dtype,
        "seed": launch.seed,
        "max-model-len": launch.max_model_len,
        "max-num-seqs": launch.max_num_seqs,
        "tensor-parallel-size": launch.tensor_parallel,
        "limit-mm-per-prompt": {"image": launch.images, "video": 0},
        # The model folder's generation_config would change temperature and repetition penalty silently.
        "generation-config": "vllm",
        # The distribution that is sampled from, after temperature and suppression; the default is the model's own.
        "logprobs-mode": "processed_logprobs",
        # Opens /inference/v1/generate, which takes token ids.
        "enable-scale-out": None,
        "weight-transfer-config": {"backend": BACKEND},
        # Makes workers import the module that registers this backend.
        "worker-extension-cls": "vlm_r1_vllm.WorkerExtension",
        # API process and engine each keep a copy of this cache and assume that they agree; a reset can part them, and
        # the request then fails ("cache not found"). Groups do not need it: their image is processed once.
        "mm-processor-cache-gb": 0,
        "disable-uvicorn-access-log": None,
    }
    if launch.image_kwargs:
        flags["mm-processor-kwargs"] = {"images_kwargs": dict(launch.image_kwargs)}
    if launch.secret:
        flags["middleware"] = "vlm_r1_secret.RequireSecret"
    if launch.lora_rank is not None:
        flags |= {"enable-lora": None, "max-lora-rank": _lora_rank(launch.lora_rank), "max-loras": launch.loras}
        if launch.tower_lora:
            flags["enable-tower-connector-lora"] = None
    flags |= _on_gpu(launch) if launch.gpus else _on_cpu(launch)
    return [text for name, value in flags.items() for text in _flag(name, value)]


def _on_gpu(launch: Launch) -> dict[str, Any]:
    flags: dict[str, Any] = {"gpu-memory-utilization": launch.gpu_memory}
    if launch.kv_cache_gb is not None:
        flags["kv-cache-memory-bytes"] = int(launch.kv_cache_gb * 2**30)
    if launch.sleeps:
        flags["enable-sleep-mode"] = None
    return flags


def _on_cpu(launch: Launch) -> dict[str, Any]:
    flags: dict[str, Any] = {
        "kv-cache-memory-bytes": int((launch.kv_cache_gb or 1) * 2**30),
        "enforce-eager": None,  # compiling takes minutes
        "skip-mm-profiling": None,  # measures a GPU's memory
        # A prompt that is cut needs a random generator with an offset, which a CPU does not have: a seeded request
        # would end the engine. So every prompt fits one batch.
        "no-enable-chunked-prefill": None,
        "max-num-batched-tokens": max(launch.max_model_len, launch.max_num_seqs, 4096),
    }
    if launch.tensor_parallel == 1:
        flags["distributed-executor-backend"] = "uni"  # no third process: half the time to start
    return flags


def _variables(launch: Launch) -> dict[str, str]:
    variables = {
        # The folder with the worker's module alone: packages of this process must not shadow those of vLLM's.
        "PYTHONPATH": str(WORKER),
        # Opens the routes for weights, caches, pause and sleep.
        "VLLM_SERVER_DEV_MODE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
    }
    if launch.weights_dir is not None:
        variables["VLM_R1_WEIGHTS_DIR"] = launch.weights_dir
    if launch.secret:
        variables |= dict.fromkeys(SECRETS, launch.secret)  # in the environment: arguments are there for all to see
    if launch.lora_rank is not None:
        variables["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"  # opens the routes that load and unload adapters
    if launch.gpus:
        return variables | {"CUDA_VISIBLE_DEVICES": ",".join(launch.gpus)}
    variables |= {
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # bound, it would share one core with the trainer
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # otherwise the executor "uni" is replaced by processes
    }
    return variables | ({"OMP_NUM_THREADS": str(launch.threads)} if launch.threads else {})


def _flag(name: str, value: Any) -> Iterable[str]:
    if value is None:
        return (f"--{name}",)
    return (f"--{name}", json.dumps(value) if isinstance(value, dict) else str(value))


def _lora_rank(rank: int) -> int:
    for size in LORA_RANKS:
        if rank <= size:
            return size
    raise EngineError(f"lora.rank: vLLM holds adapters up to rank {LORA_RANKS[-1]}, not {rank}; lower it")


def shell_line(argv: list[str], variables: Mapping[str, str]) -> str:
    """The same for a shell, without the secret: it is read from the variable VLM_R1_SECRET."""
    shown = [
        f'{name}="$VLM_R1_SECRET"' if name in SECRETS else f"{name}={shlex.quote(value)}"
        for name, value in variables.items()
    ]
    return " ".join(["env", *shown, shlex.join(argv)])


def find_python(given: str | None) -> str:
    """The Python that has vLLM: `rollout.vllm_python`, else this one, else `.venv-vllm`'s in the current folder or
    in this package's repository.

    Raises `EngineError`, which says how to install vLLM, where there is none.
    """
    if given is not None:
        path = Path(given).expanduser()
        if not os.access(path, os.X_OK) or path.is_dir():
            raise EngineError(
                f'rollout.vllm_python: "{given}" is not a program; name the python of vLLM\'s environment'
            )
        return str(path.absolute())
    if _installed("vllm") or _installed("vllm-cpu"):
        return sys.executable
    folders = (Path.cwd(), Path(__file__).parents[3])
    for folder in folders:
        if os.access(folder / ENVIRONMENT, os.X_OK):
            return str(folder / ENVIRONMENT)
    raise EngineError(
        "rollout.engine: vllm needs vLLM, which is neither in this environment nor in .venv-vllm "
        f"(looked in {' and '.join(dict.fromkeys(map(str, folders)))}). In the repository, run: make vllm-env. "
        "Elsewhere install vLLM in an environment of its own (python3 -m venv .venv-vllm; .venv-vllm/bin/pip install "
        "vllm), or name its Python: rollout.vllm_python"
    )


def is_loopback(host: str) -> bool:
    """Whether a name or an address is this computer's own."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True
