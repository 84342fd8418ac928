"""LLaVA-OneVision, `llava_onevision`.

Boxes are taken to be as in LLaVA-NeXT, whose instruction data it goes on from; its own pages say nothing about them.
"""

from __future__ import annotations

from collections.abc import Sequence

from vlm_r1.models.llava_next import LlavaNext
from vlm_r1.records import Picture


class LlavaOnevision(LlavaNext):
    """Several pictures in a prompt are one tile each, so they are processed together."""

    def group_pictures(self, pictures: Sequence[Picture]) -> list[Sequence[Picture]]:
        """All of a prompt together."""
        return [pictures] if pictures else []
