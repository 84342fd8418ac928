"""The one door for clips: which frames they have, and what one looks like.

Animated GIF, WebP and PNG files are read by Pillow; everything else by PyAV, which comes with the extra "video".
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm_r1.errors import Fault, RowError, shown
from vlm_r1.image_file import MAX_PIXELS, readable

if TYPE_CHECKING:
    from PIL import Image

ANIMATED = (".gif", ".webp", ".png", ".apng")
"""Names of files that Pillow plays."""
FRAME_S = 0.1
"""Seconds that a frame lasts where its file says nothing."""


def frame_times(path: Path, at_most: int) -> list[float]:
    """The seconds of up to `at_most` frames of a clip, spread evenly from the first to the last.

    Raises `RowError` with one fault for a file that is missing, damaged or no clip.
    """
    with _clip(path) as times:
        known = list(times())
    if not known:
        raise _fault(path, "has no frames")
    count = min(at_most, len(known))
    places = [round(i * (len(known) - 1) / max(1, count - 1)) for i in range(count)]
    return [known[place] for place in places]


def decode_frame(path: Path, seconds: float) -> Image.Image:
    """The frame that a clip shows at a time, as RGB. Raises `RowError` as `frame_times` does."""
    if path.suffix.lower() in ANIMATED:
        from PIL import Image

        with readable(shown(str(path), 200)), Image.open(path, formats=("GIF", "WEBP", "PNG")) as opened:
            _check(path, opened.width, opened.height)
            for number, start in enumerate(_starts(opened)):
                if start > seconds + 1e-6:
                    break
                last = number
            opened.seek(last)
            return opened.convert("RGB")
    with _container(path) as (container, stream):
        container.seek(int(seconds / stream.time_base), stream=stream)
        found = None
        for frame in container.decode(stream):
            if found is not None and frame.time > seconds + 1e-6:
                break
            found = frame
        if found is None:
            raise _fault(path, f"has no frame at {seconds:g} s")
        return found.to_image()  # type: ignore[no-any-return]


@contextmanager
def _clip(path: Path) -> Iterator[Any]:
    """A function that gives the seconds of all frames."""
    if path.suffix.lower() in ANIMATED:
        from PIL import Image

        with readable(shown(str(path), 200)), Image.open(path, formats=("GIF", "WEBP", "PNG")) as opened:
            _check(path, opened.width, opened.height)
            yield lambda: _starts(opened)
        return
    with _container(path) as (container, stream):
        yield lambda: (float(packet.pts * stream.time_base) for packet in _packets(container, stream))


def _packets(container: Any, stream: Any) -> list[Any]:
    return sorted((p for p in container.demux(stream) if p.pts is not None and p.size), key=lambda packet: packet.pts)


def _starts(opened: Image.Image) -> Iterator[float]:
    start = 0.0
    for number in range(getattr(opened, "n_frames", 1)):
        opened.seek(number)
        opened.load()
        yield start
        start += (opened.info.get("duration") or 1000 * FRAME_S) / 1000


@contextmanager
def _container(path: Path) -> Iterator[tuple[Any, Any]]:
    try:
        import av
    except ImportError:
        raise _fault(path, "needs PyAV", "pip install vlm-r1[video], or write the row's frames as images") from None
    try:
        with av.open(str(path), metadata_errors="ignore") as container:
            if not container.streams.video:
                raise _fault(path, "holds no video")
            stream = container.streams.video[0]
            _check(path, stream.width, stream.height)
            yield container, stream
    except RowError:
        raise
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise _fault(path, f"cannot be read ({shown(str(error), 160)[1:-1]})") from None


def _check(path: Path, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise _fault(path, f"has {width}x{height} pixels, over the limit of {MAX_PIXELS}")


def _fault(path: Path, what: str, remedy: str = "Replace the file, or drop the row") -> RowError:
    return RowError([Fault(kind="image_unreadable", what=f"clip {shown(str(path), 200)} {what}", remedy=remedy)])
