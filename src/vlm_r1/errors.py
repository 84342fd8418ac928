"""What a user did wrong, said so that they can fix it.

Every message names the thing (file and line, key, sample id), what was wrong with it, and what to do.
The command line prints the message alone and exits with 2. A bug in the package is never one of these.
"""

from __future__ import annotations

import difflib
import errno
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


class UserError(Exception):
    """Base of all errors that a user can act on. `together`: all processes of a run raise this one, and one says it."""

    together = False


class ConfigError(UserError):
    """A recipe or an override is wrong: names the key."""


class DataError(UserError):
    """A data file, a row or an image is wrong: names the file and, where there is one, the line."""


class ModelError(UserError):
    """A model folder or hub id cannot be used."""


class CheckpointError(UserError):
    """A run folder or checkpoint cannot be read or written."""


class ClusterError(UserError):
    """The processes of a run cannot work together: names the rank."""


class EngineError(UserError):
    """A rollout engine cannot answer, or does not answer as the trainer would: names the server and what to do."""


class DivergenceError(UserError):
    """Answers, loss, gradient or weights are not finite: names the step, the layer and the last good checkpoint."""


class Stopped(SystemExit):
    """A signal asked the process to end; the exit code is the shells': 143 for SIGTERM, 129 for SIGHUP."""

    code: int

    @classmethod
    def by(cls, number: int) -> Stopped:
        """What the signal of this number asks for."""
        return cls(128 + number)


class StudyError(UserError):
    """A study of `vlm-r1 lab` cannot be run or measured: names the study and the run."""


class RewardError(UserError):
    """A reward is unknown, cannot be imported, or raised on a sample: names the reward and the sample."""


def writing_remedy(error: BaseException) -> str:
    """What to do where the system refused to write, by its error number (or the one that a Rust library's text holds).

    >>> writing_remedy(PermissionError(13, "Permission denied"))
    'make the folder writable or set run.dir to one that is'
    """
    told = re.search(r"(?:os error|Errno) (\d+)", str(error))
    number = getattr(error, "errno", None) or (int(told[1]) if told else None)
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "make the folder writable or set run.dir to one that is"
    if number in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG):
        return "set run.dir to a folder, or to a name that is free"
    return "free some space or set run.dir to another disk"


def nearest(name: str, valid: Iterable[str]) -> str:
    """The end of an "unknown name" message: the nearest valid name, then all of them.

    >>> nearest("iuo", ["iou", "format"])
    'did you mean "iou"? (valid: format, iou)'
    """
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f'did you mean "{close[0]}"? ' if close else ""
    return f"{hint}(valid: {', '.join(names)})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that is wrong with a row: the kind, what was found, and what to do about it.

    Example: `Fault(kind="box_reversed", what="box [9, 0, 1, 5] is reversed", remedy="Write [x1, y1, x2, y2]")`.
    """

    kind: str
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.what}. {self.remedy}"


class RowError(DataError):
    """The faults of one row or value, raised as one message."""

    def __init__(self, faults: Sequence[Fault], where: str = "") -> None:
        self.faults = tuple(faults)
        prefix = f"{where}: " if where else ""
        super().__init__(prefix + "; ".join(str(fault) for fault in faults))


def shown(value: object, limit: int = 80) -> str:
    """A value as it appears in a message: JSON-like, cut at `limit` characters, what cannot be printed as an escape."""
    try:
        text = value if isinstance(value, str) else repr(value)
    except (RecursionError, ValueError):  # the latter: an integer of thousands of digits
        text = "a deeply nested value or a huge number"
    text = " ".join(text.split())
    text = text if len(text) <= limit else text[: limit - 3] + "..."
    text = "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)
    return f'"{text}"' if isinstance(value, str) else text


def half_character(value: object) -> str | None:
    """Where a text, or plain values with texts, holds half a character (a lone surrogate): words for a message.

    JSON and YAML can write one as an escape; UTF-8, tokenizers and tables of answers take none.

    >>> half_character({"problem": "\\ud83d"})
    'half a character (a lone surrogate) in "{"problem": "\\\\ud83d"}"'
    """
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        near = error.object[max(0, error.start - 20) : error.end + 20]
        return f"half a character (a lone surrogate) in {shown(near)}"
    return None
