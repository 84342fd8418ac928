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
from torch import nn
from transformers.utils import cached_file, find_adapter_config_file

from vlm_r1.config import LoraConfig, TrainConfig
from vlm_r1.errors import ConfigError, ModelError, nearest, shown
from vlm_r1.models.family import Family, Part

WEIGHTS = "adapter_model.safetensors"
"""The file of an adapter's weights."""
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
    except (ValueError, KeyError, TypeError, RecursionError):
        base = None
    if not isinstance(base, str):
        raise ModelError(f"{file}: is not an adapter configuration of peft that names its base_model_name_or_path")
    if base.startswith(("/", ".", "~")) and not Path(base, "config.json").is_file():
        raise ModelError(f'{file}: the base model "{base}" is not there; write its folder into base_model_name_or_path')
    return base


def load_adapter(model: Any, path: str, name: str = NAME) -> None:
    """Put the adapter of a folder or hub id into its base model and switch it on. Raises `ModelError`."""
    import peft

    refuse_pickle(path)
    try:
        config, weights = peft.PeftConfig.from_pretrained(path), peft.load_peft_weights(path, device="cpu")
        config.lora_dropout = 0.0  # how a run trains, not what an adapter is
        _inject(model, config, name)
        found = peft.set_peft_model_state_dict(model, weights, name)
    except Exception as error:  # its files may hold anything
        reason = shown(f"{type(error).__name__}: {error}", 240)[1:-1]
        raise ModelError(f'model.path: the adapter "{path}" cannot be loaded: {reason}') from error
    wrong = [*found.unexpected_keys, *(key for key in found.missing_keys if f".{name}." in key)]
    if wrong:
        raise ModelError(
            f'model.path: the weights of the adapter "{path}" are not those that its adapter_config.json describes '
            f"({wrong[0]}, ...); a file is damaged, or the base model is another one"
        )


def refuse_pickle(path: str) -> None:
    """Raise `ModelError` for the folder or hub id of an adapter whose weights are not in safetensors."""
    if cached_file(path, WEIGHTS, _raise_exceptions_for_missing_entries=False) is None:
        raise ModelError(
            f'model.path: the adapter "{path}" cannot be loaded: it has no {WEIGHTS} (weights in adapter_model.bin can '
            "run code and are not read); save it again with peft where you trust it"
        )


def _inject(model: Any, config: Any, name: str) -> None:
    from peft.tuners.tuners_utils import cast_adapter_dtype

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")
        model.add_adapter(config, name)
    cast_adapter_dtype(model, name)  # float32 beside a base in bfloat16


def linear_layers(family: Family, parts: Sequence[Part]) -> list[str]:
    """Names of the linear layers of these parts, the output head excepted.

    Experts that are one tensor with three axes are no linear layers.
    """
    parameters = family.parameters()
    owned = {id(parameter) for part in parts for parameter in parameters[part].values()}
    head = family.model.get_output_embeddings()
    found, wrapper = [], ""
    for name, module in family.model.named_modules():
        if wrapper and name.startswith(wrapper):
            continue
        layer = getattr(module, "base_layer", module)  # peft's wrapper holds the layer that was there
        wrapper = f"{name}." if layer is not module else ""
        if isinstance(layer, nn.Linear) and layer is not head and id(layer.weight) in owned:
            found.append(name)
    return found


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
        _inject(model, config, NAME)
    config.target_modules = sorted(config.target_modules or ())  # peft makes a set of it, whose order is not fixed
    base = str(config.base_model_name_or_path)
    config.base_model_name_or_path = str(Path(base).resolve()) if Path(base).exists() else base


def _targets(family: Family, parts: Sequence[Part], lora: LoraConfig) -> list[str]:
    """Names of the layers to adapt. Raises `ConfigError` for a part or a name in `lora.layers` without any."""
    layers = {part: linear_layers(family, [part]) for part in parts}
    kinds = {name.rpartition(".")[2] for names in layers.values() for name in names}
    for wanted in lora.layers or ():
        if wanted not in kinds:
            raise ConfigError(
                f'lora.layers: no linear layer of {", ".join(parts)} is called "{wanted}"; {nearest(wanted, kinds)}'
            )
    if lora.layers is not None:
        chosen = set(lora.layers)
        layers = {part: [n for n in names if n.rpartition(".")[2] in chosen] for part, names in layers.items()}
    taken = _taken_for_experts(family.model, [name for names in layers.values() for name in names])
    layers = {part: [name for name in names if name not in taken] for part, names in layers.items()}
    for part, names in layers.items():
        if not names:
            raise ConfigError(f"train.{part}: lora, but no linear layer there would get an adapter; use frozen")
    return [name for names in layers.values() for name in names]


def _taken_for_experts(model: Any, names: Sequence[str]) -> set[str]:
    """Layers whose names peft reads as those of the experts of a mixture; it cannot adapt the layers themselves."""
    import peft
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    trial = peft.LoraConfig(target_modules=list(names))
    try:
        convert_peft_config_for_transformers(trial, model, None)
    except ValueError as error:  # some of the names that belong together are missing
        raise ConfigError(f"lora.layers: {error}") from None
    return set(names) - set(trial.target_modules or ())


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
    """Within, the model answers with this adapter, or with none; afterwards the trained one is back.

    peft's own switches also say which adapter is trained, which sharding looks at in its first forward pass.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers: list[Any] = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    before = [(layer._disable_adapters, layer._active_adapter) for layer in layers]
    for layer in layers:
        layer._disable_adapters = name is None
        layer._active_adapter = layer._active_adapter if name is None else [name]
    try:
        yield
    finally:
        for layer, (off, active) in zip(layers, before, strict=True):
            layer._disable_adapters, layer._active_adapter = off, active


def trained_parameters(family: Family, train: TrainConfig) -> str:
    """One line: how many parameters of each part are trained, of how many in all."""
    told = []
    for part, parameters in family.parameters().items():
        count = sum(p.numel() for p in parameters.values() if p.requires_grad)
        told.append(f"{part} {count:,} ({train.how()[part]})" if count else f"{part} none")
    return f"trained parameters: {', '.join(told)}, of {family.model.num_parameters():,} in all"
