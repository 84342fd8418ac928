"""What the local pages share: a folder that is private and goes, in whatever way the server ends."""

import os
import signal
import sys

import pytest

from vlm_r1.errors import UserError
from vlm_r1.report.web import css_of, private_folder, require_gradio


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch):
    for name in ("GRADIO_ANALYTICS_ENABLED", "HF_HUB_DISABLE_TELEMETRY", "no_proxy"):
        monkeypatch.setenv(name, os.environ.get(name, ""))


@pytest.mark.parametrize("before", [None, "/elsewhere"])
@pytest.mark.parametrize("end", [None, KeyboardInterrupt, signal.SIGTERM])
def test_the_folder_is_the_users_alone_and_is_deleted_however_it_ends(monkeypatch, before, end):
    monkeypatch.delenv("GRADIO_TEMP_DIR", raising=False)
    if before:
        monkeypatch.setenv("GRADIO_TEMP_DIR", before)
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises((KeyboardInterrupt, SystemExit, StopIteration)), private_folder() as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
        assert os.environ["GRADIO_TEMP_DIR"] == str(folder)
        (folder / "inner").mkdir()
        (folder / "inner" / "upload.png").write_bytes(b"x")
        if end is signal.SIGTERM:
            os.kill(os.getpid(), end)
        raise end or StopIteration
    assert not folder.exists() and os.environ.get("GRADIO_TEMP_DIR") == before
    assert signal.getsignal(signal.SIGTERM) is handler


def test_gradio_is_told_to_report_nothing_and_missed_by_name(monkeypatch):
    assert require_gradio().__name__ == "gradio"
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
    assert "127.0.0.1" in os.environ["no_proxy"].split(",")
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UserError, match=r"pip install 'vlm-r1\[ui\]'"):
        require_gradio()


def test_a_pages_rules_come_after_the_shared_ones():
    assert css_of("h1 {}").endswith("h1 {}") and "--true" in css_of()
