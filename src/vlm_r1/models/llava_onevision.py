"""LLaVA-OneVision, `llava_onevision`.

Boxes are taken to be as in LLaVA-NeXT, whose instruction data it goes on from; its own pages say nothing about them.
"""

from __future__ import annotations

from collections.abc import Sequence

from vlm_r1.models.llava_next import LlavaNext
from vlm_r1.records import SampleImage


class LlavaOnevision(LlavaNext):
    """Several images in a prompt are one tile each, so they are processed together."""

    def group_images(self, images: Sequence[SampleImage]) -> list[Sequence[SampleImage]]:
        """All of a prompt together."""
        return [images] if images else []
