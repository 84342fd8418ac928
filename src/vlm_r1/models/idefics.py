"""SmolVLM and SmolVLM2 (`smolvlm`) and Idefics3 (`idefics3`, which SmolVLM's first checkpoints are too).

Nothing is published about the coordinates of boxes; 0-1000 of the image is taken.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vlm_r1.errors import ConfigError
from vlm_r1.models.family import Family


class Idefics3(Family):
    """An image is enlarged to a fixed longest side and cut into square tiles, with the whole image behind them."""

    def image_kwargs(self, min_pixels: int | None, max_pixels: int | None) -> dict[str, Any]:
        """The longest side, in whole tiles, of a square of `max_pixels`.

        Raises `ConfigError` for `min_pixels`, which every image is enlarged beyond, and where one tile is over
        `max_pixels`.
        """
        found = super().image_kwargs(min_pixels, None)
        if max_pixels is None:
            return found
        tile = self.processor.image_processor.max_image_size["longest_edge"]
        if max_pixels < tile * tile:
            raise ConfigError(
                f"model.max_pixels: {max_pixels} is less than one tile of this model, {tile * tile} pixels"
            )
        return found | {"size": {"longest_edge": int(max_pixels**0.5) // tile * tile}}

    def tensors(self, found: dict[str, Tensor]) -> dict[str, Tensor]:
        """`(1, tiles, ...)` of one prompt to `(tiles, 1, ...)`."""
        return {name: value.transpose(0, 1) for name, value in found.items()}
