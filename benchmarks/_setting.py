"""What is measured: a model with random weights, images, questions, and the numbers of a step.

Both sides read the same folder: `model-NAME/` (plain Hugging Face layout), and `images-N/` and `data-N.jsonl` for
images of N tokens.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

PATCH = 14
MERGE = 2
TINY: dict[str, Any] = {
    "model_type": "qwen2_5_vl",
    "vocab_size": 500,
    "max_pixels": 1 << 20,
    "text_config": {
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [6, 5, 5]},
    },
    "vision_config": {
        "depth": 4,
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_heads": 4,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "out_hidden_size": 128,
        "window_size": 112,
        "fullatt_block_indexes": [3],
    },
}
"""The tiny model: 4 + 4 layers of width 128."""

QWEN_3B: dict[str, Any] = {
    "model_type": "qwen2_5_vl",
    "vocab_size": 500,
    "max_pixels": 1 << 20,
    "tie_word_embeddings": True,
    "text_config": {
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128_000,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0, "mrope_section": [16, 24, 24]},
    },
    "vision_config": {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "out_hidden_size": 2048,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
    },
}
"""Qwen2.5-VL-3B as its published configuration states it; `VOCABULARY` has the width of its embedding."""
VOCABULARY = {"tiny": TINY["vocab_size"], "3b": 151_936, "7b": 152_064, "32b": 152_064}


def _qwen(text: dict[str, int], vision: dict[str, int]) -> dict[str, Any]:
    """What a larger Qwen2.5-VL has other than 3B; its head is not its embedding."""
    parts = {"text_config": QWEN_3B["text_config"] | text, "vision_config": QWEN_3B["vision_config"] | vision}
    return QWEN_3B | parts | {"tie_word_embeddings": False}


QWEN_7B = _qwen(
    {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
    },
    {"out_hidden_size": 3584},
)
QWEN_32B = _qwen(
    {
        "hidden_size": 5120,
        "intermediate_size": 27648,
        "num_hidden_layers": 64,
        "num_attention_heads": 40,
        "num_key_value_heads": 8,
    },
    {"out_hidden_size": 5120, "intermediate_size": 3456},
)
MODELS = {"tiny": TINY, "3b": QWEN_3B, "7b": QWEN_7B, "32b": QWEN_32B}


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """The work of one step: `prompts` images with one question each, `group` answers of `answer_tokens` tokens.

    `precision` is what both sides compute in, over float32 weights. `vision` (tower and connector) is "full", "frozen"
    or "lora", `language` "full" or "lora".
    """

    folder: str
    model: str = "tiny"
    precision: str = "float32"
    prompts: int = 4
    group: int = 8
    image_tokens: int = 256
    answer_tokens: int = 64
    lr: float = 1e-6
    warmup: int = 2
    repetitions: int = 5
    seed: int = 0
    threads: int | None = None
    vision: str = "full"
    language: str = "full"

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the images in pixels: exactly `image_tokens`, as near to a square as can be."""
        rows = max(n for n in range(1, int(self.image_tokens**0.5) + 1) if self.image_tokens % n == 0)
        return self.image_tokens // rows * PATCH * MERGE, rows * PATCH * MERGE

    @property
    def steps(self) -> int:
        """Steps that are run: the warm-up ones and the one after the last measured one are not counted."""
        return self.warmup + self.repetitions + 1

    @property
    def model_path(self) -> Path:
        """The model folder."""
        return Path(self.folder, f"model-{self.model}")

    @property
    def data_path(self) -> Path:
        """The questions, one JSON object a line."""
        return Path(self.folder, f"data-{self.image_tokens}.jsonl")

    def changed(self, **values: Any) -> Setting:
        """This setting with other values."""
        return replace(self, **values)

    def write(self, path: Path, **more: Any) -> None:
        """Write it for a process to read, with other keys beside."""
        path.write_text(json.dumps({"setting": asdict(self), **more}), encoding="utf-8")


def read_job(path: str | Path) -> tuple[Setting, dict[str, Any]]:
    """What `Setting.write` wrote."""
    job = json.loads(Path(path).read_text(encoding="utf-8"))
    return Setting(**job.pop("setting")), job


def prepare(setting: Setting) -> None:
    """Write what is not there yet: model, and a fresh image for every prompt of every step."""
    if not setting.model_path.is_dir():
        _write_model(setting)
    count = setting.prompts * (setting.steps + 2)
    images = Path(setting.folder, f"images-{setting.image_tokens}")
    images.mkdir(exist_ok=True)
    rows = []
    for number in range(count):
        file = images / f"{number:04d}.png"
        if not file.is_file():
            _draw(setting.size, number, file)
        # Questions of one length: a repetition is then the same work as the next one.
        question = f"Find number {number:04d}."
        rows.append({"image": str(file), "problem": question, "solution": "[1, 2, 3, 4]"})
    setting.data_path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _draw(size: tuple[int, int], seed: int, file: Path) -> None:
    import numpy as np
    from PIL import Image, ImageDraw

    random = np.random.default_rng(seed)
    image = Image.new("RGB", size, tuple(random.integers(0, 256, 3).tolist()))
    pen = ImageDraw.Draw(image)
    for _ in range(12):
        x, y, width, height = (random.random(4) * (size * 2) * 0.5).tolist()
        pen.rectangle((x, y, x + width, y + height), fill=tuple(random.integers(0, 256, 3).tolist()))
    image.save(file)


def _write_model(setting: Setting) -> None:
    import torch

    from vlm_r1.models.scratch import build_scratch

    torch.set_num_threads(setting.threads or torch.get_num_threads())
    if setting.model == "tiny":
        model, processor = build_scratch(MODELS["tiny"], setting.seed)
    else:
        model, processor = _build_large(setting)
    model.to(getattr(torch, setting.precision))
    aside = setting.model_path.with_suffix(
        ".tmp"
    )  # a process that is stopped while it writes leaves no half of a model
    model.save_pretrained(aside)
    processor.save_pretrained(aside)
    aside.rename(setting.model_path)


def _build_large(setting: Setting) -> tuple[Any, Any]:
    """A model of published size with random bfloat16 weights, and its processor."""
    import torch
    from transformers import AutoModelForImageTextToText

    config, processor = published(setting.model, setting.seed)
    torch.manual_seed(setting.seed)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    model.cpu()
    if torch.cuda.is_available():  # what comes after is measured without this
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return model, processor


def published(model: str, seed: int = 0) -> tuple[Any, Any]:
    """The configuration of a model of published size, and the scratch models' processor.

    The tokenizer is the small one filled up with made-up words, so that every id of the wide vocabulary decodes.
    """
    from transformers import AutoConfig

    from vlm_r1.models.scratch import build_scratch

    values = MODELS[model]
    small = {**values, "text_config": TINY["text_config"], "vision_config": TINY["vision_config"]}
    tiny, processor = build_scratch(small, seed)
    known = len(processor.tokenizer)
    processor.tokenizer.add_tokens([f"<word{number}>" for number in range(known, VOCABULARY[model])])
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    text = {"vocab_size": VOCABULARY[model], "pad_token_id": processor.tokenizer.pad_token_id}
    config = AutoConfig.for_model(
        values["model_type"],
        text_config=values["text_config"] | text,
        vision_config=values["vision_config"],
        tie_word_embeddings=values["tie_word_embeddings"],
        **{name: getattr(tiny.config, name) for name in names},
    )
    config.eos_token_id = config.text_config.eos_token_id = processor.tokenizer.eos_token_id
    return config, processor
