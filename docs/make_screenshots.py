"""Take the screenshots of docs/: `python docs/make_screenshots.py RUN SECOND` writes four PNG files there.

RUN and SECOND are run folders of the demo (`make demo`, and `vlm-r1 demo --seed 1 --out ...`); RUN has its rollouts of
step 60 and is called by a name that readers know, such as runs/demo. A Chromium is needed: $CHROMIUM, or
/usr/bin/chromium.
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, expect, sync_playwright

OUT = Path(__file__).resolve().parent
GAP = 8


@contextmanager
def served(*arguments: str) -> Iterator[str]:
    """The address of a page that the command line serves."""
    command = [sys.executable, "-u", "-m", "vlm_r1", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            found = next(match for line in process.stdout or () if (match := re.search(r"http://\S+", line)))
            yield found[0]
        finally:
            process.terminate()


def viewer_answers(browser: Browser, run: Path) -> None:
    """The answers of step 60, the best group first."""
    with served("view", str(run)) as url:
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.goto(url)
        page.get_by_role("tab", name="Answers", exact=True).click()
        page.get_by_role("radio", name="Best first").check()
        step = page.get_by_label("number input for Step")
        step.fill("60")
        step.press("Enter")
        expect(page.locator("#answers-strip")).to_contain_text("Step 60:")
        page.locator("#answers-strip .vr-thumb").nth(6).click()
        save(page, "viewer-answers")


def viewer_training(browser: Browser, runs: list[Path]) -> None:
    """Curves of two runs, with the values of one step under the mouse."""
    with served("view", *map(str, runs)) as url:
        page = browser.new_page(viewport={"width": 1280, "height": 960})
        page.goto(url)
        chart = page.locator("#training svg.vr-chart").first
        expect(chart).to_be_visible()
        page.wait_for_timeout(2000)
        chart.hover()
        save(page, "viewer-training")


def playground(browser: Browser, run: Path) -> None:
    """The shipped model before and after the demo."""
    with served("play", "tiny", str(run / "final")) as url:
        page = browser.new_page(viewport={"width": 1360, "height": 890})
        page.goto(url)
        expect(page.locator("#ask")).to_be_enabled(timeout=60_000)
        page.locator("#greedy input").uncheck()
        samples = page.locator("#samples input[type=number]")
        expect(samples).to_be_enabled()
        samples.fill("4")
        samples.press("Tab")
        page.locator("#ask").click()
        expect(page.locator("#status")).to_contain_text("Done", timeout=60_000)
        page.wait_for_timeout(1000)
        save(page, "playground")


def report(browser: Browser, run: Path) -> None:
    """The report on a screen, and two views of a phone in the dark beside it."""
    url = (run / "report.html").resolve().as_uri()
    wide = browser.new_page(viewport={"width": 1060, "height": 1700})
    wide.goto(url)
    phone = browser.new_context(viewport={"width": 390, "height": 996}, color_scheme="dark").new_page()
    phone.goto(url)
    views = []
    for heading in ("Held-out images", "Curves"):
        phone.get_by_role("heading", name=heading, exact=True).evaluate("e => e.scrollIntoView()")
        phone.wait_for_timeout(500)
        views.append(Image.open(io.BytesIO(phone.screenshot())))
    screen = Image.open(io.BytesIO(wide.screenshot()))
    heights = [(screen.height - GAP) // 2] * 2
    whole = Image.new("RGB", (screen.width + GAP + views[0].width, screen.height), (130, 144, 160))
    whole.paste(screen, (0, 0))
    for i, view in enumerate(views):
        part = view.crop((0, 0, view.width, heights[i]))
        whole.paste(part, (screen.width + GAP, i * (heights[i] + GAP)))
    whole.save(OUT / "report.png", optimize=True)


def save(page: Any, name: str) -> None:
    """Write what the tab shows."""
    page.wait_for_timeout(1000)
    Image.open(io.BytesIO(page.screenshot())).convert("RGB").save(OUT / f"{name}.png", optimize=True)


def main() -> None:
    """Take all of them."""
    run, second = map(Path, sys.argv[1:3])
    expect.set_options(timeout=60_000)  # of a busy machine
    with sync_playwright() as playwright:
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        chromium = os.environ.get("CHROMIUM") or "/usr/bin/chromium"
        browser = playwright.chromium.launch(executable_path=chromium, args=sandbox)
        viewer_answers(browser, run)
        viewer_training(browser, [run, second])
        playground(browser, run)
        report(browser, run)
        browser.close()


if __name__ == "__main__":
    main()
