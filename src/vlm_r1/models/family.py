"""What differs between model families, and nothing else. One file per family; `models.families.FAMILIES` lists them.

A family turns a `Sample` into a `Prompt`: chat template, image tensors, positions, and the map from the coordinates
the model writes to pixels of the original image. It also names the tokens a policy must never write, and the modules
of the tower, the connector and the language model. This base class reads all of it from the model and the processor
where they follow transformers' conventions; a family overrides what does not.
"""

from __future__ import annotations

import hashlib
import inspect
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor, nn

from vlm_r1.boxes import BoxMap
from vlm_r1.config import PromptConfig
from vlm_r1.errors import ConfigError, DataError, ModelError, half_character, shown
from vlm_r1.models.policy import merge_images
from vlm_r1.prompts.templates import chat_messages
from vlm_r1.records import Prompt, Sample, SampleImage, ToolCall, ToolTurn, Truth, VisionInput

CACHED_IMAGES = 128
"""Processed images kept in memory: an image asked about several times is decoded and resized once."""
FILLER_SIDE = 64
"""Pixels of the side of a filler's image; families enlarge it to the smallest they take."""
MARK = "*answer*"
"""Stands for what a model wrote where a template is asked what follows it."""
Part = Literal["vision", "connector", "language"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Processed:
    """Images that were processed together: their tensors, and the text that replaces each one's placeholder.

    `size` is the first one's original (width, height). The images are held so that their ids stay their own.
    """

    vision: VisionInput
    texts: list[str]
    size: tuple[int, int]
    images: Sequence[SampleImage]


class Family:
    """A model that follows transformers' conventions; boxes are 0-1000 of the image."""

    chunked_vision = False
    """True where the vision tower takes variable-length attention over chunks (`models.vision_attention`)."""
    shares_images = True
    """False where the question changes what the image's tokens see, so that questions cannot share an image."""

    def __init__(
        self, model: Any, processor: Any, settings: PromptConfig, min_pixels: int | None, max_pixels: int | None
    ):
        self.model = model
        self.processor = processor
        self.settings = settings
        self.tokenizer = processor.tokenizer
        self.tools = ""  # what prompts say of the environment, where their template has a place for it
        self._max_pixels = max_pixels
        self._end_token_id: int | None = None
        self._image_kwargs = self.image_kwargs(min_pixels, max_pixels)
        self._settings_key = f"{processor.image_processor.to_dict()}{self._image_kwargs}"
        self._vision_names = set(inspect.signature(model.model.get_image_features).parameters)
        self._encoding = threading.Lock()  # a processor need not bear two threads; training and evaluation are two
        self._images: OrderedDict[Any, Processed] = OrderedDict()

    # -- what a family states -------------------------------------------------------------------------------------

    def image_kwargs(self, min_pixels: int | None, max_pixels: int | None) -> dict[str, Any]:
        """Keyword arguments of the image processor for these limits (pixels of the resized image).

        Raises `ConfigError` where the family has no such limits.
        """
        for key, value in (("min_pixels", min_pixels), ("max_pixels", max_pixels)):
            if value is not None:
                name = self.model.config.model_type
                raise ConfigError(f"model.{key}: {name} resizes every image to sizes of its own; remove the key")
        return dict(getattr(type(self.processor), "images_kwargs", None) or {})

    @property
    def mrope(self) -> bool:
        """Whether the model takes positions per axis (M-RoPE) instead of one position a token."""
        return hasattr(self.model.model, "get_rope_index")

    def positions(self, token_ids: Tensor, vision: dict[str, Tensor]) -> Tensor:
        """Positions `(3, T)` of a prompt's tokens `(T,)`: the model's own, or three equal rows that count up."""
        if not self.mrope:
            return torch.arange(len(token_ids)).expand(3, -1)
        kinds = torch.tensor(self.processor.create_mm_token_type_ids([token_ids.tolist()]))
        grid = vision.get("image_grid_thw")
        return self.model.model.get_rope_index(token_ids[None], kinds, image_grid_thw=grid)[0][:, 0]

    def blocks(self, token_ids: Tensor) -> Tensor | None:
        """Numbers `(T,)` of groups of prompt tokens that see each other both ways, -1 elsewhere; None: all causal."""
        return None

    def box_map(self, original: tuple[int, int], vision: VisionInput) -> BoxMap:
        """From what the model writes about an image of `original` (width, height) pixels to those pixels."""
        return BoxMap(x=original[0] / 1000, y=original[1] / 1000)

    def placeholder(self) -> str:
        """The text that stands for one image in the chat template."""
        return str(self.processor.image_token)

    def banned_token_ids(self) -> list[int]:
        """Tokens a policy must never write: image and video placeholders, which make the next forward pass fail."""
        names = ("image_token_id", "video_token_id", "audio_token_id")
        found = (getattr(self.model.config, name, None) for name in names)
        return [token for token in found if token is not None]

    def modules(self) -> dict[Part, list[nn.Module]]:
        """The connector between tower and language model, the vision tower, and the language model with its head.

        A module that lies inside another part's comes before it.
        """
        model = self.model.model
        tower, language = model.get_encoder(modality="image"), model.get_decoder()
        others = [m for m in model.children() if m is not tower and m is not language]
        return {"connector": others, "vision": [tower], "language": [language, self.model.get_output_embeddings()]}

    def text(self, sample: Sample) -> str:
        """The prompt's text, with one placeholder an image."""
        return self._render(chat_messages(sample, self.settings.template, self.tools), add_generation_prompt=True)

    def group_images(self, images: Sequence[SampleImage]) -> list[Sequence[SampleImage]]:
        """Images that must be processed together; each alone unless a family says otherwise."""
        return [(image,) for image in images]

    def tensors(self, found: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the image processor made, in shapes that can be put one after the other in their first dimension."""
        return found

    def as_seen(self, image: SampleImage, vision: VisionInput) -> Image.Image:
        """The image that a server's processor is given; the original, unless a family knows the one the tower sees."""
        return image.open()

    @property
    def end_token_id(self) -> int:
        """The token that ends an answer, which supervised training teaches: what the chat template writes behind one,
        where rollouts stop at it, else the end-of-text token."""
        if self._end_token_id is None:
            self._end_token_id = self._find_end_token()
        return self._end_token_id

    # -- what all families share ----------------------------------------------------------------------------------

    def encode(self, sample: Sample) -> Prompt:
        """The prompt of a sample; one thread at a time.

        Raises `DataError` naming the sample for an image that cannot be read or text that is not whole characters,
        and `ModelError` where the model's chat template fails.
        """
        with self._encoding:
            return self._encode(sample)

    def _encode(self, sample: Sample) -> Prompt:
        if half := half_character(sample.question):
            raise DataError(f"sample {sample.id}: {half}; write the whole character, or leave it out")
        token_ids, processed = self._tokens(sample, sample.images, self.text(sample))
        images = tuple(entry.vision for entry in processed)
        positions = self.positions(token_ids, merge_images(images))
        return Prompt(
            sample=sample,
            token_ids=tuple(token_ids.tolist()),
            positions=positions,
            next_position=int(positions.max()) + 1,
            images=images,
            box_map=self.prompt_box_map(processed[0].size, images[0]) if processed else BoxMap(),
            blocks=self.blocks(token_ids),
        )

    def _tokens(self, sample: Sample, images: Sequence[SampleImage], text: str) -> tuple[Tensor, list[Processed]]:
        """The ids `(T,)` of a text with one placeholder an image, and the processed images."""
        try:
            processed = [self.process(together) for together in self.group_images(images)]
        except DataError as error:
            raise DataError(f"sample {sample.id}: {error}") from None
        pieces = text.split(self.placeholder())
        replacements = [text for entry in processed for text in entry.texts]
        if len(pieces) != len(replacements) + 1:
            raise DataError(
                f"sample {sample.id}: the text holds an image placeholder ({self.placeholder()}); remove it"
            )
        filled = pieces[0] + "".join(t + piece for t, piece in zip(replacements, pieces[1:], strict=True))
        return torch.tensor(self.tokenizer(filled, add_special_tokens=False)["input_ids"]), processed

    def check_turns(self) -> None:
        """Raises `ModelError` for a model that tools cannot write to."""
        name = self.model.config.model_type
        if self.processor.chat_template is None:
            raise ModelError(
                f"env: {name} has no chat template, so there is no turn for a tool to write in; remove env"
            )
        if type(self).blocks is not Family.blocks:
            raise ModelError(
                f"env: {name} sees the tokens of an image both ways, which answers with images in them do not have; "
                "take another model, or remove env"
            )

    def tool_turn(
        self, sample: Sample, images: Sequence[SampleImage], text: str, *, position: int, ended: bool = False
    ) -> ToolTurn:
        """What a tool answers, as the model reads it: the end of the model's turn, images and text as the next turn of
        the user, and the begin of the model's next one. `position` is the first one behind what the model wrote;
        `ended` says that it wrote the end of its turn itself.

        Raises `DataError` as `encode` does.
        """
        content = [*({"type": "image"} for _ in images), {"type": "text", "text": text}]
        with self._encoding:
            behind = self._behind({"role": "user", "content": content}, add_generation_prompt=True)
            token_ids, processed = self._tokens(sample, images, behind)
            unexpanded = self.tokenizer(behind, add_special_tokens=False)["input_ids"]
            if ended and int(token_ids[0]) == self.end_token_id:
                token_ids, unexpanded = token_ids[1:], unexpanded[1:]
            vision = tuple(entry.vision for entry in processed)
            positions = position + self.positions(token_ids, merge_images(vision))
        return ToolTurn(
            at=0,
            token_ids=tuple(token_ids.tolist()),
            unexpanded=tuple(unexpanded),
            positions=positions,
            next_position=int(positions.max()) + 1,
            images=vision,
            call=ToolCall(text="", reply=text, images=tuple(images)),
        )

    def unexpanded(self, sample: Sample) -> list[int]:
        """The token ids of a sample's prompt with one placeholder an image, as servers take it."""
        with self._encoding:
            return list(self.tokenizer(self.text(sample), add_special_tokens=False)["input_ids"])

    def filler(self, *, image: bool) -> Prompt:
        """A small prompt that counts nothing: with it a process runs the modules that others run."""
        shown = (SampleImage(image=Image.new("RGB", (FILLER_SIDE, FILLER_SIDE))),) if image else ()
        return self.encode(Sample(id="filler", question="?", images=shown, truth=Truth()))

    def expected_tokens(self, sample: Sample) -> float:
        """About how many tokens the prompt of a sample has, without decoding its images: to share work by."""
        pixels = 0
        for image in sample.images:
            try:
                width, height = image.size
            except DataError:  # `encode` says so, with the sample's name
                continue
            pixels += min(width * height, self._max_pixels or width * height)
        return pixels / 784 + len(sample.question) / 4 + 16

    def parameters(self) -> dict[Part, dict[str, nn.Parameter]]:
        """Part -> name -> parameter; each belongs to the first part of `modules` that holds it, the rest to the
        connector."""
        owner = {
            id(p): part for part, modules in reversed(self.modules().items()) for m in modules for p in m.parameters()
        }
        found: dict[Part, dict[str, nn.Parameter]] = {"vision": {}, "connector": {}, "language": {}}
        for name, parameter in self.model.named_parameters():
            found[owner.get(id(parameter), "connector")][name] = parameter
        return found

    def _render(self, messages: list[dict[str, Any]], **options: Any) -> str:
        try:
            return str(self.processor.apply_chat_template(messages, tokenize=False, **options))
        except Exception as error:  # it is a program that came with the model
            raise ModelError(
                f"model.path: the model's chat template fails ({type(error).__name__}: {shown(str(error))[1:-1]}); "
                "take chat_template.jinja from where the model came from"
            ) from None

    def _behind(self, *later: dict[str, Any], **options: Any) -> str:
        """What the chat template writes behind an answer, and for the messages that come later."""
        said = [("user", "question"), ("assistant", MARK)]
        messages = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in said]
        return self._render([*messages, *later], **options).partition(MARK)[2]

    def _find_end_token(self) -> int:
        stops = self.model.generation_config.eos_token_id
        stops = stops if isinstance(stops, (list, tuple)) else [stops]
        if self.processor.chat_template is not None:
            for token in self.tokenizer(self._behind(), add_special_tokens=False)["input_ids"]:
                if token in stops:
                    return int(token)
        return int(self.tokenizer.eos_token_id)

    def prompt_box_map(self, original: tuple[int, int], vision: VisionInput) -> BoxMap:
        """The box map that the recipe asks for, of the first image: boxes are about it."""
        if self.settings.coordinates == "original_pixels":
            return BoxMap()
        if self.settings.coordinates == "relative_1000":
            return BoxMap(x=original[0] / 1000, y=original[1] / 1000)
        return self.box_map(original, vision)

    def process(self, images: Sequence[SampleImage]) -> Processed:
        """Images that go together, decoded and resized once while they stay cached."""
        key = tuple(id(p) if p.path is None else str(p.path) for p in images)
        if key in self._images:
            self._images.move_to_end(key)
            return self._images[key]
        opened = [image.open() for image in images]
        try:
            found = self.processor.image_processor(images=[opened], return_tensors="pt", **self._image_kwargs)
        except (ValueError, ArithmeticError) as error:
            sizes = ", ".join(f"{image.width}x{image.height}" for image in opened)
            reason = shown(f"image of {sizes} pixels: the model's image processor refuses it ({error})", 240)[1:-1]
            raise DataError(f"{reason}; crop it or drop the row") from None
        texts = [self.processor.replace_image_token(found, i) for i in range(len(images))]
        content = "".join(image.key for image in images) + self._settings_key
        vision = VisionInput(
            key=hashlib.sha256(content.encode()).hexdigest()[:32],
            tensors=self.tensors({name: value for name, value in found.items() if name in self._vision_names}),
        )
        self._images[key] = Processed(vision=vision, texts=texts, size=opened[0].size, images=images)
        if len(self._images) > CACHED_IMAGES:
            self._images.popitem(last=False)
        return self._images[key]
