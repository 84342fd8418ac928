"""The nouns of the project, and the one legend of dimension letters.

`P` prompts in a step, `G` answers per prompt, `B = P * G` answers, `T` tokens, `V` vocabulary, `N` boxes.
A local name carries its dimensions as a suffix: `rewards_PG`, `logprobs_BT`.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm_r1.boxes import Box, BoxMap
from vlm_r1.errors import shown
from vlm_r1.image_file import decode, read_size, readable
from vlm_r1.video_file import decode_frame

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

IN_MEMORY = "in memory"
"""What errors call an image that is not a file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleImage:
    """One image: a path, encoded bytes or a PIL image; opened only when asked. With `at` it is the frame that the clip
    at `path` shows so many seconds from its beginning.

    Example: `SampleImage(path=Path("imgs/17.jpg")).open()` is an RGB `PIL.Image`.
    """

    path: Path | None = None
    data: bytes | None = None
    image: Image.Image | None = None
    at: float | None = None

    def open(self) -> Image.Image:
        """Decode to RGB. Raises `DataError` for a missing, damaged or too large image (`image_file.decode`)."""
        if self.at is not None:
            return decode_frame(Path(self.path), self.at)  # type: ignore[arg-type]
        if self.image is None:
            return decode(self._source())
        with readable(IN_MEMORY):
            return self.image.convert("RGB")

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) as shown, read from a file's header. Raises `DataError` as `open` does."""
        if self.at is not None:
            return self.open().size
        return self.image.size if self.image is not None else read_size(self._source())

    @property
    def key(self) -> str:
        """A hash of the content: equal images have equal keys, wherever they are stored. Raises `DataError`."""
        if self.image is None and self.at is None:
            return hashlib.sha256(self.read()).hexdigest()[:32]
        image = self.open() if self.image is None else self.image
        with readable(IN_MEMORY):
            content = f"{image.mode}{image.size}".encode() + image.tobytes()
        return hashlib.sha256(content).hexdigest()[:32]

    def read(self) -> bytes:
        """The file's bytes as they are stored; PNG of an image that was made in memory. Raises `DataError`."""
        if self.image is not None or self.at is not None:
            sink = io.BytesIO()
            self.open().save(sink, "PNG")
            return sink.getvalue()
        source = self._source()
        if isinstance(source, bytes):
            return source
        with readable(shown(str(source), 200)):
            return source.read_bytes()

    def _source(self) -> Path | bytes:
        return self.data if self.data is not None else Path(self.path)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledBox:
    """A box in pixels of the original image and what it is drawn around.

    Example: `LabelledBox(box=(10, 20, 40, 60), label="red circle")`.
    """

    box: Box
    label: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """The checkable answer; the fields that do not apply are None. `boxes=()` says that nothing is there.

    Example: `Truth(boxes=(LabelledBox(box=(10, 20, 40, 60)),))`, `Truth(choice="B")`, `Truth(number=4.0)`.
    """

    boxes: tuple[LabelledBox, ...] | None = None
    text: str | None = None
    choice: str | None = None
    number: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One question with its images and its truth.

    `task` names a row of `prompts.templates.TASKS` (rec, ovd, count, choice, ...). `reward` overrides the recipe's
    reward for this sample. `target` is the text a supervised baseline learns (model coordinates filled in by the
    family); `columns` keeps what else the row held, for reward plugins. Where the images are frames of a video, `times`
    are their seconds.

    Example: `Sample(id="0", images=(pic,), question="the red circle", truth=truth, task="rec")`.
    """

    id: str
    question: str
    truth: Truth
    images: tuple[SampleImage, ...] = ()
    task: str = "rec"
    source: str = ""
    reward: str | None = None
    think: str | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)
    times: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionInput:
    """A processed image: the tensors that the vision tower takes, which lie along their first dimension.

    `key` says what they were made of: the image's content and the processor's settings.

    Example: `VisionInput(key="5f1c..", tensors={"pixel_values": ..., "image_grid_thw": ...})`.
    """

    key: str
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A sample as the model sees it.

    `token_ids` are the prompt's `T` ids; `positions` is `(3, T)` (three equal rows where the model has plain
    positions) and answers continue at `next_position`; `images` are the processed images in the prompt's order;
    `blocks` `(T,)` numbers groups of tokens that see each other both ways (see `models.layout`), None where the model
    is causal throughout; `box_map` turns boxes as the model writes them into original pixels (of the first image).
    `number` is the prompt's place in its step (or its split), whichever process holds it: seeds are made of it.
    """

    sample: Sample
    token_ids: tuple[int, ...]
    positions: Tensor
    next_position: int
    images: tuple[VisionInput, ...]
    box_map: BoxMap
    blocks: Tensor | None = None
    number: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How answers are sampled; it travels with the group whose answers were sampled so.

    `seed` None is greedy decoding; else answer g of the prompt with number p is a function of `(*seed, p, g)` and the
    weights, whatever else is sampled beside it. The recorded log-probs are those of `softmax(logits / temperature)`
    without the suppressed tokens, before top-k, top-p and min-p. An answer may ask its environment `max_calls` times.

    Example: `SamplingParams(seed=(0, 12), temperature=0.9, max_new_tokens=512)` at step 12 of a run of seed 0.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    stop_at_answer: bool = True
    seed: tuple[int, ...] | None = None
    max_calls: int = 0

    @property
    def max_tokens(self) -> int:
        """Most tokens of a whole answer: `max_new_tokens` before each call and after the last."""
        return self.max_new_tokens * (self.max_calls + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """What a model asked of its environment, and what it was told.

    `text` is what it wrote up to here since the last call, `reply` and `images` the answer; `failure` is a kind of
    `envs.call.FAILURES`, "" where nothing went wrong. `box` is what was looked at, in pixels of the first image.
    """

    text: str
    reply: str = ""
    failure: str = ""
    box: Box | None = None
    images: tuple[SampleImage, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolTurn:
    """What an environment wrote into an answer, as the model reads it: context, never sampled and never trained.

    It stands behind the first `at` tokens that the model wrote: `T` token ids at positions `(3, T)`, with the processed
    `images` of `call`; the answer goes on at `next_position`. `unexpanded` are the ids with one placeholder an image,
    as servers take them.
    """

    at: int
    token_ids: tuple[int, ...]
    unexpanded: tuple[int, ...]
    positions: Tensor
    next_position: int
    images: tuple[VisionInput, ...]
    call: ToolCall


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One sampled answer: `T` token ids (with the stop token) and the sampler's log-prob of each.

    These are the tokens that the model wrote; `turns` are what its environment wrote between them, and `score` is what
    the environment gave it. `finish` is "stop" (end of text or `</answer>`) or "length" (cut at the token limit);
    `version` is that of the weights that wrote it.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    finish: str
    version: int = 0
    turns: tuple[ToolTurn, ...] = ()
    score: float | None = None

    @property
    def n_context(self) -> int:
        """Tokens that the environment wrote."""
        return sum(len(turn.token_ids) for turn in self.turns)


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutGroup:
    """One prompt and its G rollouts. Groups are objects; they are never found again by comparing text."""

    prompt: Prompt
    rollouts: tuple[Rollout, ...]
    sampling: SamplingParams | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ParseFailure:
    """Why a text could not be read as an answer: data, not an exception.

    `kind` is one of `prompts.parse.FAILURE_KINDS`, `detail` a sentence for a person.
    """

    kind: str
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the model wrote, read by the one parser that training and evaluation share.

    `value` depends on the task: boxes (original pixels) as a tuple of `LabelledBox` (empty for "nothing there"), a
    float for a number, a letter for a choice, a string otherwise, None where `failure` is set. `well_formed` says
    that the whole text has exactly the R1 shape. `dropped` counts malformed, reversed or empty boxes left out. `calls`
    are what was asked of the environment and `environment` is its score, where there is one; `raw` is all that the
    model wrote.

    Example: `Answer(raw="<think>..</think><answer>4</answer>", think="..", text="4", value=4.0, well_formed=True)`.
    """

    raw: str
    think: str | None = None
    text: str | None = None
    value: tuple[LabelledBox, ...] | float | str | None = None
    failure: ParseFailure | None = None
    well_formed: bool = False
    dropped: int = 0
    n_tokens: int = 0
    truncated: bool = False
    calls: tuple[ToolCall, ...] = ()
    environment: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A reward: its total, its named parts, and notes a person can read.

    `total` is None where the reward says "not scorable": the sample is left out of its group's statistics.

    Example: `Score(total=0.8, parts={"iou": 0.8})`.
    """

    total: float | None
    parts: Mapping[str, float | None] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
