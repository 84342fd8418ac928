"""Qwen2.5-VL and Qwen3-VL.

Both have M-RoPE positions, one placeholder token per merged patch, and differ in the coordinates they write: Qwen2.5-VL
pixels of the resized picture it saw, Qwen3-VL 0-1000 (their published cookbooks on grounding).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vlm_r1.boxes import BoxMap
from vlm_r1.models.family import Family


class QwenVL(Family):
    """What the two share; everything else is read from the model's configuration and processor."""

    chunked_vision = True

    def picture_kwargs(self, min_pixels: int | None, max_pixels: int | None) -> dict[str, Any]:
        """The picture processor's `size`, with the limits that the recipe sets."""
        size = self.processor.image_processor.size
        shortest, longest = min_pixels or size["shortest_edge"], max_pixels or size["longest_edge"]
        return {"size": {"shortest_edge": shortest, "longest_edge": longest}}

    def placeholder_count(self, vision: dict[str, Tensor]) -> int:
        """One token per merged patch."""
        return int(vision["image_grid_thw"].prod()) // self.processor.image_processor.merge_size**2

    def placeholder(self) -> str:
        """`<|image_pad|>`."""
        return str(self.processor.image_token)

    def banned_token_ids(self) -> list[int]:
        """Picture and video placeholders: writing one makes the next forward pass fail."""
        config = self.model.config
        return [config.image_token_id, config.video_token_id]

    def positions(self, token_ids: Tensor, vision: dict[str, Tensor]) -> Tensor:
        """The model's own M-RoPE positions, `(3, T)`."""
        kinds = (token_ids == self.model.config.image_token_id).int()
        grid = vision.get("image_grid_thw")
        return self.model.model.get_rope_index(token_ids[None], kinds[None], image_grid_thw=grid)[0][:, 0]


class Qwen3VL(QwenVL):
    """Boxes are 0-1000 of the picture."""

    def box_map(self, original: tuple[int, int], vision: dict[str, Tensor]) -> BoxMap:
        """A thousandth of the picture's width and height."""
        return BoxMap(x=original[0] / 1000, y=original[1] / 1000)


class Qwen25VL(QwenVL):
    """Boxes are pixels of the picture as resized for the model."""

    def box_map(self, original: tuple[int, int], vision: dict[str, Tensor]) -> BoxMap:
        """Original size over resized size, per axis."""
        _, rows, columns = vision["image_grid_thw"][0].tolist()
        patch = self.processor.image_processor.patch_size
        return BoxMap(x=original[0] / (columns * patch), y=original[1] / (rows * patch))
