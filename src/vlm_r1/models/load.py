"""One door to every model: `load_policy` takes a folder, a hub id, or a configuration to start from scratch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import httpx
import torch
from huggingface_hub import constants, try_to_load_from_cache
from transformers import AutoConfig, AutoModelForImageTextToText, GenerationConfig
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, cached_file

from vlm_r1.config import ModelConfig, PromptConfig
from vlm_r1.errors import ModelError, UserError, shown
from vlm_r1.models import shared_prefix, vision_attention
from vlm_r1.models.adapters import base_of_adapter, load_adapter
from vlm_r1.models.cpu_layers import speed_up
from vlm_r1.models.families import FAMILIES
from vlm_r1.models.family import Family
from vlm_r1.models.freeze import blocks_of
from vlm_r1.models.generic import check_forward, check_kind, family_class
from vlm_r1.models.policy import Policy
from vlm_r1.models.processor import load_processor
from vlm_r1.models.quantize import keep_trainable, quantization
from vlm_r1.models.scratch import build_scratch


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedPolicy:
    """A policy with the family that speaks for it and the processor that encodes for it."""

    policy: Policy
    family: Family
    processor: Any

    @property
    def tokenizer(self) -> Any:
        """The processor's tokenizer."""
        return self.processor.tokenizer


def resolve_path(path: str) -> str:
    """A model path; "tiny" is the model shipped with the package."""
    if path != "tiny":
        return path
    return str(resources.files("vlm_r1") / "assets" / "tiny")


MODEL_FILES = ("config.json", "adapter_config.json")
"""One of these is in each model folder."""
HUB_TIMEOUT_S = 5.0
"""Seconds that the hub may take to answer at all."""
PROMPT_FILE = "vlm_r1.json"
"""In a model folder written by this package: the prompt settings that the model was trained with."""


def prompt_of_model(path: str) -> PromptConfig:
    """The prompt settings a model folder was trained with, or the defaults where it does not say."""
    file = Path(resolve_path(path), PROMPT_FILE)
    if not file.is_file():
        return PromptConfig()
    try:
        return PromptConfig.model_validate_json(file.read_bytes())
    except ValueError as error:
        raise ModelError(f"{file}: holds no prompt settings ({error.__class__.__name__}); delete it") from None


def compute_dtype(config: ModelConfig) -> torch.dtype:
    """What a model computes in: `auto` is bfloat16 on a GPU, float32 elsewhere."""
    if config.precision == "auto":
        return torch.bfloat16 if torch.cuda.is_available() else torch.float32
    return torch.bfloat16 if config.precision == "bfloat16" else torch.float32


def load_policy(
    config: ModelConfig, prompt: PromptConfig | None = None, *, seed: int = 0, dtype: torch.dtype | None = None
) -> LoadedPolicy:
    """Load or build the model of a recipe, its weights in `dtype` (default: what it computes in).

    Raises `ModelError` for a folder without weights, an unknown hub id, or a family that is not supported.
    """
    dtype = dtype or compute_dtype(config)
    with loading(config):
        if config.init == "scratch":
            model, processor = build_scratch(config.scratch, seed)
            model.to(dtype)
        else:
            model, processor = _load_pretrained(config, dtype)
        loaded = make_policy(model, processor, config, prompt)
    if model.config.model_type not in FAMILIES:
        check_forward(loaded.policy, loaded.family)
    return loaded


def make_policy(model: Any, processor: Any, config: ModelConfig, prompt: PromptConfig | None = None) -> LoadedPolicy:
    """A model as a policy: attention over packed rows, gradient checkpointing where the recipe asks for it."""
    chosen = family_class(model, processor)
    model.set_attn_implementation({"text_config": shared_prefix.NAMES[config.attention]})
    if chosen.chunked_vision:
        model.config.vision_config._attn_implementation = vision_attention.NAME
        vision_attention.patches_as_matmul(model.model.visual)
    speed_up(model)
    if config.gradient_checkpointing is True:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    prompt = prompt or PromptConfig()
    family = chosen(model, processor, prompt, config.min_pixels, config.max_pixels)
    suppressed = torch.tensor(family.banned_token_ids())
    if config.compile:
        for block in (*blocks_of(family, "vision"), *blocks_of(family, "language")):
            block.compile(dynamic=True)
    policy = Policy(
        model,
        suppressed,
        mrope=family.mrope,
        compute_dtype=compute_dtype(config),
        logprob_kernel=config.logprob_kernel,
    )
    return LoadedPolicy(policy=policy, family=family, processor=processor)


def read_pretrained(config: ModelConfig) -> tuple[str, Any, Any]:
    """What a folder or hub id holds beside its weights: where the model lies (an adapter's base), its configuration,
    and the processor.

    Raises `ModelError` where there is no model, or one that is not supported.
    """
    path = resolve_path(config.path)
    # A hub id has at most one slash: "runs/mine/final" can only be a folder that is not there.
    looks_local = Path(path).exists() or path.startswith((".", "/", "~")) or path.count("/") > 1
    if looks_local and not any(Path(path, name).is_file() for name in MODEL_FILES):
        raise _not_a_model(path)
    with loading(config):
        if not looks_local:
            _reach_hub(path)
        adapted = base_of_adapter(path)
        base = adapted or path
        model_config = AutoConfig.from_pretrained(base, trust_remote_code=config.trust_remote_code)
        check_kind(model_config, base, trust_remote_code=config.trust_remote_code)
        own = adapted is None or Path(path, "processor_config.json").is_file()  # other trainers' adapters have none
        return base, model_config, load_processor(path if own else base, trust_remote_code=config.trust_remote_code)


def load_without_weights(config: ModelConfig, prompt: PromptConfig | None = None) -> LoadedPolicy:
    """A policy whose parameters take no memory: it encodes prompts for others to answer. Raises as `load_policy`."""
    base, model_config, processor = read_pretrained(config)
    with loading(config):
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(model_config, trust_remote_code=config.trust_remote_code)
        with suppress(OSError):  # a folder need not have one
            model.generation_config = GenerationConfig.from_pretrained(base)
        return make_policy(model, processor, config, prompt)


@contextmanager
def loading(config: ModelConfig) -> Iterator[None]:
    """Turns what is raised while a model is made of a folder, which may hold anything, into a `ModelError`."""
    try:
        yield
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        what = "model.scratch: no model can be made of it"
        if config.init == "pretrained":
            what = f'model.path: "{resolve_path(config.path)}" cannot be loaded'
        reason = str(error) if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: {error}"
        if "trust_remote_code" in reason:
            reason = "it needs code of its own, which is not run; set model.trust_remote_code: true if you have read it"
        elif "ignore_mismatched_sizes" in reason:
            reason = "its weights have other shapes than its config.json says; take both from the same model"
        raise ModelError(f"{what}: {shown(reason, 240)[1:-1]}") from error


def _not_a_model(path: str) -> ModelError:
    if not Path(path).exists():
        return ModelError(f'model.path: "{path}" does not exist; relative paths start from the working folder')
    inside = f'; did you mean "{Path(path, "final")}"?' if Path(path, "final").is_dir() else ""
    return ModelError(f'model.path: "{path}" is not a model folder (it has no config.json){inside}')


def _reach_hub(path: str) -> None:
    """Raise `ModelError` where a hub id is not in the cache and the hub does not answer: transformers would try for a
    minute."""
    if any(isinstance(try_to_load_from_cache(path, name), str) for name in MODEL_FILES):
        return
    why = "HF_HUB_OFFLINE is set"
    if not constants.HF_HUB_OFFLINE:
        try:
            httpx.head(constants.ENDPOINT, timeout=HUB_TIMEOUT_S)
            return
        except httpx.HTTPError as error:
            why = f"{constants.ENDPOINT}: {str(error) or type(error).__name__}"
    raise ModelError(
        f'model.path: "{path}" is not a folder here, and the hub cannot be reached ({why}); correct the path, or '
        f"download it where there is a network (hf download {path} --local-dir FOLDER) and set model.path: FOLDER"
    )


def read_weights(config: ModelConfig, base: str, *, dtype: torch.dtype, **options: Any) -> Any:
    """The transformers model of a folder or hub id. Raises `ModelError` where it cannot be loaded, or not whole."""
    with loading(config):
        _check_index(base)
        model, info = AutoModelForImageTextToText.from_pretrained(
            base,
            dtype=dtype,
            trust_remote_code=config.trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
    if missing := sorted(info["missing_keys"]):  # transformers fills them with random numbers
        raise ModelError(
            f'model.path: "{base}" has no weights for {len(missing)} parameters ({missing[0]}, ...); '
            "its config.json and its weights belong to different models, or a file is missing"
        )
    return model


def _check_index(base: str) -> None:
    """Raise `ModelError` where the index of weights in several files names one outside the folder, or a pickle."""
    file = cached_file(base, SAFE_WEIGHTS_INDEX_NAME, _raise_exceptions_for_missing_entries=False)
    if file is None:
        return
    content = json.loads(Path(file).read_bytes())
    names = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(names, dict) or not names:
        raise ModelError(f"model.path: {file}: has no weight_map of parameters and files; download it again")
    for name in names.values():
        path = Path(str(name))
        if path.is_absolute() or ".." in path.parts or path.suffix != ".safetensors":
            raise ModelError(f"model.path: {file}: names {shown(name)}, which is no .safetensors file of the folder")


def _load_pretrained(config: ModelConfig, dtype: torch.dtype) -> tuple[Any, Any]:
    path = resolve_path(config.path)
    base, model_config, processor = read_pretrained(config)
    bits = quantization(config, model_config, processor, dtype)
    model = read_weights(config, base, dtype=dtype, quantization_config=bits)
    keep_trainable(model)
    if base != path:
        load_adapter(model, path)
    return model, processor
