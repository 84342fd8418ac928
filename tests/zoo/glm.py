"""GLM-4.1V, GLM-4.5V and GLM-4.6V."""

from functools import partial
from pathlib import Path

import torch

from vlm_r1.models.scratch import build_tokenizer
from zoo import Entry
from zoo.making import RANGE, make_model, make_processor, write

TOKENS = {
    "image_token_id": "<|image|>",
    "video_token_id": "<|video|>",
    "image_start_token_id": "<|begin_of_image|>",
    "image_end_token_id": "<|end_of_image|>",
    "video_start_token_id": "<|begin_of_video|>",
    "video_end_token_id": "<|end_of_video|>",
}
OTHERS = ["[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|begin_of_box|>", "<|end_of_box|>"]
CHAT_TEMPLATE = (
    "[gMASK]<sop>\n{% for message in messages %}<|{{ message.role }}|>\n"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<|begin_of_image|><|image|><|end_of_image|>"
    "{% elif part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "initializer_range": RANGE,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "mrope_section": [2, 1, 1],
        "partial_rotary_factor": 0.5,
    },
}
EXPERTS = {
    "head_dim": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 1.5,
}
VISION = {
    "depth": 2,
    "hidden_size": 32,
    "out_hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "patch_size": 8,
    "image_size": 64,
    "initializer_range": RANGE,
}


def older(config: dict) -> dict:
    """The config.json of GLM-4.1V and 4.5V, which name rotary positions the old way."""
    rope = config["text_config"].pop("rope_parameters")
    scaling = {"type": "default", "mrope_section": rope["mrope_section"]}
    config["text_config"] |= {"rope_scaling": scaling}
    config["text_config"] |= {name: rope[name] for name in ("rope_theta", "partial_rotary_factor")}
    del config["vision_config"]["rope_parameters"]
    return config


def build(folder: Path, model_type: str, processor: str, text: dict) -> None:
    """`processor` begins the names of the processor classes."""
    tokenizer = build_tokenizer(400)
    tokenizer.add_tokens([*TOKENS.values(), *OTHERS], special_tokens=True)
    tokenizer.eos_token = "<|endoftext|>"
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in TOKENS.items()}
    text = text | {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    model = make_model(model_type, text_config=text, vision_config=VISION, **ids)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):  # what training has moved to spread the tokens
                buffer += torch.tensor([0.1, -0.2, 0.05, 0.0])
    made = make_processor(
        f"{processor}Processor",
        tokenizer,
        CHAT_TEMPLATE,
        f"{processor}VideoProcessor",
        f"{processor}ImageProcessor",
        patch_size=8,
        merge_size=2,
        size={"shortest_edge": 512, "longest_edge": 1 << 20},
    )
    stops = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|user|>"])
    write(folder, model, made, stops, None if model_type == "glm46v" else older)


ENTRIES = {
    "glm4v": Entry(build=partial(build, model_type="glm4v", processor="Glm4v", text=TEXT)),
    "glm4v_moe": Entry(build=partial(build, model_type="glm4v_moe", processor="Glm4v", text=TEXT | EXPERTS)),
    "glm46v": Entry(build=partial(build, model_type="glm46v", processor="Glm46V", text=TEXT)),
}
