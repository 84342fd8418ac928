"""A real browser for tests of the pages that the package serves: Chromium through playwright.

`page` is one tab with a watch over it: an error on its console, an uncaught exception or a request that leaves
127.0.0.1 fails the test that caused it. `open_page` makes further tabs with other settings (dark, a phone's width).

The browser is `$CHROMIUM`, else /usr/bin/chromium. Without one the tests are skipped, or, where VLM_R1_BROWSER is
"required", fail.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

LOCAL = {"127.0.0.1"}
WITHOUT_HOST = {"data", "blob", "about"}


def executable() -> Path:
    return Path(os.environ.get("CHROMIUM") or "/usr/bin/chromium")


def is_local(url: str) -> bool:
    """Whether a request stays on this machine (or needs none)."""
    parts = urlsplit(url)
    return parts.scheme in WITHOUT_HOST or parts.hostname in LOCAL


class Watch:
    """What happened in one browser context: every request and every error."""

    def __init__(self, context) -> None:
        self.requests: list[str] = []
        self.errors: list[str] = []
        context.on("request", lambda request: self.requests.append(request.url))
        context.on("console", lambda message: self._console(message))
        context.on("weberror", lambda error: self.errors.append(f"uncaught: {error.error}"))
        context.route(lambda url: not is_local(url), lambda route: route.abort())

    def _console(self, message) -> None:
        if message.type == "error":
            self.errors.append(f"{message.text} ({message.location.get('url', '')})")

    @property
    def foreign(self) -> list[str]:
        return [url for url in self.requests if not is_local(url)]

    def check(self) -> None:
        assert not self.foreign, f"requests left 127.0.0.1: {self.foreign}"
        assert not self.errors, f"errors on the console: {self.errors}"


@pytest.fixture(scope="module")
def browser():
    """One browser for the tests of a file: playwright's event loop must not be there when other files run theirs."""
    try:
        from playwright.sync_api import expect, sync_playwright

        found = executable().is_file()
    except ImportError:
        found = False
    if not found:
        reason = f"no browser: playwright and {executable()} (or $CHROMIUM) are needed"
        pytest.fail(reason) if os.environ.get("VLM_R1_BROWSER") == "required" else pytest.skip(reason)
    expect.set_options(timeout=20_000)  # of a busy machine
    with sync_playwright() as playwright:
        sandbox = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        started = playwright.chromium.launch(executable_path=executable(), args=sandbox)
        yield started
        started.close()


@pytest.fixture
def open_page(browser) -> Iterator[Callable]:
    """`open_page(color_scheme="dark", viewport={"width": 390, "height": 844})`: a tab in a context of its own.

    The tab carries its `Watch` as `page.watch`, which is checked when the test ends.
    """
    with contextlib.ExitStack() as opened:
        watches = []

        def make(**settings):
            context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}} | settings)
            opened.callback(context.close)
            watches.append(Watch(context))
            page = context.new_page()
            page.set_default_timeout(15_000)
            page.watch = watches[-1]
            return page

        yield make
        for watch in watches:
            watch.check()


@pytest.fixture
def page(open_page):
    return open_page()
