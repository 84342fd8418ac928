"""A row's video: a clip, of which some frames are taken, or its frames one by one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from vlm_r1.data.images import ImageFinder
from vlm_r1.data.shapes import RawRow
from vlm_r1.errors import Fault, RowError, shown
from vlm_r1.records import SampleImage
from vlm_r1.video_file import frame_times


def read_video(raw: RawRow, finder: ImageFinder, max_frames: int) -> tuple[list[SampleImage], tuple[float, ...]]:
    """The frames of a row's video and their seconds.

    A clip's path gives up to `max_frames`, spread evenly; a list of frames has `times` (seconds of each) or `fps`
    beside it. Raises `RowError` with every fault.
    """
    if raw.images:
        raise _fault(f"the row has a video and {len(raw.images)} images", "Keep one of them")
    if isinstance(raw.video, (list, tuple)):
        frames = [finder.find(value) for value in raw.video]
        if not frames:
            raise _fault("video is an empty list", "Write a clip's path, or its frames")
        return frames, _times(raw, len(frames))
    clip = finder.find(raw.video).path
    if clip is None:
        raise _fault(f"video {shown(raw.video, 40)} is not a path", "Write a clip's path, or a list of its frames")
    times = frame_times(Path(clip), max_frames)
    return [SampleImage(path=clip, at=seconds) for seconds in times], tuple(times)


def _times(raw: RawRow, count: int) -> tuple[float, ...]:
    if raw.times is None and _is_number(raw.fps) and raw.fps > 0:
        return tuple(i / raw.fps for i in range(count))
    given = raw.times if isinstance(raw.times, (list, tuple)) else []
    if len(given) != count or not all(map(_is_number, given)) or list(given) != sorted(given):
        what = f"times is {shown(raw.times, 60)} for {count} frames"
        raise _fault(what, 'Write the second of each frame in order, or "fps"')
    return tuple(float(seconds) for seconds in given)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


def _fault(what: str, remedy: str) -> RowError:
    return RowError([Fault(kind="video", what=what, remedy=remedy)])
