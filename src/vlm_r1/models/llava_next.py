"""LLaVA-NeXT (LLaVA 1.6), `llava_next`.

Boxes are shares of the image, 0 to 1 with decimals, as LLaVA's published instruction data writes them.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vlm_r1.boxes import BoxMap
from vlm_r1.errors import ConfigError
from vlm_r1.models.family import Family
from vlm_r1.records import VisionInput


class LlavaNext(Family):
    """An image is shown whole and in the tiles of the resolution that fits it best."""

    def image_kwargs(self, min_pixels: int | None, max_pixels: int | None) -> dict[str, Any]:
        """The limits choose among the resolutions; the model reads them too, so they are set in its configuration.

        Raises `ConfigError` where none is left.
        """
        images, config = self.processor.image_processor, self.model.config
        low, high = min_pixels or 0, max_pixels or float("inf")
        kept = [[h, w] for h, w in images.image_grid_pinpoints if low <= h * w <= high]
        if not kept:
            sizes = sorted({h * w for h, w in images.image_grid_pinpoints})
            raise ConfigError(
                "model.min_pixels, model.max_pixels: no resolution of this model lies between them; they have "
                f"{', '.join(map(str, sizes))} pixels"
            )
        images.image_grid_pinpoints = config.image_grid_pinpoints = kept
        return super().image_kwargs(None, None)

    def tensors(self, found: dict[str, Tensor]) -> dict[str, Tensor]:
        """`pixel_values` `(images, tiles, C, H, W)` to `(images * tiles, C, H, W)`."""
        return found | {"pixel_values": found["pixel_values"].flatten(0, 1)}

    def box_map(self, original: tuple[int, int], vision: VisionInput) -> BoxMap:
        """Shares of the image's width and height."""
        return BoxMap(x=original[0], y=original[1], digits=3)
