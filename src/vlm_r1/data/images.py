"""A row's image values as `SampleImage`s: paths that stay under a root, or encoded bytes."""

from __future__ import annotations

import base64
import binascii
import re
from pathlib import Path
from typing import Any

from vlm_r1.errors import Fault, RowError, shown
from vlm_r1.records import SampleImage

_DATA_URL = re.compile(r"^data:[\w/+.-]*;base64,", re.IGNORECASE)
# The first bytes of PNG, JPEG, GIF, WebP and BMP files as base64 shows them.
_BASE64_HEADS = ("iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR", "Qk")


class ImageFinder:
    """Turns the image values of rows into `SampleImage`s; remembers what it has found out about each path.

    `root` is the folder relative paths start from and none may leave, by `..`, as an absolute path or through a
    symbolic link.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._resolved = root.resolve()
        self._paths: dict[str, Path | Fault] = {}
        self._sizes: dict[Path, tuple[int, int] | Fault] = {}

    def find(self, value: Any) -> SampleImage:
        """The image a value stands for, undecoded. Raises `RowError`.

        Values: a path, a `file://` path, a base64 data URL or bare base64, bytes, a PIL image, or an object with
        `bytes`, `path` or `image`.
        """
        if isinstance(value, dict):
            for key in ("bytes", "path", "image"):
                if value.get(key) is not None:
                    return self.find(value[key])
        if isinstance(value, (bytes, bytearray)):
            if not value:
                raise RowError([Fault(kind="image_data", what="image bytes are empty", remedy="Fill them in")])
            return SampleImage(data=bytes(value))
        if isinstance(value, str) and value.strip():
            return self._from_text(value.strip())
        if hasattr(value, "convert") and hasattr(value, "tobytes"):
            return SampleImage(image=value)
        what = f"image {shown(value)} is neither a path nor encoded bytes"
        raise RowError([Fault(kind="image_type", what=what, remedy="Write a path, or leave the key out")])

    def _from_text(self, text: str) -> SampleImage:
        header = _DATA_URL.match(text)
        if header or (len(text) > 100 and text.startswith(_BASE64_HEADS) and "." not in text):
            try:
                data = base64.b64decode(text[header.end() if header else 0 :], validate=True)
            except (binascii.Error, ValueError) as error:
                what = f"image {shown(text, 40)} is not base64 ({error})"
                raise RowError([Fault(kind="image_data", what=what, remedy="Encode it again")]) from None
            return SampleImage(data=data)
        if text.startswith(("http://", "https://")):
            what = f"image {shown(text)} is a web address"
            raise RowError([Fault(kind="image_url", what=what, remedy="Download it and write its path")])
        if text not in self._paths:
            self._paths[text] = self._locate(text.removeprefix("file://"))
        found = self._paths[text]
        if isinstance(found, Fault):
            raise RowError([found])
        return SampleImage(path=found)

    def _locate(self, text: str) -> Path | Fault:
        path = self.root / text
        try:
            resolved = path.resolve()
            inside = resolved.is_relative_to(self._resolved)
            exists = inside and resolved.is_file()
        except (OSError, ValueError, RuntimeError) as error:  # the last: links that lead in a circle
            return Fault(
                kind="image_type", what=f"image {shown(text)} is not a path ({error})", remedy="Correct the path"
            )
        if not inside:
            what = f"image {shown(text)} leaves the image root {self.root}/"
            return Fault(kind="image_outside_root", what=what, remedy="Set image_root to a folder that contains it")
        if not exists:
            what = f"image {shown(text)} does not exist (looked in {self.root}/)"
            return Fault(kind="image_missing", what=what, remedy="Set image_root, or drop the row")
        return path

    def size(self, image: SampleImage) -> tuple[int, int]:
        """Width and height in pixels as the image will be shown, from its header alone. Raises `RowError`."""
        if image.path is None:
            return image.size
        if image.path not in self._sizes:
            try:
                self._sizes[image.path] = image.size
            except RowError as error:
                self._sizes[image.path] = error.faults[0]
        size = self._sizes[image.path]
        if isinstance(size, Fault):
            raise RowError([size])
        return size
