"""Gemma 3: sliding windows in most layers, and the tokens of one image see each other both ways.

Nothing is published about boxes: neither its report (arXiv 2503.19786) nor its model cards name a format. Boxes are
taken as 0-1000 of the image, x before y, as the templates' hints ask for.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vlm_r1.models.family import Family
from vlm_r1.models.layout import CAUSAL


class Gemma3(Family):
    """Pan and scan (crops beside the image) is off, as in its processor."""

    def blocks(self, token_ids: Tensor) -> Tensor | None:
        """One block for each run of image tokens."""
        shown = token_ids == self.model.config.image_token_id
        if not shown.any():
            return None
        starts = shown & ~torch.nn.functional.pad(shown, (1, 0))[:-1]
        return torch.where(shown, starts.cumsum(0) - 1, CAUSAL)
