"""LoRA adapters (peft): which layers get one, a fresh one or one from a folder, and how training goes on with it.

The adapter lives inside the transformers model (`model.add_adapter`), whose class and forward stay as they are. Its
weights are float32; those of the base are frozen. peft is imported where it is used: it takes a second.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers.utils import find_adapter_config_file

from vlm_r1.config import LoraConfig, TrainConfig
from vlm_r1.errors import ConfigError, ModelError, nearest
from vlm_r1.models.family import Family, Part

NAME = "default"
"""peft's name of the adapter that is trained and saved."""
REFERENCE = "reference"
"""The adapter that a run started from, kept for the KL term."""
VARIANTS: dict[str, dict[str, bool]] = {"lora": {}, "rslora": {"use_rslora": True}, "dora": {"use_dora": True}}
"""`lora.variant` -> peft's switches: rank-stabilised (Kalajdzievski 2023), weight-decomposed (Liu et al. 2024)."""


def base_of_adapter(path: str) -> str | None:
    """The base model that an adapter folder or hub id names; None where there is a whole model or nothing.

    Raises `ModelError` for an adapter whose base is not there.
    """
    if Path(path, "config.json").is_file():
        return None
    file = find_adapter_config_file(path)
    if file is None:
        return None
    try:
        base = json.loads(Path(file).read_bytes())["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError):
        base = None
    if not isinstance(base, str):
        raise ModelError(f"{file}: is no adapter configuration of peft that names its base_model_name_or_path")
    if base.startswith(("/", ".", "~")) and not Path(base, "config.json").is_file():
        raise ModelError(f'{file}: the base model "{base}" is not there; write its folder into base_model_name_or_path')
    return base


def load_adapter(model: Any, path: str) -> None:
    """Put the adapter of a folder or hub id into its base model, frozen. Raises `ModelError`."""
    try:
        found = model.load_adapter(path, adapter_name=NAME, is_trainable=False)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f'model.path: the adapter "{path}" cannot be loaded: {reason}') from error
    _check_keys(path, sorted(found.missing_keys) or sorted(found.unexpected_keys))


def add_reference(model: Any, path: str) -> None:
    """Put the adapter of a folder or hub id beside the trained one, frozen. Raises `ModelError`."""
    import peft

    weights = peft.load_peft_weights(path, device="cpu")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")
        peft.inject_adapter_in_model(peft.PeftConfig.from_pretrained(path), model, REFERENCE)
    inner = {name.removeprefix("base_model.model."): weight for name, weight in weights.items()}
    found = peft.set_peft_model_state_dict(model, inner, REFERENCE)
    _check_keys(path, [*found.unexpected_keys, *(key for key in found.missing_keys if f".{REFERENCE}." in key)])
    model.set_adapter(NAME)


def _check_keys(path: str, wrong: Sequence[str]) -> None:
    if wrong:
        raise ModelError(
            f'model.path: the weights of the adapter "{path}" are not those that its adapter_config.json describes '
            f"({wrong[0]}, ...); a file is damaged, or the base model is another one"
        )


def linear_layers(family: Family, parts: Sequence[Part]) -> list[str]:
    """Names of the linear layers of these parts, the output head excepted.

    Experts that are one tensor with three axes are no linear layers; they get no adapter.
    """
    found = family.parameters()
    owned = {id(parameter) for part in parts for parameter in found[part].values()}
    head = family.model.get_output_embeddings()
    return [
        name.removesuffix(".base_layer")
        for name, module in family.model.named_modules()
        if isinstance(module, nn.Linear) and module is not head and id(module.weight) in owned
    ]


def adapt(family: Family, train: TrainConfig, lora: LoraConfig | None, seed: int) -> None:
    """Give the parts that `train` puts at lora an adapter to train, or go on with the one the model came with.

    Raises `ConfigError` where the recipe and an adapter that is there contradict each other, and where there is nothing
    that quantised weights could learn with.
    """
    parts = [part for part, how in train.how().items() if how == "lora"]
    model = family.model
    present = getattr(model, "peft_config", {}).get(NAME)
    if not parts:
        if present is not None:
            raise ConfigError(
                "model.path: is an adapter; to train it further set train.language to lora, to train full weights "
                "merge it first: vlm-r1 export ADAPTER --merge --out FOLDER"
            )
        if getattr(model, "is_quantized", False):
            raise ConfigError("model.quantize: quantised weights are not trained; set train.language to lora")
        return
    if present is None:
        _add(family, parts, lora or LoraConfig(), seed)
    else:
        _check(family, parts, lora, present)
    from peft.tuners.lora import LoraLayer

    dropout = lora.dropout if lora else 0.0
    for layer in (module for module in model.modules() if isinstance(module, LoraLayer)):
        layer.lora_dropout[NAME] = nn.Dropout(dropout) if dropout else nn.Identity()
    model.peft_config[NAME].lora_dropout = dropout
    model.peft_config[NAME].inference_mode = False
    model.requires_grad_(False)
    model.set_adapter(NAME)


def _add(family: Family, parts: Sequence[Part], lora: LoraConfig, seed: int) -> None:
    import peft

    model = family.model
    config = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=_targets(family, parts, lora),
        **VARIANTS[lora.variant],  # type: ignore[arg-type]
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.add_adapter(config, NAME)
    config.target_modules = sorted(config.target_modules or ())  # peft makes a set of it, whose order is not fixed
    base = str(config.base_model_name_or_path)
    config.base_model_name_or_path = str(Path(base).resolve()) if Path(base).exists() else base


def _targets(family: Family, parts: Sequence[Part], lora: LoraConfig) -> list[str]:
    layers = linear_layers(family, parts)
    if lora.layers is None:
        return layers
    kinds = {name.rpartition(".")[2] for name in layers}
    for wanted in lora.layers:
        if wanted not in kinds:
            raise ConfigError(
                f'lora.layers: no linear layer of {", ".join(parts)} is called "{wanted}"; {nearest(wanted, kinds)}'
            )
    return [name for name in layers if name.rpartition(".")[2] in lora.layers]


def _check(family: Family, parts: Sequence[Part], lora: LoraConfig | None, present: Any) -> None:
    """Whether an adapter that is there is what the recipe wants."""
    import peft
    from peft.tuners.tuners_utils import BaseTunerLayer

    if not isinstance(present, peft.LoraConfig) or present.modules_to_save:
        what = "full copies of modules" if isinstance(present, peft.LoraConfig) else str(present.peft_type)
        raise ConfigError(f"model.path: is an adapter with {what}; only plain LoRA adapters are trained further")
    adapted = {name for name, module in family.model.named_modules() if isinstance(module, BaseTunerLayer)}
    for part in parts:
        if not adapted & set(linear_layers(family, [part])):
            raise ConfigError(f"train.{part}: lora, but the adapter of model.path has no layer there; use frozen")
    if outside := sorted(adapted - set(linear_layers(family, parts))):
        raise ConfigError(
            f"train: the adapter of model.path also adapts {outside[0]}, whose part is frozen; set that part to lora"
        )
    if lora is None:
        return
    variant = "dora" if present.use_dora else "rslora" if present.use_rslora else "lora"
    for key, has in (("rank", present.r), ("alpha", present.lora_alpha), ("variant", variant)):
        if getattr(lora, key) != has:
            raise ConfigError(
                f"lora.{key}: is {getattr(lora, key)}, but the adapter of model.path has {has}; "
                "write that, or leave the section out to take everything from the adapter"
            )
    if adapted != set(_targets(family, parts, lora)):
        raise ConfigError("lora.layers: the adapter of model.path adapts other layers; leave the section out")


@contextmanager
def switched(model: Any, name: str | None) -> Iterator[None]:
    """Within, the model answers with this adapter, or with none; afterwards the trained one is back."""
    if name is None:
        model.disable_adapters()
    else:
        model.set_adapter(name)
    try:
        yield
    finally:
        if name is None:
            model.enable_adapters()
        else:
            model.set_adapter(NAME)


def trained_parameters(family: Family, train: TrainConfig) -> str:
    """One line: how many parameters of each part are trained, of how many in all."""
    told = []
    for part, parameters in family.parameters().items():
        count = sum(p.numel() for p in parameters.values() if p.requires_grad)
        told.append(f"{part} {count:,} ({train.how()[part]})" if count else f"{part} none")
    return f"trained parameters: {', '.join(told)}, of {family.model.num_parameters():,} in all"
