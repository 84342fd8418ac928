"""What differs between model families, and nothing else. One file per family; `FAMILIES` is the registry.

A family turns a `Sample` into a `Prompt`: chat template, picture tensors, positions, and the map from the coordinates
the model writes to pixels of the original picture. It also names the tokens a policy must never write.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor

from vlm_r1.boxes import BoxMap
from vlm_r1.config import PromptConfig
from vlm_r1.errors import DataError
from vlm_r1.prompts.templates import chat_messages
from vlm_r1.records import Picture, Prompt, Sample

CACHED_PICTURES = 128
"""Processed pictures kept in memory: a picture asked about several times is decoded and resized once."""


class Family(ABC):
    """Base of all families: M-RoPE models of the Qwen-VL kind override little, others more."""

    chunked_vision = False
    """True where the vision tower takes variable-length attention over chunks (`models.vision_attention`)."""

    def __init__(
        self, model: Any, processor: Any, settings: PromptConfig, min_pixels: int | None, max_pixels: int | None
    ):
        self.model = model
        self.processor = processor
        self.settings = settings
        self.tokenizer = processor.tokenizer
        self._picture_kwargs = self.picture_kwargs(min_pixels, max_pixels)
        self._pictures: OrderedDict[int | str, tuple[dict[str, Tensor], tuple[int, int], Picture]] = OrderedDict()

    # -- what a family states -------------------------------------------------------------------------------------

    @abstractmethod
    def picture_kwargs(self, min_pixels: int | None, max_pixels: int | None) -> dict[str, Any]:
        """Keyword arguments of the picture processor for these limits (pixels of the resized picture)."""

    @abstractmethod
    def placeholder_count(self, vision: dict[str, Tensor]) -> int:
        """How many placeholder tokens one picture takes in the prompt."""

    @abstractmethod
    def positions(self, token_ids: Tensor, vision: dict[str, Tensor]) -> Tensor:
        """Positions `(3, T)` of a prompt's tokens `(T,)`."""

    @abstractmethod
    def box_map(self, original: tuple[int, int], vision: dict[str, Tensor]) -> BoxMap:
        """From what the model writes about a picture of `original` (width, height) pixels to those pixels."""

    @abstractmethod
    def placeholder(self) -> str:
        """The text of one picture placeholder token in the chat template."""

    @abstractmethod
    def banned_token_ids(self) -> list[int]:
        """Tokens a policy must never write: picture and video placeholders."""

    # -- what all families share ----------------------------------------------------------------------------------

    def encode(self, sample: Sample) -> Prompt:
        """The prompt of a sample. Raises `DataError` naming the sample for a picture that cannot be read."""
        try:
            pictures = [self.process_picture(picture) for picture in sample.images]
        except DataError as error:
            raise DataError(f"sample {sample.id}: {error}") from None
        text = self.processor.apply_chat_template(
            chat_messages(sample, self.settings.template), tokenize=False, add_generation_prompt=True
        )
        pieces = text.split(self.placeholder())
        if len(pieces) != len(pictures) + 1:
            raise DataError(
                f"sample {sample.id}: the text holds a picture placeholder ({self.placeholder()}); remove it"
            )
        filled = pieces[0]
        for piece, (vision, _) in zip(pieces[1:], pictures, strict=True):
            filled += self.placeholder() * self.placeholder_count(vision) + piece
        token_ids = torch.tensor(self.tokenizer(filled, add_special_tokens=False)["input_ids"])
        merged = {n: torch.cat([v[n] for v, _ in pictures]) for n in pictures[0][0]} if pictures else {}
        positions = self.positions(token_ids, merged)
        return Prompt(
            sample=sample,
            token_ids=tuple(token_ids.tolist()),
            positions=positions,
            next_position=int(positions.max()) + 1,
            vision=merged,
            box_map=self.prompt_box_map(pictures),
        )

    def prompt_box_map(self, pictures: list[tuple[dict[str, Tensor], tuple[int, int]]]) -> BoxMap:
        """The box map that the recipe asks for; boxes are about the first picture."""
        if not pictures:
            return BoxMap()
        vision, (width, height) = pictures[0]
        if self.settings.coordinates == "original_pixels":
            return BoxMap()
        if self.settings.coordinates == "relative_1000":
            return BoxMap(x=width / 1000, y=height / 1000)
        return self.box_map((width, height), vision)

    def process_picture(self, picture: Picture) -> tuple[dict[str, Tensor], tuple[int, int]]:
        """The picture's tensors and its original (width, height); decoded and resized once while it stays cached."""
        key = id(picture) if picture.path is None else str(picture.path)
        if key in self._pictures:
            self._pictures.move_to_end(key)
            return self._pictures[key][:2]
        image = picture.open()
        vision = dict(self.processor.image_processor(images=[image], return_tensors="pt", **self._picture_kwargs))
        size = (image.width, image.height)
        self._pictures[key] = (vision, size, picture)  # holding the picture keeps its id its own
        if len(self._pictures) > CACHED_PICTURES:
            self._pictures.popitem(last=False)
        return vision, size
