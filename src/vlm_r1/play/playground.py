"""What the page does: checks what was filled in, asks the models, scores their answers and keeps the page told."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from secrets import randbelow
from typing import Any

import torch
from PIL import Image

from vlm_r1.config import RewardConfig
from vlm_r1.errors import DataError, UserError
from vlm_r1.play.answers import Asked, Progress, Speaker, stream
from vlm_r1.play.cards import Card, Column, finished_card, growing_cards, summary
from vlm_r1.play.images import Images
from vlm_r1.play.truth import read_truth
from vlm_r1.prompts.templates import task_of
from vlm_r1.records import Answer, Sample, Score, Truth
from vlm_r1.rewards.registry import BATCHED, REWARDS
from vlm_r1.rewards.rubric import build_rubric

MAX_SAMPLES = 32
MAX_ANSWER_TOKENS = 8192
CHOSEN_REWARDS = sorted(set(REWARDS) - set(BATCHED))
"""Rewards that the page offers: those that need no server."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """What was filled in, as the page sends it: unchecked.

    Example: `Form(image={"path": "images/x.png"}, task="rec", question="the red circle")`.
    """

    image: Mapping[str, Any] | None = None
    task: Any = "rec"
    question: Any = ""
    truth: Any = ""
    greedy: Any = True
    n: Any = 1
    temperature: Any = 1.0
    seed: Any = ""
    limit: Any = 1024
    template: Any = None
    rewards: Any = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What the page shows: a line of status, whether it is an error, and each model's column (None: unchanged)."""

    status: str
    columns: tuple[Column | None, ...]
    error: bool = False
    busy: bool = False


@dataclass(slots=True)
class Playground:
    """One or two models, the images, and one thread in which the models run."""

    speakers: Sequence[Speaker]
    images: Images
    pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="model"))
    _halts: dict[str, threading.Event] = field(default_factory=dict)

    def stop(self, session: str) -> None:
        """End what a browser tab asked for after the next token."""
        halt = self._halts.get(session)
        if halt is not None:
            halt.set()

    def is_asked(self, session: str) -> bool:
        """Whether a browser tab waits for answers."""
        return session in self._halts

    def close(self) -> None:
        """End everything that is under way."""
        for halt in list(self._halts.values()):
            halt.set()
        self.pool.shutdown(cancel_futures=True)

    def ask(self, form: Form, session: str) -> Iterator[View]:
        """The page while the models answer, one after the other. What is wrong with the form is told on the page."""
        halt = self._halts[session] = threading.Event()
        columns: list[Column] = []
        try:
            yield from self._answer(form, halt, columns)
        except UserError as error:
            # The page's sample has a made-up id.
            yield self._failed(str(error).removeprefix("sample question: "), columns)
        except torch.OutOfMemoryError:
            message = "The model ran out of memory: ask for fewer samples or shorter answers, or use a smaller image."
            yield self._failed(message, columns)
        except Exception as error:
            _log.exception("a question failed")
            message = f"This failed inside the program ({type(error).__name__}); the terminal shows where."
            yield self._failed(message, columns)
        finally:
            halt.set()
            if self._halts.get(session) is halt:
                del self._halts[session]

    def _failed(self, message: str, columns: Sequence[Column]) -> View:
        """An error, with an end to what was still being written."""
        ended = [replace(c, note="No answer.", cards=(), busy=False) if c.busy else None for c in columns]
        return View(status=message, columns=tuple(ended) or (None,) * len(self.speakers), error=True)

    def _answer(self, form: Form, halt: threading.Event, columns: list[Column]) -> Iterator[View]:
        """The page while all goes well; `columns` holds what it shows."""
        source, image = self.images.uploaded(form.image)
        sample, has_truth = _sample(form, source, image.size)
        asked = _asked(form, sample)
        rubric = build_rubric(RewardConfig(parts=dict.fromkeys(_rewards(form, sample), 1.0)))
        ratio = round(image.width / image.height, 4)
        path = Path(str(source.path))
        blank = Column(
            name="",
            question=sample.question,
            image=f"{(form.image or {}).get('orig_name') or path.name}, {image.width} x {image.height} pixels",
            thumb=_address(path),
            note="Waiting …",
            busy=True,
            ratio=ratio,
            cards=(Card(),) * asked.n,
        )
        columns += [replace(blank, name=speaker.name) for speaker in self.speakers]
        yield View(status="Looking at the image …", columns=tuple(columns), busy=True)
        for place, speaker in enumerate(self.speakers):
            for progress in () if halt.is_set() else stream(speaker, asked, halt, self.pool):
                if progress.answers is None:
                    columns[place] = replace(columns[place], note="Writing …", cards=growing_cards(progress))
                else:
                    scores = rubric.score_all([sample] * asked.n, progress.answers) if has_truth else None
                    columns[place] = self._finished(columns[place], speaker, asked, progress, image, scores)
                shown = (None,) * place + (columns[place],) + (None,) * (len(columns) - place - 1)
                yield View(status=f"{speaker.name} answers …", columns=shown, busy=True)
        if not halt.is_set():
            yield View(status="Done.", columns=(None,) * len(columns))
            return
        unasked = [replace(c, note="Not asked.", cards=(), busy=False) if c.busy else None for c in columns]
        yield View(status="Stopped.", columns=tuple(unasked))

    def _finished(
        self,
        column: Column,
        speaker: Speaker,
        asked: Asked,
        progress: Progress,
        image: Image.Image,
        scores: Sequence[Score] | None,
    ) -> Column:
        answers = progress.answers or ()
        images = [self._drawn(image, asked.sample.truth, answer) for answer in answers]
        given: Sequence[Score | None] = scores or [None] * len(answers)
        rows = zip(answers, images, given, strict=True)
        how = "greedy" if asked.seed is None else f"temperature {asked.temperature:g}, seed {asked.seed}"
        count = "1 answer" if len(answers) == 1 else f"{len(answers)} answers"
        return replace(
            column,
            note=f"{count}, {how}, {progress.seconds:.1f} s{', stopped' if progress.stopped else ''}",
            cards=tuple(finished_card(a, p, score, stopped=progress.stopped) for a, p, score in rows),
            summary=summary(scores) if scores else (),
            key=bool(asked.sample.truth.boxes),
            busy=False,
            asked=progress.asked,
            template=asked.template or speaker.template,
        )

    def _drawn(self, image: Image.Image, truth: Truth, answer: Answer) -> str:
        """The address of the image with the true and the answered boxes."""
        predicted = answer.value if isinstance(answer.value, tuple) else ()
        return _address(self.images.draw(image, truth.boxes or (), predicted))


def _address(path: Path) -> str:
    """Where the page finds a file of the private folder."""
    return f"gradio_api/file={path}"


def _sample(form: Form, image: Any, size: tuple[int, int]) -> tuple[Sample, bool]:
    """The question as a sample, and whether a truth was given."""
    question, task = str(form.question or "").strip(), str(form.task)
    if not question:
        raise DataError('There is no question: write what to look for, as in "the red circle"')
    sample = Sample(id="question", images=(image,), question=question, truth=Truth(), task=task)
    task_of(sample)
    truth = read_truth(str(form.truth or ""), task, size)
    return (sample, False) if truth is None else (replace(sample, truth=truth), True)


def _asked(form: Form, sample: Sample) -> Asked:
    limit = _whole("The longest answer", form.limit, 1, MAX_ANSWER_TOKENS)
    template = str(form.template).strip() if form.template else None
    if form.greedy:
        return Asked(sample=sample, max_new_tokens=limit, template=template)
    temperature = form.temperature
    if not isinstance(temperature, (int, float)) or not 0.01 <= temperature <= 5:
        raise DataError(f"The temperature {temperature} is not a number from 0.01 to 5")
    written = str(form.seed or "").strip()
    seed = (
        _whole("The seed", int(written) if written.isdecimal() and len(written) < 20 else written, 0, (1 << 63) - 1)
        if written
        else None
    )
    seed = randbelow(1_000_000) if seed is None else seed
    n = _whole("The number of samples", form.n, 1, MAX_SAMPLES)
    return Asked(sample=sample, n=n, temperature=float(temperature), seed=seed, max_new_tokens=limit, template=template)


def _whole(name: str, value: Any, low: int, high: int) -> int:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not low <= value <= high or value != int(value):
        raise DataError(f"{name} {value} is not an integer from {low} to {high}")
    return int(value)


def _rewards(form: Form, sample: Sample) -> list[str]:
    """The chosen rewards, else the accuracy of the task and the format."""
    chosen = [str(name) for name in form.rewards or ()]
    if unknown := [name for name in chosen if name not in CHOSEN_REWARDS]:
        raise DataError(f'There is no reward "{unknown[0]}" here')
    return chosen or [task_of(sample).kind.accuracy, "format"]
