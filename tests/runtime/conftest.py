"""A tiny model's folder, and no process group left behind."""

import pytest
from support import save_tiny

from vlm_r1.distributed import processes


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(autouse=True)
def _no_process_group():
    """One process that computes in bfloat16 is sharded by one, in a process group that ends with the process."""
    yield
    processes.stop()
