"""Models without a family of their own: Aya Vision (tiles, every other layer sliding) and LLaVA 1.5."""

from pathlib import Path

from zoo import Entry, build

AYA_TOKENS = ["<|START_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<image>", "<|START_OF_IMG|>"]
AYA_TOKENS += ["<|END_OF_IMG|>", "<|IMG_PATCH|>", "<|IMG_LINE_BREAK|>", "TILE", "TILE_GLOBAL"]
AYA_TEMPLATE = (
    "{% for message in messages %}<|START_OF_TURN_TOKEN|><|USER_TOKEN|>{% for part in message.content %}"
    "{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}{% endfor %}<|END_OF_TURN_TOKEN|>"
    "{% endfor %}{% if add_generation_prompt %}<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{% endif %}"
)
LLAVA_TEMPLATE = (
    "{% for message in messages %}USER: {% for part in message.content %}"
    "{% if part.type == 'image' %}<image>\n{% else %}{{ part.text }} {% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
COLOURS = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}


def save_aya(folder: Path) -> None:
    """Tiles of 16 pixels with 4 tokens each; the second layer sees all, the first a window of 8."""
    tokens = build.tokenizer(AYA_TOKENS, "<|END_OF_TURN_TOKEN|>")
    text = {"model_type": "cohere2", "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
    config = {
        "model_type": "aya_vision",
        "vision_config": {"model_type": "siglip_vision_model", "vision_use_head": False, **build.SIGLIP},
        "text_config": text | build.TEXT,
        "image_token_index": tokens.convert_tokens_to_ids("<|IMG_PATCH|>"),
        "downsample_factor": 2,
        "tie_word_embeddings": True,
    }
    images = {
        "image_processor_type": "GotOcr2ImageProcessor",
        "processor_class": "AyaVisionProcessor",
        "size": {"height": 16, "width": 16},
        "crop_to_patches": True,
        "max_patches": 6,
        **COLOURS,
    }
    processor = {"processor_class": "AyaVisionProcessor", "patch_size": 4, "img_size": 16, "downsample_factor": 2}
    files = {"preprocessor_config.json": images, "processor_config.json": processor}
    build.save(folder, config, tokens, files, AYA_TEMPLATE)


def save_llava(folder: Path, **text) -> None:
    """Images are cropped to a square of 16 pixels with 16 tokens. `text` replaces the language model."""
    tokens = build.tokenizer(["<image>"], "</s>")
    config = {
        "model_type": "llava",
        "vision_config": {"model_type": "clip_vision_model", **build.SIGLIP},
        "text_config": text or {"model_type": "llama", **build.TEXT},
        "image_token_index": tokens.convert_tokens_to_ids("<image>"),
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": False,
    }
    images = {
        "image_processor_type": "CLIPImageProcessor",
        "processor_class": "LlavaProcessor",
        "size": {"shortest_edge": 16},
        "crop_size": {"height": 16, "width": 16},
        **COLOURS,
    }
    processor = {"processor_class": "LlavaProcessor", "patch_size": 4, "num_additional_image_tokens": 1}
    processor |= {"vision_feature_select_strategy": "default", "image_token": "<image>"}
    files = {"preprocessor_config.json": images, "processor_config.json": processor}
    build.save(folder, config, tokens, files, LLAVA_TEMPLATE)


ENTRIES = {"aya_vision": Entry(build=save_aya), "llava": Entry(build=save_llava)}
