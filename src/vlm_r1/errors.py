"""What a user did wrong, said so that they can mend it.

Every message names the thing (file and line, key, sample id), what was wrong with it, and what to do.
The command line prints the message alone and exits with 2. A bug in the package is never one of these.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Base of all errors that a user can act on."""


class ConfigError(UserError):
    """A recipe or an override is wrong: names the key."""


class DataError(UserError):
    """A data file, a row or a picture is wrong: names the file and, where there is one, the line."""


class ModelError(UserError):
    """A model folder or hub id cannot be used."""


class CheckpointError(UserError):
    """A run folder or checkpoint cannot be read or written."""


class RewardError(UserError):
    """A reward is unknown, cannot be imported, or raised on a sample: names the reward and the sample."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """The end of an "unknown name" message: the nearest valid name, then all of them.

    >>> nearest("iuo", ["iou", "format"])
    'did you mean "iou"? (valid: format, iou)'
    """
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f'did you mean "{close[0]}"? ' if close else ""
    return f"{hint}(valid: {', '.join(names)})"
