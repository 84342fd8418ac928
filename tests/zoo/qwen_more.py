"""Qwen2-VL, the mixtures of experts of Qwen3-VL, and Qwen3.5."""

from functools import partial
from pathlib import Path

import torch

from vlm_r1.models.scratch import CHAT_TEMPLATE, build_tokenizer
from zoo import Entry
from zoo.making import RANGE, make_model, make_processor, write

TOKENS = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": RANGE,
}
VISION = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "patch_size": 8,
    "out_hidden_size": 32,
    "num_position_embeddings": 144,
    "initializer_range": RANGE,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
INTERLEAVED = ROPE | {"mrope_section": [4, 2, 2], "mrope_interleaved": True}
LINEAR, FULL = "linear_attention", "full_attention"
DELTA_NET = {
    "head_dim": 16,
    "rope_parameters": INTERLEAVED | {"mrope_section": [2, 1, 1], "partial_rotary_factor": 0.5},
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 12,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}


def build_qwen(
    folder: Path, model_type: str, processor: str, text: dict, vision: dict, *, adjust=None, tie=False, **published
) -> None:
    """Any Qwen: they share the tokenizer's special tokens, the chat template and the image processor.

    `adjust` may change the model's weights before it is written; `published` is handed to `write`.
    """
    tokenizer = build_tokenizer(400)
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in TOKENS.items()}
    text = {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": tokenizer.eos_token_id} | text
    model = make_model(model_type, text_config=text, vision_config=vision, tie_word_embeddings=tie, **ids)
    if adjust is not None:
        adjust(model)
    made = make_processor(
        processor,
        tokenizer,
        CHAT_TEMPLATE,
        "Qwen2VLVideoProcessor" if model_type == "qwen2_vl" else "Qwen3VLVideoProcessor",
        "Qwen2VLImageProcessor",
        patch_size=8,
        merge_size=2,
        size={"shortest_edge": 256, "longest_edge": 1 << 20},
    )
    write(folder, model, made, [tokenizer.eos_token_id, tokenizer.pad_token_id], **published)


def flat(config: dict) -> dict:
    """Qwen2-VL's config.json: the language model's keys at the top level, rotary positions named the old way."""
    text, vision = config.pop("text_config"), config.pop("vision_config")
    rope = text.pop("rope_parameters")
    text |= {
        "rope_theta": rope["rope_theta"],
        "rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]},
    }
    del text["layer_types"], vision["model_type"], vision["rope_parameters"]
    return text | config | {"vision_config": vision}


def transposed(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Qwen3-VL's experts are published as `(experts, in, out)`."""
    return {name: value.transpose(1, 2) if ".experts." in name else value for name, value in weights.items()}


def fused(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Qwen3.5's experts are published in one tensor a layer, `(experts, out, in)`, the gate above the up projection."""
    found = {name: value for name, value in weights.items() if ".experts." not in name}
    for layer in {name.split(".experts.")[0] for name in weights.keys() - found.keys()}:
        gate, up, down = (
            torch.stack([weights[f"{layer}.experts.{i}.{part}_proj.weight"] for i in range(EXPERTS["num_experts"])])
            for part in ("gate", "up", "down")
        )
        found |= {f"{layer}.experts.gate_up_proj": torch.cat([gate, up], 1), f"{layer}.experts.down_proj": down}
    return found


def slow(model) -> None:
    """Gated delta nets that remember the whole prompt: as they are initialised, most forget within a few tokens."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("A_log"):
                parameter.copy_(torch.linspace(0.005, 0.4, len(parameter)).log())


def qwen35(model_type: str, text: dict, **published) -> Entry:
    """Qwen3.5: recurrent layers before, between and after layers of full attention."""
    layers = {"num_hidden_layers": 5, "layer_types": [LINEAR, LINEAR, FULL, LINEAR, FULL]}
    build = partial(
        build_qwen,
        model_type=model_type,
        processor="Qwen3VLProcessor",
        text=TEXT | DELTA_NET | layers | text,
        vision=VISION,
        adjust=slow,
        **published,
    )
    return Entry(build=build)


ENTRIES = {
    "qwen3_5": qwen35("qwen3_5", {}),
    "qwen3_5_moe": qwen35("qwen3_5_moe", EXPERTS | {"shared_expert_intermediate_size": 24}, published_weights=fused),
    "qwen2_vl": Entry(
        build=partial(
            build_qwen,
            model_type="qwen2_vl",
            processor="Qwen2VLProcessor",
            text=TEXT | {"rope_parameters": ROPE | {"mrope_section": [2, 1, 1]}},
            vision={"depth": 2, "embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2, "num_heads": 2, "patch_size": 8}
            | {"initializer_range": RANGE},
            tie=True,
            published_config=flat,
        )
    ),
    "qwen3_vl_moe": Entry(
        build=partial(
            build_qwen,
            model_type="qwen3_vl_moe",
            processor="Qwen3VLProcessor",
            text=TEXT | EXPERTS | {"head_dim": 16, "rope_parameters": INTERLEAVED, "mlp_only_layers": [0]},
            vision=VISION | {"deepstack_visual_indexes": [0, 1]},
            published_weights=transposed,
        )
    ),
}
