"""Processors with or without torchvision: the one place that knows why.

The Qwen-VL, InternVL and SmolVLM processors insist on a video processor, which needs torchvision, for which there is
no CPU build. Without torchvision the processor class that the checkpoint names is subclassed with its video part
left out; images and chat templates work as usual.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
from functools import cache
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoProcessor, ProcessorMixin
from transformers.utils import cached_file

from vlm_r1.errors import ModelError, shown


@cache
def has_torchvision() -> bool:
    """True where torchvision is installed (importing it is left to transformers)."""
    return importlib.util.find_spec("torchvision") is not None


@cache
def without_video(processor_class: type[ProcessorMixin]) -> type[ProcessorMixin]:
    """A subclass of a processor class that has no video processor; same name, so it saves as the original."""

    class Without(processor_class):  # type: ignore[misc,valid-type]
        apply_chat_template = ProcessorMixin.apply_chat_template  # SmolVLM's asks the video processor for its defaults

        @classmethod
        def get_attributes(cls) -> list[str]:
            return [a for a in processor_class.get_attributes() if a != "video_processor"]

        @classmethod
        def from_args_and_dict(cls, args: Any, processor_dict: dict[str, Any], **kwargs: Any) -> Any:
            return super().from_args_and_dict(args, processor_dict | {"video_processor": None}, **kwargs)

    Without.__name__ = Without.__qualname__ = processor_class.__name__
    if Without.__name__ == "SmolVLMProcessor":  # refuses to start without num2words, which only prompts on videos use
        module: Any = importlib.import_module(processor_class.__module__)
        module.num2words = module.num2words or str
    return Without


def load_processor(path: str | Path, *, trust_remote_code: bool = False) -> Any:
    """The processor of a folder or hub id. Raises `ModelError` when there is none."""
    try:
        if has_torchvision():
            return AutoProcessor.from_pretrained(path, trust_remote_code=trust_remote_code)
        name = _processor_class_name(str(path))
        processor_class = getattr(transformers, name or "", None)
        if processor_class is None or not hasattr(processor_class, "get_attributes"):
            return AutoProcessor.from_pretrained(path, trust_remote_code=trust_remote_code)
        if "video_processor" in processor_class.get_attributes():
            processor_class = without_video(processor_class)
        return processor_class.from_pretrained(path, trust_remote_code=trust_remote_code)
    except Exception as error:  # its files may hold anything
        if "trust_remote_code" in str(error):
            raise  # the caller says what to do
        reason = shown(f"{type(error).__name__}: {error}", 240)[1:-1]
        raise ModelError(f'model.path: no processor can be loaded from "{path}": {reason}') from error


VIDEO_PROCESSORS = {
    "Qwen3VLProcessor": "Qwen3VLVideoProcessor",
    "Qwen2_5_VLProcessor": "Qwen2VLVideoProcessor",
    "Qwen2VLProcessor": "Qwen2VLVideoProcessor",
    "Glm4vProcessor": "Glm4vVideoProcessor",
    "Glm46VProcessor": "Glm46VVideoProcessor",
    "InternVLProcessor": "InternVLVideoProcessor",
    "LlavaOnevisionProcessor": "LlavaOnevisionVideoProcessor",
    "SmolVLMProcessor": "SmolVLMVideoProcessor",
}
"""Processor class -> the video processor class that its published checkpoints name."""


def save_processor(processor: Any, folder: Path) -> None:
    """Save a processor so that it loads with and without torchvision, and in servers that want the published layout.

    The image processor gets a `preprocessor_config.json` of its own. A processor that was loaded without its video
    part gets a video section in `processor_config.json`, with the image processor's sizes.
    """
    processor.save_pretrained(folder)
    images = processor.image_processor
    images.save_pretrained(folder)
    name = type(processor).__name__
    if name not in VIDEO_PROCESSORS or getattr(processor, "video_processor", None) is not None:
        return
    file = folder / "processor_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    settings = _frame_settings(images.to_dict())
    config["video_processor"] = {"video_processor_type": VIDEO_PROCESSORS[name], **settings}
    file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _frame_settings(images: dict[str, Any]) -> dict[str, Any]:
    """What a video's frames share with images: the patches; or the tile, which is a whole frame, and its colours."""
    patches = ("patch_size", "merge_size", "temporal_patch_size")
    sizes: dict[str, Any] = {key: images[key] for key in patches if key in images}
    if sizes:
        return sizes
    shared = {key: images[key] for key in ("image_mean", "image_std", "max_image_size") if key in images}
    return shared | {"size": images.get("max_image_size", images["size"])}


def _processor_class_name(path: str) -> str | None:
    for file in ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json"):
        found = cached_file(path, file, _raise_exceptions_for_missing_entries=False)
        if found is not None:
            name = json.loads(Path(found).read_text(encoding="utf-8")).get("processor_class")
            if name:
                return str(name)
    return None
