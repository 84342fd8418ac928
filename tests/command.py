"""The command line, called in this process."""

import pytest

from vlm_r1.cli import main


def run(*arguments: str) -> int:
    """The exit code of `vlm-r1 ARGUMENTS`."""
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    return stopped.value.code or 0
