"""A real vLLM server that the tests marked `vllm` share: started once, with the shipped tiny model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

SECRET = "a-secret-of-the-tests"


@dataclass(frozen=True)
class SharedServer:
    """Where it answers, the bearer token, the folder it takes weights from, and its process.

    A test that loads weights puts those of the tiny model back; one that kills it starts it again.
    """

    url: str
    secret: str
    weights_dir: Path
    process: Any


@pytest.fixture(scope="session")
def vllm_python() -> str:
    """The Python of vLLM's environment; without one the test is skipped."""
    from vlm_r1.errors import EngineError
    from vlm_r1.rollout.vllm_launch import find_python

    try:
        return find_python(None)
    except EngineError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def vllm_server(vllm_python, tmp_path_factory):
    """The shared server."""
    from vlm_r1.models.load import resolve_path
    from vlm_r1.rollout.vllm_launch import Launch
    from vlm_r1.rollout.vllm_server import ServerProcess, free_port

    folder = tmp_path_factory.mktemp("vllm")
    weights = folder / "weights"
    weights.mkdir()
    launch = Launch(
        model=resolve_path("tiny"),
        dtype="float32",
        port=free_port(),
        max_model_len=1024,
        images=4,
        max_num_seqs=64,
        weights_dir=str(weights),
        secret=SECRET,
    )
    process = ServerProcess(launch, vllm_python, folder / "server.log")
    process.start()
    try:
        process.wait_ready()
        yield SharedServer(process.url, SECRET, weights, process)
    finally:
        process.kill()
