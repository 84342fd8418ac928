"""What all tests share: no network, one thread (the tests' models are too small for two), the repository's root."""

import os
import sys
from pathlib import Path

import pytest
from browser import browser, open_page, page  # noqa: F401  # fixtures of the tests with a browser

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "agg")


@pytest.fixture(scope="session")
def root() -> Path:
    return Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _denormals():
    """A training session flushes denormal floats to zero in its process; hypothesis cannot work like that."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)
