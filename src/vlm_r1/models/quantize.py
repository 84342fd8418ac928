"""Weights in 4 or 8 bits (bitsandbytes): the language model's linear layers; tower, connector and head stay whole."""

from __future__ import annotations

import copy
import importlib.util
import logging
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

from vlm_r1.config import ModelConfig, PromptConfig
from vlm_r1.errors import ConfigError
from vlm_r1.models.adapters import linear_layers
from vlm_r1.models.generic import family_class

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns about casts at every call of every layer


def quantization(
    config: ModelConfig, model_config: Any, processor: Any, dtype: torch.dtype
) -> BitsAndBytesConfig | None:
    """What transformers must be told to load a model as `model.quantize` says, to compute in `dtype`; None for "none".

    NF4 with double quantisation is QLoRA's (Dettmers et al. 2023). Raises `ConfigError` where bitsandbytes is not
    installed or does not support this machine.
    """
    if config.quantize == "none":
        return None
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError("model.quantize: needs bitsandbytes, which is not installed; run: pip install bitsandbytes")
    from transformers.integrations import validate_bnb_backend_availability

    try:
        validate_bnb_backend_availability(raise_exception=True)
    except (ImportError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"model.quantize: bitsandbytes cannot work on this machine: {reason}") from None
    with torch.device("meta"):  # layers without memory, to ask for their names
        skeleton = AutoModelForImageTextToText.from_config(
            copy.deepcopy(model_config), trust_remote_code=config.trust_remote_code
        )
    family = family_class(skeleton, processor)(skeleton, processor, PromptConfig(), None, None)
    chosen = set(linear_layers(family, ["language"]))
    linear = [name for name, module in skeleton.named_modules() if isinstance(module, nn.Linear)]
    return BitsAndBytesConfig(
        load_in_4bit=config.quantize == "nf4",
        load_in_8bit=config.quantize == "int8",
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=[name for name in linear if name not in chosen],
    )


def keep_trainable(model: nn.Module) -> None:
    """Stop bitsandbytes from packing 4-bit weights for inference, once and for all, at the first pass in eval mode.

    It does so on CPUs with AVX-512; such a layer computes in bfloat16 and passes no gradient back.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
