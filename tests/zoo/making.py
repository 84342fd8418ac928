"""Writing a tiny checkpoint: a real configuration and processor class, random weights that all matter."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from support import PLAIN
from transformers import AutoConfig, AutoModelForImageTextToText

from vlm_r1.models.processor import has_torchvision, without_video
from vlm_r1.runtime.model_folder import save_model

RANGE = 0.1
"""Standard deviation of the weights: with the usual 0.02 the gradients of a tiny model are rounding noise."""


def make_model(model_type: str, seed: int = 3, **config):
    """A model of random weights whose norms and biases are moved, so that each has a gradient of its own."""
    made = AutoConfig.for_model(model_type, **config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(made, dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim < 2:
                    parameter += 0.05 * torch.randn(parameter.shape)
    return model


def make_processor(name: str, tokenizer, chat_template: str, video: str, image: str, **sizes):
    """A processor of class `name`, with the video part where torchvision is there to run it."""
    processor_class = getattr(transformers, name)
    images = getattr(transformers, image)(**sizes)
    parts = {"image_processor": images, "tokenizer": tokenizer, "chat_template": chat_template}
    if not has_torchvision():
        return without_video(processor_class)(**parts)
    sizes.pop("size")
    return processor_class(video_processor=getattr(transformers, video)(**sizes), **parts)


def write(
    folder: Path,
    model,
    processor,
    eos_token_ids: list[int],
    published_config: Callable[[dict], dict] | None = None,
    published_weights: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]] | None = None,
) -> None:
    """Write the folder; the two functions make what the published one holds of what transformers writes."""
    model.generation_config.eos_token_id = eos_token_ids
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    save_model(folder, model, processor, PLAIN)
    if published_config is not None:
        file = folder / "config.json"
        file.write_text(json.dumps(published_config(json.loads(file.read_text())), indent=2))
    if published_weights is not None:
        file = folder / "model.safetensors"
        weights = published_weights(load_file(file))
        save_file({name: value.contiguous() for name, value in weights.items()}, file, {"format": "pt"})
