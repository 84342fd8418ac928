"""The served page in a real browser with the tiny model: no test may log an error or ask a server but this one."""

import io
import re
from itertools import pairwise
from urllib.request import urlopen

import pytest
from browser import Watch
from PIL import Image, ImageColor

from vlm_r1.data.draw import PREDICTED_COLOR, TRUE_COLOR
from vlm_r1.play.images import Images
from vlm_r1.play.page import build_page, play_css
from vlm_r1.play.playground import Playground
from vlm_r1.prompts.templates import TASKS
from vlm_r1.report.web import launch, private_folder

expect = pytest.importorskip("playwright.sync_api").expect

RECORD = """() => {
    window.seen = [];
    new MutationObserver(() => window.seen.push(document.querySelector('#answers-1 pre.think')?.innerText ?? ''))
        .observe(document.body, {childList: true, subtree: true, characterData: true});
}"""
"""Keeps every state of the first model's thinking."""


@pytest.fixture(scope="module")
def served(speaker, tmp_path_factory):
    """`(address, playground, image root)` of a page with two models."""
    root = tmp_path_factory.mktemp("images")
    Image.new("RGB", (64, 48), "navy").save(root / "navy.png")
    Image.new("RGB", (9, 9)).save(root.parent / "outside.png")
    (root / "link.png").symlink_to(root.parent / "outside.png")
    with private_folder() as folder:
        playground = Playground([speaker, speaker], Images(folder, root))
        built = build_page(playground)
        yield launch(built, folder, css=play_css(), uploads=True), playground, root
        playground.close()
        built.close(verbose=False)
    assert not folder.exists()


@pytest.fixture(scope="module")
def tabs(browser):
    """One browser context for the tests of this file, so that the page's scripts are loaded once."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.watch = Watch(context)
    yield context
    context.close()


@pytest.fixture
def at(tabs, served):
    """The page in a tab of its own."""
    page = tabs.new_page()
    page.set_default_timeout(15_000)
    opened(page, served[0])
    yield page
    page.close()
    tabs.watch.check()


def opened(page, address):
    page.goto(address)
    expect(page.locator("#ask")).to_be_enabled()


def field(page, name):
    return page.locator(f"#{name} textarea, #{name} input:not([type=range])").first


def ask(page):
    page.locator("#ask").click()
    expect(page.locator("#status")).to_contain_text("Done")
    expect(page.locator("#ask")).to_be_enabled()


def refused(page, told):
    page.locator("#ask").click()
    expect(page.locator("#status p.error")).to_contain_text(told)
    expect(page.locator("#ask")).to_be_enabled()


def numbers(text):
    return [float(x) for x in re.findall(r"-?\d+(?:\.\d+)?", text)]


def colored(image, color):
    """The smallest box around all pixels of a colour."""
    wanted = ImageColor.getrgb(color)
    found = [(x, y) for y in range(image.height) for x in range(image.width) if image.getpixel((x, y)) == wanted]
    return [min(x for x, _ in found), min(y for _, y in found), max(x for x, _ in found), max(y for _, y in found)]


def overlap(a, b):
    shared = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def test_the_answers_boxes_are_in_the_pixels_of_the_served_image(at):
    ask(at)
    for column in (at.locator("#answers-1"), at.locator("#answers-2")):
        expect(column.locator(".answer")).to_have_count(1)
        box = numbers(column.get_by_text("In pixels").inner_text())
        written = numbers(column.locator("pre.final").inner_text())
        assert box == pytest.approx([side * 96 / 1000 for side in written], abs=0.06)
        with urlopen(column.locator(".answer img").evaluate("img => img.src")) as file:
            image = Image.open(io.BytesIO(file.read())).convert("RGB")
        assert image.size == (384, 384)
        assert colored(image, PREDICTED_COLOR) == pytest.approx([side * 4 for side in box], abs=2)
        truth = numbers(field(at, "truth").input_value())[:4]
        assert colored(image, TRUE_COLOR) == pytest.approx([side * 4 for side in truth], abs=2)
        iou = numbers(column.locator(".bars").inner_text())[0]
        assert iou == pytest.approx(overlap(box, truth), abs=0.02)


def test_thinking_appears_as_it_is_written_until_stop_or_a_closed_tab_ends_it(at, served, slowly):
    at.evaluate(RECORD)
    at.locator("#ask").click()
    at.wait_for_function("new Set(window.seen).size >= 5")
    seen = list(dict.fromkeys(at.evaluate("window.seen")))
    assert all(later.startswith(earlier.rstrip("…")) for earlier, later in pairwise(seen))
    expect(at.locator("#answers-1 section")).to_have_attribute("aria-busy", "true")
    expect(at.locator("#ask")).to_be_disabled()
    at.locator("#stop").click()
    expect(at.locator("#status")).to_have_text("Stopped.")
    expect(at.locator("#answers-1 header")).to_contain_text("stopped")
    expect(at.locator("#answers-2 header")).to_contain_text("Not asked")
    expect(at.locator("#stop")).to_be_disabled()
    at.locator("#ask").click()
    expect(at.locator("#answers-1 section")).to_have_attribute("aria-busy", "true")
    at.close()  # which ends what the tab asked for
    playground = served[1]
    assert playground.pool.submit(lambda: "free").result(timeout=5) == "free"


def test_answers_say_what_they_are_about_and_go_with_another_image(at, tmp_path):
    ask(at)
    about = at.locator("#answers-1 .about")
    expect(about).to_contain_text("the cyan diamond")
    expect(about).to_contain_text("scene-1.png, 96 x 96 pixels")
    with urlopen(about.locator("img").evaluate("img => img.src")) as file:
        assert Image.open(io.BytesIO(file.read())).size == (96, 96)
    field(at, "question").fill("the red square")
    expect(about).to_contain_text("the cyan diamond")
    at.locator("#scenes button").nth(1).click()
    for column in ("#answers-1", "#answers-2"):
        expect(at.locator(column)).to_contain_text("Answers appear here.")
        expect(at.locator(f"{column} .answer")).to_have_count(0)
    ask(at)
    Image.new("RGB", (80, 60), "navy").save(tmp_path / "sea.jpg")
    at.get_by_label("Remove Image").click()
    expect(at.locator("#answers-1")).to_contain_text("Answers appear here.")
    at.locator("#image input[type=file]").set_input_files(tmp_path / "sea.jpg")
    expect(at.locator("#status")).to_contain_text("80 x 60 pixels")
    ask(at)
    expect(about).to_contain_text("sea.jpg, 80 x 60 pixels")
    field(at, "folder").click()
    at.get_by_role("option", name="navy.png").click()
    expect(at.locator("#answers-1 .answer")).to_have_count(0)


def test_another_image_leaves_answers_that_are_being_written_and_they_say_whose_they_are(at, slowly):
    at.locator("#ask").click()
    expect(at.locator("#answers-1 section")).to_have_attribute("aria-busy", "true")
    at.locator("#scenes button").nth(2).click()
    expect(field(at, "question")).to_have_value("the leftmost object")
    expect(at.locator("#answers-1 .about")).to_contain_text("the cyan diamond")
    at.locator("#stop").click()
    expect(at.locator("#status")).to_have_text("Stopped.")
    expect(at.locator("#answers-1 .about")).to_contain_text("the cyan diamond")


def test_ask_is_in_sight_on_a_small_screen_also_with_a_folder(open_page, served):
    for size in ((1280, 720), (1400, 900), (390, 844)):
        page = open_page(viewport={"width": size[0], "height": size[1]})
        opened(page, served[0])
        expect(page.locator("#folder")).to_be_visible()
        ask = "document.querySelector('#ask').getBoundingClientRect()"
        page.wait_for_function(f"{ask}.height > 0 && {ask}.bottom <= {size[1]}")


def test_several_samples_stand_side_by_side_with_their_rewards_and_texts_stay_texts(at):
    question = "the cyan diamond <img src=x onerror=document.title='gone'> {{value}} ${1+1}"
    field(at, "question").fill(question)
    at.locator("#greedy input").uncheck()
    samples = at.locator("#samples input[type=number]")
    expect(samples).to_be_enabled()
    samples.fill("3")
    samples.press("Tab")
    at.get_by_role("button", name="More").click()
    for name, value in (("seed", "4"), ("limit", "40")):
        field(at, name).fill(value)
        field(at, name).press("Tab")
        expect(field(at, name)).to_have_value(value)
    ask(at)
    cards = at.locator("#answers-1 .answer")
    expect(cards).to_have_count(3)
    tops = {round(card.bounding_box()["y"]) for card in cards.all()}
    assert len(tops) < 3
    rewards = [numbers(card.locator(".bars").inner_text()) for card in cards.all()]
    assert all(len(row) == 2 and 0 <= row[0] <= 1 for row in rewards)
    mean = numbers(at.locator("#answers-1 header").get_by_text("iou: ").inner_text())[0]
    assert mean == pytest.approx(sum(row[0] for row in rewards) / 3, abs=0.002)
    expect(at.locator("#answers-1 header")).to_contain_text("3 answers, temperature 1, seed 4")
    same = [at.locator(f"#answers-{i} .cards").inner_text() for i in (1, 2)]
    assert same[0] == same[1]  # one model twice, one seed
    at.locator("#answers-1 summary").click()
    expect(at.locator("#answers-1 details pre")).to_have_text(question)
    assert at.title() == "VLM-R1 playground"


def test_what_is_wrong_is_told_on_the_page_and_a_good_upload_is_answered(at, tmp_path, huge_png):
    field(at, "question").fill(" ")
    refused(at, "There is no question")
    field(at, "question").fill("the red circle")
    field(at, "truth").fill("left of it")
    refused(at, "cannot be read: write x1, y1, x2, y2")
    at.get_by_label("Remove Image").click()
    expect(field(at, "truth")).to_have_value("")
    refused(at, "There is no image")
    upload = at.locator("#image input[type=file]")
    (tmp_path / "broken.png").write_bytes(b"no image")
    (tmp_path / "huge.png").write_bytes(huge_png(14_000))
    Image.effect_noise((80, 60), 50).convert("RGB").save(tmp_path / "good.jpg")
    for name, told in (("broken.png", "cannot be read"), ("huge.png", "over the limit of 100000000 pixels")):
        upload.set_input_files(tmp_path / name)
        expect(at.locator("#status p.error")).to_contain_text(f'"{name}"')
        expect(at.locator("#status p.error")).to_contain_text(told)
        expect(at.locator("#image img")).to_have_count(0)
    upload.set_input_files(tmp_path / "good.jpg")
    expect(at.locator("#status")).to_contain_text("80 x 60 pixels")
    ask(at)
    expect(at.locator("#answers-1 .answer img")).to_have_count(1)


def test_the_folder_gives_its_images_and_none_from_outside(at, served):
    chosen = field(at, "folder")
    chosen.click()
    expect(at.get_by_role("option")).to_have_text([re.compile("navy.png")])
    at.get_by_role("option", name="navy.png").click()
    expect(at.locator("#status")).to_have_text("navy.png")
    at.wait_for_function("document.querySelector('#image img').naturalWidth === 64")
    for path in ("link.png", "../outside.png", str(served[2].parent / "outside.png")):
        chosen.fill(path)
        chosen.press("Enter")
        expect(at.locator("#status p.error")).to_contain_text(path)
        expect(at.locator("#status p.error")).to_contain_text("leads out of")
    assert at.evaluate("document.querySelector('#image img').naturalWidth") == 64


def test_a_box_is_drawn_by_dragging_and_by_two_clicks_and_a_scene_is_asked_by_keyboard(at):
    image = at.locator("#image img")
    at.wait_for_function("document.querySelector('#image img').naturalWidth === 96")
    frame = image.bounding_box()
    shown = min(frame["width"], frame["height"])
    left, top = frame["x"] + (frame["width"] - shown) / 2, frame["y"] + (frame["height"] - shown) / 2

    def move(x, y):
        at.mouse.move(left + x * shown / 96, top + y * shown / 96)

    move(60, 72)
    at.mouse.down()
    move(40, 40)
    move(12, 24)
    at.mouse.up()
    expect(field(at, "truth")).to_have_value("12, 24, 60, 72")
    outline = at.locator(".true-box").bounding_box()
    assert outline["width"] == pytest.approx(48 * shown / 96, abs=2)
    for x, y in ((30, 33), (48, 45)):
        move(x, y)
        at.mouse.down()
        at.mouse.up()
    expect(field(at, "truth")).to_have_value("30, 33, 48, 45")
    at.locator("#scenes button").nth(3).focus()
    at.keyboard.press("Enter")
    expect(field(at, "question")).to_have_value(re.compile("^detect "))
    expect(field(at, "task")).to_have_value(re.compile("ovd"))
    field(at, "question").press("Enter")
    expect(at.locator("#answers-1 .bars")).to_contain_text("od_map")
    expect(at.locator("#ask")).to_be_enabled()


def test_it_fits_a_phone_and_is_dark_where_asked(open_page, served):
    page = open_page(color_scheme="dark", viewport={"width": 390, "height": 844})
    opened(page, served[0])
    ask(page)
    page.wait_for_function("""() => {
        const [one, two] = [1, 2].map(i => document.querySelector(`#answers-${i}`).getBoundingClientRect());
        const narrow = document.documentElement.scrollWidth <= window.innerWidth;
        return narrow && two.top > one.bottom - 1 && one.width > 300;
    }""")
    shot = Image.open(io.BytesIO(page.screenshot())).convert("L").resize((1, 1), Image.Resampling.BOX)
    assert shot.getpixel((0, 0)) < 110 > Image.open(io.BytesIO(page.screenshot())).convert("L").getpixel((2, 400))


def test_another_host_name_and_other_files_are_refused(served):
    import httpx

    assert httpx.get(served[0], headers={"Host": "evil.example"}).status_code == 400
    answer = httpx.get(f"{served[0]}gradio_api/file={served[2]}/navy.png")
    assert answer.status_code == 403


def test_every_task_has_a_name_on_the_page():
    assert all(task.title for task in TASKS.values())
