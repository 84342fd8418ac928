"""A tiny model's folder."""

import pytest
from support import save_tiny


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny")
