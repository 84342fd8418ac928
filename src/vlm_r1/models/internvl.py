"""InternVL (2.5, 3, 3.5) in its transformers layout, `internvl`.

Boxes are 0-1000 of the image, written `<box>[[x1, y1, x2, y2]]</box>` (InternVL's documentation of grounding data).
"""

from __future__ import annotations

from typing import Any

from vlm_r1.errors import ConfigError
from vlm_r1.models.family import Family


class InternVL(Family):
    """An image is cut into tiles of one size, with a thumbnail beside them where there are several."""

    def image_kwargs(self, min_pixels: int | None, max_pixels: int | None) -> dict[str, Any]:
        """Numbers of tiles for these limits. Raises `ConfigError` where no number of tiles lies between them."""
        images = self.processor.image_processor
        tile = images.size["height"] * images.size["width"]
        fewest = images.min_patches if min_pixels is None else -(-min_pixels // tile)
        most = images.max_patches if max_pixels is None else max_pixels // tile
        if not fewest <= most:
            raise ConfigError(
                f"model.min_pixels, model.max_pixels: no image has {fewest} or more and {most} or fewer tiles; "
                f"a tile is {tile} pixels: raise model.max_pixels or lower model.min_pixels"
            )
        return super().image_kwargs(None, None) | {"min_patches": fewest, "max_patches": most}
