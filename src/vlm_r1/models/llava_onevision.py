"""LLaVA-OneVision, `llava_onevision`.

Its authors publish no coordinates of boxes for it; 0-1000 of the picture is taken. (The instruction data of LLaVA-1.5,
which its own builds on, writes shares of the picture, 0 to 1, some of them of the picture padded to a square.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from vlm_r1.errors import ConfigError
from vlm_r1.models.family import Family
from vlm_r1.records import Picture


class LlavaOnevision(Family):
    """One picture in a prompt is cut into tiles; several are one tile each, so they are processed together."""

    def picture_kwargs(self, min_pixels: int | None, max_pixels: int | None) -> dict[str, Any]:
        """No keyword arguments: the limits choose among the resolutions that the model offers a picture.

        The model reads the resolutions from its own configuration, so they are set there too. Raises `ConfigError`
        where none is left.
        """
        pictures, config = self.processor.image_processor, self.model.config
        low, high = min_pixels or 0, max_pixels or float("inf")
        kept = [[h, w] for h, w in pictures.image_grid_pinpoints if low <= h * w <= high]
        if not kept:
            sizes = sorted({h * w for h, w in pictures.image_grid_pinpoints})
            raise ConfigError(
                "model.min_pixels, model.max_pixels: no resolution of this model lies between them; they have "
                f"{', '.join(map(str, sizes))} pixels"
            )
        pictures.image_grid_pinpoints = config.image_grid_pinpoints = kept
        return super().picture_kwargs(None, None)

    def group_pictures(self, pictures: Sequence[Picture]) -> list[Sequence[Picture]]:
        """All of a prompt together."""
        return [pictures] if pictures else []

    def tensors(self, found: dict[str, Tensor]) -> dict[str, Tensor]:
        """`pixel_values` `(pictures, tiles, C, H, W)` to `(pictures * tiles, C, H, W)`: there is no padding in it."""
        return found | {"pixel_values": found["pixel_values"].flatten(0, 1)}
