"""A small Qwen3-VL or Qwen2.5-VL built from a configuration, with a tokenizer and a processor of its own.

The result has the published checkpoints' folder layout, so everything that loads those loads it.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedTokenizerFast

from vlm_r1.config import ScenesSource
from vlm_r1.data.scenes import load_scenes
from vlm_r1.errors import ConfigError
from vlm_r1.models.processor import VIDEO_PROCESSORS, has_torchvision, without_video

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FAMILIES = {
    "qwen3_vl": ("Qwen3VLProcessor", "Qwen2VLImageProcessor"),
    "qwen2_5_vl": ("Qwen2_5_VLProcessor", "Qwen2VLImageProcessor"),
}


def build_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on scene texts: any text encodes, each digit is a token, the R1 tags are one each."""
    kinds = {"attribute": 3.0, "relation": 1.0, "superlative": 1.0, "list": 1.0, "detect": 1.0, "count": 1.0}
    samples = load_scenes(ScenesSource(split="base", n=600, per_image=4, questions=kinds))
    texts = [f"{s.question} {s.think}" for s in samples]
    texts += ["user\nassistant\nsystem\n"] * 50 + [
        '[{"bbox_2d": [1, 2, 3, 4], "label": "red circle"}, {"bbox_2d": ['
    ] * 50
    texts += ["None", '"}, {"bbox_2d": [', '"}]', "the object that differs from all the others"] * 20
    texts += ["the object whose color appears only once"] * 20
    tokenizer = Tokenizer(models.BPE(byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # type: ignore[assignment]
        [
            pre_tokenizers.Split(Regex(r"bbox_2d|\p{N}| ?\p{L}+|[^\p{L}\p{N}]+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(TAGS),
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=[t for t in SPECIAL_TOKENS if t not in ("<|im_end|>", "<|endoftext|>")],
        clean_up_tokenization_spaces=False,
    )
    fast.add_tokens(list(TAGS))
    fast.chat_template = CHAT_TEMPLATE
    return fast


def build_processor(model_type: str, tokenizer: Any, *, patch_size: int, merge_size: int, max_pixels: int) -> Any:
    """The family's own processor class around a tokenizer, with an image processor for these patch sizes."""
    processor_class = getattr(transformers, FAMILIES[model_type][0])
    unit = (patch_size * merge_size) ** 2
    image_processor = getattr(transformers, FAMILIES[model_type][1])(
        patch_size=patch_size, merge_size=merge_size, size={"shortest_edge": unit, "longest_edge": max_pixels}
    )
    parts = {"image_processor": image_processor, "tokenizer": tokenizer, "chat_template": CHAT_TEMPLATE}
    if has_torchvision():
        video = VIDEO_PROCESSORS[FAMILIES[model_type][0]]
        sizes = {"patch_size": patch_size, "merge_size": merge_size}
        return processor_class(video_processor=getattr(transformers, video)(**sizes), **parts)
    return without_video(processor_class)(**parts)


def build_scratch(settings: dict[str, Any] | None, seed: int) -> tuple[Any, Any]:
    """Model and processor for `model.init: scratch`.

    `settings` holds `model_type`, `vocab_size`, `max_pixels`, and `text_config` and `vision_config` as the transformers
    configuration names them. Weights are float32 and depend on `seed` alone. Raises `ConfigError` for other keys.
    """
    settings = dict(settings or {})
    model_type = settings.pop("model_type", None)
    if model_type not in FAMILIES:
        raise ConfigError(f"model.scratch.model_type: {model_type!r} is not one of {', '.join(FAMILIES)}")
    vocab_size, max_pixels = settings.pop("vocab_size", 640), settings.pop("max_pixels", 1 << 20)
    text, vision = dict(settings.pop("text_config", {})), dict(settings.pop("vision_config", {}))
    tie = settings.pop("tie_word_embeddings", False)
    if settings:
        raise ConfigError(f"model.scratch: unknown key {', '.join(sorted(settings))}")
    tokenizer = build_tokenizer(vocab_size)
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{token}|>") for name, token in _TOKEN_NAMES.items()}
    text |= {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    config = AutoConfig.for_model(model_type, text_config=text, vision_config=vision, tie_word_embeddings=tie, **ids)
    config.eos_token_id = config.text_config.eos_token_id = tokenizer.eos_token_id
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    patch, merge = config.vision_config.patch_size, config.vision_config.spatial_merge_size
    return model, build_processor(model_type, tokenizer, patch_size=patch, merge_size=merge, max_pixels=max_pixels)


_TOKEN_NAMES = {
    "image_token_id": "image_pad",
    "video_token_id": "video_pad",
    "vision_start_token_id": "vision_start",
    "vision_end_token_id": "vision_end",
}
