"""A tiny model's folder, and sessions on it."""

from contextlib import ExitStack

import pytest
from support import recipe, save_tiny

from vlm_r1.runtime.session import open_session


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def session(model_folder, tmp_path):
    """`session(rl={...}, ...)`: an open session of a run on scenes."""
    with ExitStack() as stack:
        yield lambda **sections: stack.enter_context(open_session(recipe(model_folder, tmp_path / "run", **sections)))
