"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL, Qwen3.5 and their mixtures of experts.

All have M-RoPE positions and one placeholder token per merged patch, and differ in the coordinates they write:
Qwen2.5-VL pixels of the resized image it saw, the others 0-1000 (their published cookbooks on grounding; for
Qwen2-VL its report). A mixture of experts routes each token by itself, so a packed row is exact.
"""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import nn
from transformers.core_model_loading import Transpose

from vlm_r1.boxes import BoxMap
from vlm_r1.models.family import Family, Part
from vlm_r1.models.recurrent import share_states
from vlm_r1.records import SampleImage, VisionInput


class QwenVL(Family):
    """What they share; everything else is read from the model's configuration and processor."""

    chunked_vision = True

    def image_kwargs(self, min_pixels: int | None, max_pixels: int | None) -> dict[str, Any]:
        """The image processor's `size`, with the limits that the recipe sets."""
        size = self.processor.image_processor.size
        shortest, longest = min_pixels or size["shortest_edge"], max_pixels or size["longest_edge"]
        return {"size": {"shortest_edge": shortest, "longest_edge": longest}}

    def as_seen(self, image: SampleImage, vision: VisionInput) -> Image.Image:
        """The resized image, from the patches: another program's resizing differs by a level here and there, and leaves
        this one as it is."""
        processor, [[_, rows, columns]] = self.processor.image_processor, vision.tensors["image_grid_thw"].tolist()
        merge, patch = processor.merge_size, processor.patch_size
        patches = vision.tensors["pixel_values"].view(
            rows // merge, columns // merge, merge, merge, 3, -1, patch, patch
        )
        pixels = patches[:, :, :, :, :, 0].permute(0, 2, 5, 1, 3, 6, 4).reshape(rows * patch, columns * patch, 3)
        mean, std = torch.tensor(processor.image_mean), torch.tensor(processor.image_std)
        levels = (pixels.float().cpu() * std + mean) / processor.rescale_factor
        return Image.fromarray(levels.round().clamp(0, 255).to(torch.uint8).numpy())

    def modules(self) -> dict[Part, list[nn.Module]]:
        """The mergers, which lie inside the tower's module, are the connector."""
        tower = self.model.model.visual
        mergers = [tower.merger, *getattr(tower, "deepstack_merger_list", [])]
        return super().modules() | {"connector": mergers}


class Qwen25VL(QwenVL):
    """Boxes are pixels of the image as resized for the model."""

    def box_map(self, original: tuple[int, int], vision: VisionInput) -> BoxMap:
        """Original size over resized size, per axis."""
        _, rows, columns = vision.tensors["image_grid_thw"][0].tolist()
        patch = self.processor.image_processor.patch_size
        return BoxMap(x=original[0] / (columns * patch), y=original[1] / (rows * patch))


class Qwen3VLMoe(QwenVL):
    """Qwen3-VL's mixture of experts, published with its experts' matrices as `(experts, in, out)`."""

    def __init__(self, model: Any, *args: Any) -> None:
        super().__init__(model, *args)
        # transformers turns the matrices when it loads them but not when it saves them; servers expect them turned.
        for conversion in getattr(model, "_weight_conversions", None) or ():
            for operation in getattr(conversion, "operations", ()):
                if isinstance(operation, Transpose):
                    operation.check_dims = False


class Qwen35(QwenVL):
    """Qwen3.5, dense and mixture of experts: most layers are gated delta nets, which carry a state."""

    def __init__(self, model: Any, *args: Any) -> None:
        super().__init__(model, *args)
        for layer in model.model.get_decoder().layers:
            if hasattr(layer, "linear_attn"):
                share_states(layer.linear_attn)
