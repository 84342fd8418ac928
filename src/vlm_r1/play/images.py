"""The images of the page: what was uploaded, generated scenes as examples, and those of one folder."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from vlm_r1.config import ScenesSource
from vlm_r1.data.draw import draw_boxes, fitting_scale
from vlm_r1.data.images import ImageFinder
from vlm_r1.data.scenes import load_scenes
from vlm_r1.errors import DataError, RowError, UserError, shown
from vlm_r1.image_file import decode
from vlm_r1.records import LabelledBox, Sample, SampleImage

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")
"""Images that a browser shows."""

LISTED = 1000
"""Images of a folder that are offered; the path of any other can be typed."""

MAX_SIDE = 1024
"""Pixels: larger images are shown at this size when boxes are drawn on them."""

_EXAMPLES = (
    ("in_domain", "attribute", 0),
    ("in_domain", "attribute", 1),
    ("out_of_domain", "superlative", 0),
    ("in_domain", "detect", 3),
    ("in_domain", "list", 4),
    ("in_domain", "count", 5),
)
"""Split, kind of question and number of the image."""


def example_scenes() -> list[Sample]:
    """One question about each of a few generated scenes."""
    return [
        load_scenes(ScenesSource(split=split, n=number + 1, questions={kind: 1.0}))[number]  # type: ignore[arg-type]
        for split, kind, number in _EXAMPLES
    ]


@dataclass(slots=True)
class Images:
    """Images under one private folder, and a folder of the user's that none is taken from outside of.

    Example: `Images(folder, image_root=Path("photos")).from_root("2024/beach.jpg")` is a copy under `folder`.
    """

    folder: Path
    image_root: Path | None = None
    _finder: ImageFinder | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.image_root is not None:
            if not self.image_root.is_dir():
                raise UserError(f"--image-root {self.image_root}: is not a folder; name one that holds images")
            self._finder = ImageFinder(self.image_root)

    def listed(self) -> list[str]:
        """The first `LISTED` images of the image root, relative to it; none that leads out of it."""
        if self.image_root is None or self._finder is None:
            return []
        found: list[str] = []
        for where, folders, files in os.walk(self.image_root):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(files):
                if not name.lower().endswith(ENDINGS):
                    continue
                name = Path(where, name).relative_to(self.image_root).as_posix()
                with suppress(RowError):  # a link that leads out, or nowhere
                    self._finder.find(name)
                    found.append(name)
                if len(found) == LISTED:
                    return found
        return found

    def from_root(self, name: str) -> Path:
        """A copy, under the private folder, of an image of the image root.

        Raises `DataError` for a path that leaves the root by any way, that does not exist, or that is not an image.
        """
        if self._finder is None:
            raise DataError("There is no folder of images; start the playground with --image-root FOLDER")
        if name.startswith(("data:", "http:", "https:")):
            raise DataError("Name a file of the folder")
        try:
            path = self._finder.find(name).path
        except RowError as error:
            if any(fault.kind == "image_outside_root" for fault in error.faults):
                raise DataError(f"{shown(name)} leads out of {self.image_root}: pick an image inside it") from None
            raise DataError(f"There is no image {shown(name)} in {self.image_root}") from None
        if path is None:
            raise DataError("Name a file of the folder")
        self.checked(path)
        copy = self.folder / "folder" / uuid.uuid4().hex / path.name
        copy.parent.mkdir(parents=True)
        shutil.copyfile(path, copy)
        return copy

    def uploaded(self, value: Mapping[str, Any] | None) -> tuple[SampleImage, Image.Image]:
        """The image that the page holds, also decoded.

        Raises `DataError` where there is none, it is not of the private folder, is broken or too large.
        """
        if not value or not value.get("path"):
            raise DataError("There is no image: upload one, or pick one of those below")
        path = Path(str(value["path"])).resolve()
        if not path.is_relative_to(self.folder) or not path.is_file():
            raise DataError("This image was not uploaded here; upload it again")
        return SampleImage(path=path), self.checked(path, str(value.get("orig_name") or path.name))

    def checked(self, path: Path, name: str | None = None) -> Image.Image:
        """The decoded image. Raises `DataError`, naming the file alone, for one that is broken or too large."""
        try:
            return decode(path, name or path.name)
        except RowError as error:
            raise DataError(f"The {error.faults[0].what}. Take another one") from None

    def draw(self, image: Image.Image, true: Sequence[LabelledBox], predicted: Sequence[LabelledBox]) -> Path:
        """An image file with boxes (pixels of `image`) drawn in: PNG for small images, else JPEG.

        Labels are written only where there are several boxes of a kind.
        """
        if max(len(true), len(predicted)) < 2:
            true, predicted = ([LabelledBox(box=item.box) for item in items] for items in (true, predicted))
        scale = min(float(fitting_scale(image.size)), MAX_SIDE / max(image.size))
        drawn = draw_boxes(image, true, predicted, scale=scale)
        ending = "png" if drawn.width * drawn.height <= 200_000 else "jpg"
        path = self.folder / "answers" / f"{uuid.uuid4().hex}.{ending}"
        path.parent.mkdir(exist_ok=True)
        drawn.save(path, quality=90)
        return path
