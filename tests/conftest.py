"""What all tests share: no network, one thread (the tests' models are too small for two), the repository's root."""

import os
import sys
from pathlib import Path

import pytest
from browser import browser, open_page, page  # noqa: F401  # fixtures of the tests with a browser
from vllm_servers import vllm_python, vllm_server  # noqa: F401

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


DEVICES = ("cpu", pytest.param("cuda", marks=pytest.mark.gpu))


@pytest.fixture(params=DEVICES)
def device(request, monkeypatch):
    """Where a test's model lies: the CPU in every run, a GPU too with `pytest -m gpu`."""
    import torch

    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device, and torch.cuda.is_available() is False")
        for backend in (torch.backends.cuda.matmul, torch.backends.cudnn):  # float32 is compared, not TF32
            monkeypatch.setattr(backend, "allow_tf32", False)
    return torch.device(request.param)


@pytest.fixture(params=DEVICES)
def session_device(request):
    """The same for whole runs and weights in 4 or 8 bits, which take the GPU of the machine where there is one."""
    import torch

    if (request.param == "cuda") != torch.cuda.is_available():
        there = "a" if torch.cuda.is_available() else "no"
        pytest.skip(f"a run takes the machine's own device, and {there} CUDA device is there")
    return torch.device(request.param)
