"""SmolVLM2 and Idefics3, both with a Llama language model."""

from functools import partial
from pathlib import Path

from zoo import Entry, build

SPECIAL = ["<|im_start|>", "<fake_token_around_image>", "<image>", "<global-img>"]
SPECIAL += [f"<row_{row}_col_{column}>" for row in (1, 2, 3) for column in (1, 2, 3)]
TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message.role | capitalize }}"
    "{% if message.content[0].type == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for part in message.content %}{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def save_idefics(folder: Path, model_type: str, name: str) -> None:
    """Images of 48 pixels in tiles of 16 with 4 tokens each; `name` is that of the classes."""
    tokens = build.tokenizer(SPECIAL, "<end_of_utterance>")
    config = {
        "model_type": model_type,
        "vision_config": build.SIGLIP,
        "text_config": {"model_type": "llama", **build.TEXT},
        "image_token_id": tokens.convert_tokens_to_ids("<image>"),
        "scale_factor": 2,
        "tie_word_embeddings": False,
    }
    images = {
        "image_processor_type": f"{name}ImageProcessor",
        "processor_class": f"{name}Processor",
        "do_image_splitting": True,
        "size": {"longest_edge": 48},
        "max_image_size": {"longest_edge": 16},
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    if model_type == "smolvlm":
        images["video_sampling"] = {"fps": 1, "max_frames": 64, "video_size": {"longest_edge": 16}}
    processor = {"image_seq_len": 4, "processor_class": f"{name}Processor"}
    build.save(
        folder, config, tokens, {"preprocessor_config.json": images, "processor_config.json": processor}, TEMPLATE
    )


ENTRIES = {
    "smolvlm": Entry(build=partial(save_idefics, model_type="smolvlm", name="SmolVLM")),
    "idefics3": Entry(build=partial(save_idefics, model_type="idefics3", name="Idefics3")),
}
