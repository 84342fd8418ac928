"""Gemma 3, and PaliGemma with the text models of Gemma 1 and Gemma 2."""

import string
from functools import partial
from pathlib import Path

import torch
from transformers import (
    Gemma3ImageProcessor,
    Gemma3Processor,
    GemmaTokenizer,
    PaliGemmaProcessor,
    SiglipImageProcessor,
)

from zoo import Entry
from zoo.making import RANGE, make_model, write

GEMMA3_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<start_of_turn>{{ message.role }}\n"
    "{% for part in message.content %}{% if part.type == 'image' %}<start_of_image>"
    "{% else %}{{ part.text | trim }}{% endif %}{% endfor %}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
"""The published one, without system turns."""
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "initializer_range": RANGE,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 4,
    "vision_use_head": False,
}
WINDOW = 5
"""Tokens of a sliding window: less than an image, a prompt and the longest answers have."""


def build_tokenizer(**special: str) -> GemmaTokenizer:
    """Bytes, letters and a few pairs of them; `special` are further tokens by the names of their attributes."""
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>"]
    tokens += [f"<0x{i:02X}>" for i in range(256)] + ["▁", *string.ascii_letters, *string.digits, *"<>/?.,:;[](){}\"'"]
    merges = [("▁", "t"), ("▁t", "h"), ("▁th", "e"), ("e", "d"), ("r", "ed"), ("▁", "c")]
    tokens += ["".join(pair) for pair in merges]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = GemmaTokenizer(vocab=vocabulary, merges=merges, extra_special_tokens=special)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<start_of_turn>", "<end_of_turn>"]})
    return tokenizer


def build_gemma3(folder: Path) -> None:
    """Gemma 3; the published config.json has the pattern of layers and the rotary scaling in their old form."""
    names = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    tokenizer = build_tokenizer(**names)
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in names.items()}
    text = TEXT | {
        "vocab_size": len(tokenizer),
        "query_pre_attn_scalar": 24,
        "sliding_window": WINDOW,
        "sliding_window_pattern": 2,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    }
    model = make_model(
        "gemma3",
        text_config=text,
        vision_config=VISION | {"image_size": 32},
        mm_tokens_per_image=16,
        boi_token_index=ids["boi_token"],
        eoi_token_index=ids["eoi_token"],
        image_token_index=ids["image_token"],
    )
    with torch.no_grad():  # starts at zero: the tower would have no gradient
        model.model.multi_modal_projector.mm_input_projection_weight.normal_(
            std=RANGE, generator=torch.Generator().manual_seed(4)
        )
    processor = Gemma3Processor(
        image_processor=Gemma3ImageProcessor(size={"height": 32, "width": 32}),
        tokenizer=tokenizer,
        chat_template=GEMMA3_TEMPLATE,
        image_seq_length=16,
    )
    published = {"text_config": text | {"model_type": "gemma3_text"}}
    ends = [1, tokenizer.convert_tokens_to_ids("<end_of_turn>")]
    write(folder, model, processor, ends, lambda config: config | published)


def build_paligemma(folder: Path, text: dict) -> None:
    """PaliGemma over a text model; the processor adds the tokens of locations and segments."""
    tokenizer = build_tokenizer()
    processor = PaliGemmaProcessor(
        image_processor=SiglipImageProcessor(size={"height": 16, "width": 16}, image_seq_length=16),
        tokenizer=tokenizer,
    )
    model = make_model(
        "paligemma",
        text_config=TEXT | {"vocab_size": len(tokenizer)} | text,
        vision_config=VISION | {"model_type": "siglip_vision_model", "image_size": 16},
        projection_dim=32,
        hidden_size=32,
        image_token_index=processor.image_token_id,
    )
    write(folder, model, processor, [1])


GEMMA1 = {"model_type": "gemma", "num_key_value_heads": 1}
GEMMA2 = {
    "model_type": "gemma2",
    "query_pre_attn_scalar": 24,
    "sliding_window": WINDOW,
    "attn_logit_softcapping": 0.5,
    "final_logit_softcapping": 1.5,
}
"""The published caps are 50 and 30: these bound what such small weights give."""
ENTRIES = {
    "gemma3": Entry(build=build_gemma3),
    "paligemma": Entry(build=partial(build_paligemma, text=GEMMA1), without_image=False),
    "paligemma2": Entry(build=partial(build_paligemma, text=GEMMA2), attention="eager", without_image=False),
}
