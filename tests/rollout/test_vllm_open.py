"""Which servers a run uses: named ones are looked at before they are trusted."""

import pytest
from fake_vllm import FakeVLLM
from support import recipe, tiny

from vlm_r1.distributed.processes import ALONE
from vlm_r1.errors import ConfigError, EngineError
from vlm_r1.rollout.vllm_open import open_vllm


def opened(tmp_path, *urls, **rollout):
    settings = recipe(tmp_path, tmp_path / "run", rollout={"engine": "vllm", "servers": list(urls)} | rollout)
    return open_vllm(tiny(), settings, ALONE)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("127.0.0.1:8000", "is not an address"),
        ("file:///etc/passwd", "is not an address"),
        ("http://node7:8000", "node7 may be another machine"),
    ],
)
def test_an_address_that_cannot_work_is_refused(tmp_path, url, told):
    with pytest.raises(ConfigError, match=told):
        opened(tmp_path, url).__enter__()


def test_a_server_that_does_not_answer_is_named(tmp_path):
    with pytest.raises(EngineError, match=r"http://127.0.0.1:9: is not a vLLM server that answers"):
        opened(tmp_path, "http://127.0.0.1:9").__enter__()


def test_weights_go_through_the_named_folder(tmp_path):
    loaded = tiny()
    with FakeVLLM(tiny()) as server:
        with opened(tmp_path, server.url, weights_dir=str(tmp_path / "wire")) as engine:
            engine.sync(loaded.policy.named_parameters(), 0)
            assert str(engine.files.root).startswith(str(tmp_path / "wire"))
            assert [folder.name for folder in engine.files.root.iterdir()] == ["v0"]
        assert list((tmp_path / "wire").iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EngineError, match=r"rollout.weights_dir: .*file.* cannot be written"):
        opened(tmp_path, "http://127.0.0.1:9", weights_dir=str(tmp_path / "file" / "below")).__enter__()


def test_a_server_elsewhere_that_keeps_its_weights_needs_no_shared_folder(tmp_path):
    settings = recipe(tmp_path, tmp_path / "run", rollout={"engine": "vllm", "servers": ["http://node7.invalid:8000"]})
    with pytest.raises(EngineError, match="is not a vLLM server that answers"):
        open_vllm(tiny(), settings, ALONE, trains=False).__enter__()
