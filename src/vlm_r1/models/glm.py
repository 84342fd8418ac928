"""GLM-4.1V, GLM-4.5V (a mixture of experts) and GLM-4.6V.

Positions and placeholders are Qwen2-VL's: M-RoPE, one placeholder token per merged patch. Boxes are thousandths of the
image, written `[[x1, y1, x2, y2]]` between `<|begin_of_box|>` and `<|end_of_box|>` (README and issue 114 of
zai-org/GLM-V); the answer's parser reads them with and without these marks.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from vlm_r1.models.family import Part
from vlm_r1.models.qwen_vl import QwenVL


class Glm(QwenVL):
    """What they share with Qwen-VL, but for the limits and the connector."""

    def image_kwargs(self, min_pixels: int | None, max_pixels: int | None) -> dict[str, Any]:
        """The image processor's `size`, which counts the pixels of `temporal_patch_size` equal frames."""
        frames = self.processor.image_processor.temporal_patch_size
        low, high = (None if limit is None else limit * frames for limit in (min_pixels, max_pixels))
        return super().image_kwargs(low, high)

    def modules(self) -> dict[Part, list[nn.Module]]:
        """The merger and the convolution before it, which lie inside the tower's module, are the connector."""
        tower = self.model.model.visual
        return super().modules() | {"connector": [tower.downsample, tower.merger]}
