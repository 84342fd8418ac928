"""report.html in a real browser: no test may log an error or ask for anything but the page itself."""

import io
import json
import random
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise

import pytest
from PIL import Image

from vlm_r1.records import LabelledBox
from vlm_r1.report.html import write_report
from vlm_r1.runtime.runlog import RunLog, boxes_to_json

LIMIT = 5_000_000
LABELS = ["person", "traffic light", "somebody in a very long yellow raincoat"]

SIDEWAYS = """() => {
  const page = document.documentElement, wide = page.clientWidth + 1
  const out = [...document.querySelectorAll('body *')]
    .filter(e => e.getBoundingClientRect().right > wide && !e.closest('.scroll, svg'))
  return [page.scrollWidth > wide, out.map(e => e.tagName + ' ' + e.textContent.slice(0, 40))]
}"""

FAINT = """() => {
  const parts = text => text.match(/[0-9.]+/g).map(Number)
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0)
  const below = e => { for (; e; e = e.parentElement) {
    const found = parts(getComputedStyle(e).backgroundColor)
    if (found.length < 4 || found[3] > 0) return found
  } }
  const seen = {}
  for (const e of document.querySelectorAll('body *')) {
    if (e.closest('.pic') || ![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())) continue
    const style = getComputedStyle(e), svg = e.namespaceURI.endsWith('svg')
    const [a, b] = [light(parts(svg ? style.fill : style.color)), light(below(svg ? e.closest('figure') : e))]
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)
    const name = e.tagName + '.' + (e.getAttribute('class') || '')
    seen[name] = Math.min(seen[name] ?? 99, ratio)
  }
  return seen
}"""


def photo(rng, width, height):
    """Noise, which JPEG cannot make small: the worst image for a page's size."""
    noise = Image.effect_noise((width // 2, height // 2), 90 + rng.random())
    image = noise.resize((width, height), Image.Resampling.NEAREST).convert("RGB")
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=90)
    return sink.getvalue()


def some_boxes(rng, n, width, height):
    corners = [(rng.uniform(0, width * 0.8), rng.uniform(0, height * 0.8)) for _ in range(n)]
    boxes = [(x, y, x + rng.uniform(9, width / 4), y + rng.uniform(9, height / 4)) for x, y in corners]
    return boxes_to_json([LabelledBox(box=box, label=rng.choice(LABELS)) for box in boxes])


def heavy_row(rng, width=900, height=700, boxes=80):
    thought = "I look at each thing in the image, one after the other.\n\n" * 150
    return {
        "task": "ovd",
        "question": "detect " + ", ".join(LABELS * 6),
        "completion": thought,
        "think": thought,
        "answer": json.dumps([{"bbox_2d": [1, 2, 3, 4], "label": "person"}] * 60),
        "failure": "a_kind_of_failure_with_a_long_name",
        "image": photo(rng, width, height),
        "image_width": width,
        "image_height": height,
        "true_boxes": some_boxes(rng, 3, width, height),
        "pred_boxes": some_boxes(rng, boxes, width, height),
        "n_tokens": 4000,
    }


def heavy_run(folder):
    """All that makes a page large or wide: noise as images, long texts and names, many boxes, splits and warnings."""
    rng, log = random.Random(0), RunLog(folder)
    (folder / "config.yaml").write_text("method: grpo\nmodel: {path: /a/b/c}\nrun: {seed: 1, steps: 500}\n")
    log.environment()
    for step in range(1, 401):
        values = {"reward": rng.random(), "loss": None if step == 7 else 0.1, "answers/truncated": 0.25}
        values |= {f"rewards/a_part_of_the_reward_number_{i}/mean": rng.random() for i in range(9)}
        values |= {"warnings": [f"step {step}: the policy may be exploiting the reward"]} if step % 40 == 0 else {}
        log.metrics(step, values)
    for step in (100, 200, 300, 400):
        rows = [
            {**heavy_row(rng), "group": group, "source": "photos", "finish": "length", "advantage": 0.5}
            | {"reward": rng.random(), "parts": json.dumps({"a_part_of_the_reward": rng.random()})}
            for group in range(4)
        ]
        log.rollouts(step, rows)
    sizes = [(900, 700), (500, 1400), (1800, 300)]
    asked = [
        heavy_row(rng, *sizes[i % 3], boxes=3) | {"split": split, "sample_id": str(i)}
        for split in ("val", "refcoco_plus_test_a", "out_of_domain")
        for i in range(8)
    ]
    splits = dict.fromkeys(row["split"] for row in asked)
    for phase in ("before", "after"):
        rows = [{**row, "score": rng.random(), "correct": False} for row in asked]
        metrics = {s: {"n": 8, "mAP": 0.25, "failures/a_kind_of_failure_with_a_long_name": 1.0} for s in splits}
        log.evaluation(phase, metrics, rows)
    return folder


@pytest.fixture(scope="module")
def site(run_dir, tmp_path_factory):
    """The address of a server of two pages, `/usual.html` and `/heavy.html`, and their folder."""
    folder = tmp_path_factory.mktemp("pages")
    write_report([run_dir], folder / "usual.html")
    write_report([heavy_run(tmp_path_factory.mktemp("heavy"))], folder / "heavy.html")

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", folder
    server.shutdown()
    server.server_close()


def test_many_large_images_stay_below_the_limit(site):
    text = (site[1] / "heavy.html").read_text()
    assert text.count('href="data:image/') > 20
    assert 2_000_000 < len(text.encode()) < LIMIT


@pytest.mark.parametrize("name", ["usual", "heavy"])
def test_nothing_stands_out_sideways_and_nothing_is_fetched(page, site, name):
    page.goto(f"{site[0]}/{name}.html")
    page.evaluate("document.querySelectorAll('details').forEach(e => e.open = true)")
    for width in (320, 390, 768, 1280):
        page.set_viewport_size({"width": width, "height": 800})
        assert (width, *page.evaluate(SIDEWAYS)) == (width, False, [])
    asked = {url for url in page.watch.requests if not url.startswith("data:")}
    assert asked == {f"{site[0]}/{name}.html"}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_the_contrast_of_wcag_aa(open_page, site, scheme):
    page = open_page(color_scheme=scheme)
    found = {}
    for name in ("usual", "heavy"):
        page.goto(f"{site[0]}/{name}.html")
        page.evaluate("document.querySelectorAll('details').forEach(e => e.open = true)")
        found |= page.evaluate(FAINT)
    assert {"B.up", "SUMMARY.", "PRE.", "LI.", "SPAN.tag", "A.", "text."} <= set(found)
    assert {name: ratio for name, ratio in found.items() if ratio < 4.5} == {}
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(18, 22, 27)"
    assert dark == (scheme == "dark")


@pytest.mark.parametrize("name", ["usual", "heavy"])
def test_those_who_do_not_see_it_are_told(page, site, name):
    page.goto(f"{site[0]}/{name}.html")
    levels = page.evaluate("[...document.querySelectorAll('h1, h2, h3, h4, h5')].map(e => +e.tagName[1])")
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(new <= old + 1 for old, new in pairwise(levels))
    drawn = page.evaluate(
        "[...document.querySelectorAll('svg')].map(e => [e.ariaHidden, e.getAttribute('role'), e.ariaLabel])"
    )
    assert drawn and all(hidden == "true" or (role == "img" and label) for hidden, role, label in drawn)
    labels = [label for _, _, label in drawn if label]
    assert any("before training" in label and "1 true box, 1 predicted" in label for label in labels) == (
        name == "usual"
    )
    assert any(label.startswith("Reward: ") and "at step 1," in label for label in labels)
    assert page.evaluate("document.documentElement.lang") == "en"
    assert page.evaluate("[...document.querySelectorAll('th')].every(e => e.scope)")


def test_keyboard_reaches_links_the_table_and_what_is_folded(open_page, site):
    page = open_page(viewport={"width": 320, "height": 800})
    page.goto(f"{site[0]}/usual.html")
    reached = []
    for _ in range(9):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("[document.activeElement.tagName, document.activeElement.className]"))
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid"
    assert reached[:6] == [["A", ""]] * 6
    assert reached[6:8] == [["DIV", "scroll"], ["SUMMARY", ""]]
    page.locator("summary").first.focus()
    page.keyboard.press("Enter")
    assert page.locator("details[open]").count() == 1
    page.locator("nav a", has_text="Curves").click()
    assert -1 < page.locator("#curves").bounding_box()["y"] < 100
