"""LLaVA-OneVision with a Qwen2 language model."""

from pathlib import Path

from zoo import Entry, build

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}{% for part in message.content %}"
    "{% if part.type == 'image' %} <image>{% endif %}{% endfor %}\n{% for part in message.content %}"
    "{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GRID = [[height, width] for height in (16, 32, 48) for width in (16, 32, 48)]


def save_onevision(folder: Path) -> None:
    """Tiles of 16 pixels with 16 tokens each; up to 3 x 3 tiles and the whole image."""
    tokens = build.tokenizer(["<|im_start|>", "<image>", "<video>"], "<|im_end|>")
    config = {
        "model_type": "llava_onevision",
        "vision_config": {"model_type": "siglip_vision_model", "vision_use_head": False, **build.SIGLIP},
        "text_config": {"model_type": "qwen2", **build.TEXT},
        "image_token_index": tokens.convert_tokens_to_ids("<image>"),
        "video_token_index": tokens.convert_tokens_to_ids("<video>"),
        "image_grid_pinpoints": GRID,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "vision_aspect_ratio": "anyres_max_9",
        "tie_word_embeddings": False,
    }
    images = {
        "image_processor_type": "LlavaOnevisionImageProcessor",
        "processor_class": "LlavaOnevisionProcessor",
        "image_grid_pinpoints": GRID,
        "size": {"height": 16, "width": 16},
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    processor = {"processor_class": "LlavaOnevisionProcessor", "num_image_tokens": 16, "image_token": "<image>"}
    processor |= {"video_token": "<video>", "vision_feature_select_strategy": "full"}
    build.save(
        folder, config, tokens, {"preprocessor_config.json": images, "processor_config.json": processor}, TEMPLATE
    )


ENTRIES = {"llava_onevision": Entry(build=save_onevision)}
