"""LLaVA-NeXT with a Mistral language model, as in its 7B."""

from pathlib import Path

from zoo import Entry, build

TEMPLATE = (
    "{% for message in messages %}[INST] {% for part in message.content %}"
    "{% if part.type == 'image' %}<image>\n{% else %}{{ part.text }} {% endif %}{% endfor %}[/INST]{% endfor %}"
)
GRID = [[16, 32], [32, 16], [32, 32], [48, 16], [16, 48]]


def save_next(folder: Path) -> None:
    """Tiles of 16 pixels with 16 tokens each."""
    tokens = build.tokenizer(["<image>", "[INST]", "[/INST]"], "</s>")
    config = {
        "model_type": "llava_next",
        "vision_config": {"model_type": "clip_vision_model", **build.SIGLIP},
        "text_config": {"model_type": "mistral", **build.TEXT},
        "image_token_index": tokens.convert_tokens_to_ids("<image>"),
        "image_grid_pinpoints": GRID,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": False,
    }
    images = {
        "image_processor_type": "LlavaNextImageProcessor",
        "processor_class": "LlavaNextProcessor",
        "image_grid_pinpoints": GRID,
        "size": {"shortest_edge": 16},
        "crop_size": {"height": 16, "width": 16},
    }
    processor = {"processor_class": "LlavaNextProcessor", "patch_size": 4, "image_token": "<image>"}
    processor |= {"vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    files = {"preprocessor_config.json": images, "processor_config.json": processor}
    build.save(folder, config, tokens, files, TEMPLATE)


ENTRIES = {"llava_next": Entry(build=save_next)}
