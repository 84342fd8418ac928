"""The one door for image files: which formats are read, how large an image may be, and which way up it is shown."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from vlm_r1.errors import Fault, RowError, shown

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""What is read, told by a file's content whatever its name says; Pillow has more decoders, one of which starts another
program (EPS)."""

MAX_PIXELS = 100_000_000
"""An image with more pixels than this is refused before it is decoded (a decompression bomb)."""

_TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
"""EXIF orientation -> what turns the image upright (a name of `PIL.Image.Transpose`)."""


def read_size(source: Path | bytes, name: str | None = None) -> tuple[int, int]:
    """(width, height) as shown, read from the header of an image file or its bytes. Raises as `decode`."""
    with _opened(source, name) as opened:
        return opened.size[::-1] if _orientation(opened) >= 5 else opened.size


def decode(source: Path | bytes, name: str | None = None) -> Image.Image:
    """An image file or its bytes as RGB, turned as its EXIF orientation says; its size is that of `read_size`.

    `name` is what errors call it (default: the path). Raises `RowError` with one fault for a file that is missing,
    damaged, of another format or over `MAX_PIXELS`.
    """
    from PIL import Image

    with _opened(source, name) as opened:
        size, orientation = opened.size, _orientation(opened)  # before decoding, which may find others
        image = opened.convert("RGB")
        if image.size != size:
            raise ValueError(f"its header says {size[0]}x{size[1]} pixels and it holds {image.width}x{image.height}")
        return image if orientation == 1 else image.transpose(Image.Transpose[_TURNS[orientation]])


@contextmanager
def readable(name: str) -> Iterator[None]:
    """Turns what a decoder raises on the image called `name` into a `RowError` with one fault."""
    from PIL import Image, UnidentifiedImageError

    try:
        yield
    except RowError:
        raise
    except FileNotFoundError:
        raise _fault("image_missing", f"image {name} does not exist") from None
    except Image.DecompressionBombError:
        raise _too_large(name) from None
    except UnidentifiedImageError:
        formats = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
        raise _fault("image_unreadable", f"image {name} cannot be read (not a {formats} file)") from None
    except Exception as error:  # on damaged bytes, decoders raise whatever they happen upon
        why = (error.strerror if isinstance(error, OSError) else None) or f"{type(error).__name__}: {error}"
        raise _fault("image_unreadable", f"image {name} cannot be read ({shown(why, 200)[1:-1]})") from None


@contextmanager
def _opened(source: Path | bytes, name: str | None) -> Iterator[Image.Image]:
    from PIL import Image

    name = shown(name or str(source), 200) if name or isinstance(source, Path) else "bytes"
    file = source if isinstance(source, Path) else io.BytesIO(source)
    with readable(name), Image.open(file, formats=FORMATS) as opened:
        if opened.width * opened.height > MAX_PIXELS:
            raise _too_large(f"{name} of {opened.width}x{opened.height}")
        yield opened


def _orientation(opened: Image.Image) -> int:
    """How an image that is not decoded yet lies, as EXIF counts: 1 upright, 2 to 4 turned or mirrored, 5 to 8 on its
    side."""
    from PIL import Image

    if hasattr(opened, "tag_v2"):  # Pillow turns a TIFF, and its size, by itself
        return 1
    try:
        # A PNG's own `getexif` decodes the whole file where the header has none, to look behind the pixels.
        orientation = Image.Image.getexif(opened).get(0x0112)
    except Exception:
        return 1  # a damaged EXIF block turns nothing, as in browsers
    return orientation if isinstance(orientation, int) and orientation in _TURNS else 1


def _fault(kind: str, what: str) -> RowError:
    return RowError([Fault(kind=kind, what=what, remedy="Replace the file, or drop the row")])


def _too_large(name: str) -> RowError:
    what = f"image {name} is over the limit of {MAX_PIXELS} pixels"
    return RowError([Fault(kind="image_too_large", what=what, remedy="Make it smaller (boxes too), or drop the row")])
