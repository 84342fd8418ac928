"""InternVL in its transformers layout, with a Qwen2 language model as in InternVL3."""

from pathlib import Path

from zoo import Entry, build

NAMED = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
NAMED |= {"video_token": "<video>"}
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% for part in message.content %}"
    "{% if part.type == 'image' %}<IMG_CONTEXT>\n{% else %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def save_internvl(folder: Path) -> None:
    """Tiles of 16 pixels with 4 tokens each; up to 12 tiles and a thumbnail."""
    tokens = build.tokenizer(["<|im_start|>", *NAMED.values()], "<|im_end|>", NAMED)
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision |= {"image_size": [16, 16], "patch_size": [4, 4], "initializer_range": 0.1, "use_qk_norm": True}
    config = {
        "model_type": "internvl",
        "vision_config": vision,
        "text_config": {"model_type": "qwen2", **build.TEXT},
        "image_token_id": tokens.convert_tokens_to_ids("<IMG_CONTEXT>"),
        "image_seq_length": 4,
        "tie_word_embeddings": False,
    }
    images = {
        "image_processor_type": "GotOcr2ImageProcessorFast",
        "processor_class": "InternVLProcessor",
        "size": {"height": 16, "width": 16},
        "crop_to_patches": True,
        "min_patches": 1,
        "max_patches": 12,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    }
    processor = {"image_seq_length": 4, "processor_class": "InternVLProcessor"}
    build.save(
        folder, config, tokens, {"preprocessor_config.json": images, "processor_config.json": processor}, TEMPLATE
    )


ENTRIES = {"internvl": Entry(build=save_internvl)}
