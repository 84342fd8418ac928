"""The served page in a real browser: no test may log an error or ask a server but this one."""

import io
import re

import numpy as np
import pytest
from browser import Watch
from PIL import Image, ImageColor
from playwright.sync_api import expect

from vlm_r1.report.findings import MINUS
from vlm_r1.report.web import launch, private_folder
from vlm_r1.runtime.runlog import RunLog
from vlm_r1.view.server import build_page, page_css, page_js


@pytest.fixture(scope="module")
def address(run_dir, second_dir):
    with private_folder() as folder:
        page = build_page([run_dir, second_dir])
        yield launch(page, folder, css=page_css(), js=page_js())
        page.close(verbose=False)


@pytest.fixture(scope="module")
def loaded(browser, address):
    """The page, opened once for the tests of this file."""
    context = browser.new_context(viewport={"width": 1280, "height": 1400})
    page = context.new_page()
    page.watch = Watch(context)
    page.set_default_timeout(15_000)
    opened(page, address)
    yield page
    context.close()


@pytest.fixture
def at(loaded):
    """The page on its first tab with all runs; what earlier tests chose elsewhere stays."""
    tab(loaded, "Training")
    only(loaded, "first", "second")
    loaded.mouse.move(2, 2)
    yield loaded
    loaded.watch.check()


def opened(page, address):
    page.goto(address)
    expect(page.locator("#training svg.vr-chart").first).to_be_visible()


def tab(page, name):
    page.get_by_role("tab", name=name, exact=True).click()


def only(page, *names):
    """Choose among the runs above the tabs."""
    for box in page.locator("#runs").get_by_role("checkbox").all():
        box.set_checked(box.get_attribute("name") in names)
    expect(page.locator("#head .vr-status b")).to_have_text(list(names))


def chart(page, title):
    """A chart whose legend shows what the choice of runs has brought."""
    figure = page.locator("figure.vr-plot", has=page.locator("figcaption", has_text=re.compile(f"^{title}")))
    return figure.first.locator("svg.vr-chart")


def pixels(locator):
    """What the screen shows of an element, as RGB."""
    return np.asarray(Image.open(io.BytesIO(locator.screenshot())).convert("RGB")).astype(int)


def where(shown, colour, near=12):
    """(x, y) of the pixels of a colour."""
    ys, xs = np.nonzero((abs(shown - np.array(ImageColor.getrgb(colour))) <= near).all(axis=2))
    return xs, ys


def picked_step(page):
    return page.get_by_label("number input for Step")


def thumbs(page, strip):
    return page.locator(f"#{strip} .vr-thumb")


def answers(page):
    """The tab of answers with all groups of the first step, the first of them chosen."""
    tab(page, "Answers")
    page.get_by_role("radio", name="All").check()
    page.get_by_role("button", name="First", exact=True).click()
    expect(page.locator("#answers-strip")).to_contain_text("Step 1: 3 groups, 12 answers.")
    expect(page.locator("#answers-detail h3")).to_have_text("the red circle")


def test_the_curve_is_at_the_pixels_of_its_values(at):
    only(at, "first")
    drawn = chart(at, "Reward")
    expect(drawn.locator("polyline")).to_have_count(1)
    drawn.scroll_into_view_if_needed()
    at.mouse.move(2, 2)
    shown = pixels(drawn)
    scale = shown.shape[1] / 340
    xs, ys = where(shown, "#2f6fd6", 30)
    low_x, high_x, low, high = map(float, drawn.get_attribute("data-axes").split())
    for step in (1, 3, 6):
        x = (46 + (step - low_x) / (high_x - low_x) * (340 - 46 - 8)) * scale
        y = shown.shape[0] - (22 + (0.125 * step - low) / (high - low) * (160 - 8 - 22)) * scale
        assert min(np.hypot(xs - x, ys - y)) < 2, f"no ink at step {step}"
    assert (high_x - low_x) == 5


def test_values_are_read_by_pointer_and_by_keys(at):
    only(at, "first")
    drawn = chart(at, "Reward parts")
    expect(drawn.locator("polyline")).to_have_count(2)
    place = drawn.bounding_box()
    at.mouse.move(place["x"] + place["width"] * (46 + 286 * 0.6) / 340, place["y"] + place["height"] / 2)
    tip = at.locator(".vr-tip")
    expect(tip).to_contain_text("step 4")
    assert re.search(r"iou 0\.25", tip.inner_text()) and re.search(r"format 1\b", tip.inner_text())
    at.mouse.move(5, 5)
    expect(tip).to_have_count(0)
    drawn.focus()
    at.keyboard.press("ArrowRight")
    at.keyboard.press("ArrowRight")
    expect(tip).to_contain_text("step 2")
    at.keyboard.press("Enter")
    expect(at.locator("#answers-strip")).to_contain_text("Step 2:")


def test_runs_are_drawn_over_each_other(at):
    only(at, "first", "second")
    drawn = chart(at, "Reward")
    expect(drawn.locator("polyline")).to_have_count(2)
    shown = pixels(drawn)
    for colour in ("#2f6fd6", "#d9730d"):
        assert len(where(shown, colour, 30)[0]) > 100
    only(at, "second")
    expect(chart(at, "Reward").locator("polyline")).to_have_count(1)
    expect(at.locator("#head")).not_to_contain_text("first")
    tab(at, "Settings")
    only(at, "first", "second")
    expect(at.get_by_label("settings that differ")).to_contain_text("rl.group_size")


def test_boxes_are_at_the_pixels_where_they_belong(at):
    answers(at)
    drawn = at.locator("#answers-detail svg.vr-pic")
    expect(drawn.locator("g.vr-mark")).to_have_count(4)
    at.mouse.move(2, 2)
    at.add_style_tag(content=".vr-pic text { display: none; }")
    shown = pixels(drawn)
    scale = shown.shape[1] / 200
    assert shown.shape[0] == pytest.approx(100 * scale, abs=1)

    def edges(colour):
        xs, ys = where(shown, colour)
        return [(xs.min() + 0.5) / scale, (ys.min() + 0.5) / scale, (xs.max() + 0.5) / scale, (ys.max() + 0.5) / scale]

    assert edges("#12b76a") == pytest.approx([20, 30, 80, 70], abs=2.5 / scale + 0.5)
    at.locator(".vr-answer").nth(1).hover()  # the best answer, in blue, undashed while it is pointed at
    expect(drawn.locator("g.vr-mark.vr-on")).to_have_count(1)
    shown = pixels(drawn)
    assert edges("#2f7df6")[2:] == pytest.approx([90, 70], abs=2.5 / scale + 0.5)
    assert edges("#2f7df6")[1] == pytest.approx(30, abs=2.5 / scale + 0.5)


def test_an_answer_is_shown_whole(at):
    answers(at)
    thumbs(at, "answers-strip").nth(2).click()
    card = at.locator(".vr-answer").nth(3)
    expect(card).to_contain_text("reward 0.000")
    for text in (
        "not readable: no_answer",
        f"advantage {MINUS}0.062",
        "I look for the green cross.",
        "cut at the token limit",
    ):
        expect(card).to_contain_text(text)
    expect(at.locator("#answers-detail .vr-parts").first).to_contain_text("iou")


def test_coordinates_have_a_unit(at):
    answers(at)
    expect(at.locator(".vr-answer").nth(1)).to_contain_text("in pixels: (30.0, 30.0, 90.0, 70.0)")
    expect(at.locator("#answers-detail")).to_contain_text("true box in pixels: (20.0, 30.0, 80.0, 70.0)")
    tab(at, "Training")
    expect(chart(at, "Reward").locator("text", has_text=re.compile("^step$"))).to_have_count(1)


def test_the_image_stays_in_sight_beside_many_answers(open_page, address):
    page = open_page(viewport={"width": 1280, "height": 420})
    opened(page, address)
    answers(page)
    last = page.locator(".vr-answer").last
    last.scroll_into_view_if_needed()
    figure = page.locator("#answers-detail .vr-two figure svg").bounding_box()
    assert page.evaluate("window.scrollY") > 100
    assert figure["y"] == pytest.approx(8, abs=2), "8 pixels below the edge, where it sticks"


def test_values_that_never_change_take_no_card(at):
    only(at, "first")
    level = at.locator("#training .vr-level")
    expect(level.filter(has_text="Learning rate 0.0001")).to_have_count(1)
    expect(at.locator("figcaption", has_text="Learning rate")).to_have_count(0)


@pytest.mark.parametrize(("width", "sizes"), [(1400, [3, 2]), (1120, [3, 2]), (800, [2, 2, 1]), (390, [1] * 5)])
def test_no_card_stands_beside_a_gap(open_page, tmp_path, width, sizes):
    for step in range(1, 4):
        names = ("loss", "kl", "grad_norm", "entropy", "lr")
        RunLog(tmp_path / "run").metrics(step, dict.fromkeys(names, float(step)))
    with private_folder() as folder:
        built = build_page([tmp_path / "run"])
        page = open_page(viewport={"width": width, "height": 900})
        opened(page, launch(built, folder, css=page_css(), js=page_js()))
        places = [card.bounding_box() for card in page.locator(".vr-plot").all()]
        built.close(verbose=False)
    rows = {}
    for place in places:
        rows.setdefault(round(place["y"]), []).append(place)
    assert [len(rows[y]) for y in sorted(rows)] == sizes
    for row in rows.values():
        end = row[-1]["x"] + row[-1]["width"]
        assert end > width - 60 or (len(row) == 2 and row[0]["width"] == pytest.approx(28 * 16, abs=1))


def test_filters_choose_groups_and_steps(at):
    answers(at)
    heads = thumbs(at, "answers-strip").locator(".vr-thumb-head b")
    for show, names in {
        "Worst first": ["group 3", "group 2", "group 1"],
        "Best first": ["group 1", "group 2", "group 3"],
        "Parse failures": ["group 3"],
        "Zero variance": ["group 2"],
    }.items():
        at.get_by_role("radio", name=show).check()
        expect(heads).to_have_text(names)
    at.get_by_role("radio", name="Warnings").check()
    expect(picked_step(at)).to_have_value("5")
    expect(at.locator("#answers-strip")).to_contain_text("Warning: the answers grow longer")


def test_steps_are_walked(at):
    answers(at)
    for button, step in (("Next", 2), ("Next", 5), ("Previous", 2), ("Last", 6), ("Next", 6), ("First", 1)):
        at.get_by_role("button", name=button, exact=True).click()
        expect(picked_step(at)).to_have_value(str(step))
        expect(at.locator("#answers-strip")).to_contain_text(f"Step {step}:")
    picked_step(at).fill("4")
    picked_step(at).press("Enter")
    expect(at.locator("#answers-strip")).to_contain_text("Step 5:")


def test_the_keyboard_reaches_everything(at):
    answers(at)
    thumbs(at, "answers-strip").first.focus()
    at.keyboard.press("ArrowRight")
    at.keyboard.press("Enter")
    expect(at.locator("#answers-detail h3")).to_have_text("the blue square")
    expect(thumbs(at, "answers-strip").nth(1)).to_be_focused()
    at.keyboard.press("Tab")
    at.keyboard.press("Tab")
    follow = at.get_by_role("button", name="Follow this question")
    expect(follow).to_be_focused()
    at.keyboard.press("Tab")
    expect(at.locator(".vr-answer").first).to_be_focused()
    expect(at.locator("g.vr-mark.vr-on")).to_have_count(1)


def test_a_question_is_followed_over_time(at):
    answers(at)
    at.get_by_role("button", name="Follow this question").click()
    strip = at.locator("#question-strip")
    expect(thumbs(at, "question-strip")).to_have_count(8)
    expect(strip).to_contain_text("first: training, step 5")
    at.get_by_label("Find a question").fill("held out 0")
    expect(thumbs(at, "question-strip").first).to_contain_text("before")
    expect(thumbs(at, "question-strip")).to_have_count(5)
    detail = at.locator("#question-detail")
    expect(detail).to_contain_text("IoU 0.250")
    for name in ("second: before", "first: step 2", "first: after"):
        at.get_by_role("button", name="Next moment").click()
        expect(detail).to_contain_text(name)
    expect(detail).to_contain_text("IoU 1.000")
    expect(at.locator("#question-curve polyline")).to_have_count(2)


def test_evaluations_are_compared_question_by_question(at):
    tab(at, "Evaluation")
    table = at.get_by_label("metrics")
    expect(table).to_contain_text("second: after")
    expect(table).to_contain_text("In-domain, 2 questions")
    expect(table.locator("tr", has_text="mean IoU")).to_contain_text("0.375")
    at.get_by_label("Evaluation", exact=True).click()
    at.get_by_role("option", name="first: after").click()
    expect(table.locator("tr", has_text="mean IoU")).to_contain_text("+0.375")
    at.get_by_role("radio", name="Gains").check()
    expect(thumbs(at, "evaluation-strip")).to_have_count(1)
    expect(at.locator("#evaluation-detail .vr-answer")).to_have_count(2)
    expect(at.locator("#evaluation-detail")).to_contain_text("change +0.750")
    at.get_by_role("radio", name="Losses").check()
    expect(at.locator("#evaluation-detail")).to_contain_text("No question of this split is like that")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_it_without_scrolling_sideways(open_page, address, scheme):
    page = open_page(viewport={"width": 390, "height": 844}, color_scheme=scheme)
    opened(page, address)
    tab(page, "Answers")
    expect(thumbs(page, "answers-strip")).to_have_count(3)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background)[:3])) < 150) == (scheme == "dark")


def test_a_phone_shows_all_columns_of_a_table_or_that_there_are_more(open_page, address):
    page = open_page(viewport={"width": 390, "height": 844})
    opened(page, address)
    page.locator(".overflow-menu button").first.click()
    page.locator(".overflow-dropdown button", has_text="Evaluation").click()
    table = page.get_by_label("metrics")
    expect(table.get_by_role("columnheader", name="difference")).to_be_visible()
    assert table.evaluate("box => box.scrollWidth - box.clientWidth") <= 1
    table.evaluate("box => box.querySelector('table').style.width = '900px'")
    shown = pixels(table)
    inside = shown[shown.shape[0] // 2, shown.shape[1] // 2 : shown.shape[1] // 2 + 4].mean()
    assert shown[-4, -1].mean() < inside - 20, "a shadow at the edge where the table goes on"


def test_a_question_asked_once_is_said_to_be(open_page, make_run, tmp_path):
    run = make_run(tmp_path / "run", steps=1, phases=("before",))
    with private_folder() as folder:
        built = build_page([run])
        page = open_page()
        opened(page, launch(built, folder, css=page_css(), js=page_js()))
        tab(page, "One question")
        expect(page.locator("#question-strip")).to_contain_text("Asked once so far.")
        expect(page.locator("#question-detail h3")).to_have_text("held out 0")
        expect(page.locator("#question-strip .vr-thumb")).to_have_count(0)
        expect(page.locator("#question-curve .vr-plot")).to_have_count(0)
        for name in ("Previous moment", "Next moment"):
            expect(page.get_by_role("button", name=name)).to_be_disabled()
        built.close(verbose=False)


def test_a_run_that_begins_while_its_folder_is_looked_at_appears(open_page, make_run, tmp_path, monkeypatch):
    monkeypatch.setattr("vlm_r1.view.app.LOOK_SECONDS", 0.0)
    make_run(tmp_path / "runs" / "one")
    with private_folder() as folder:
        built = build_page([tmp_path / "runs"])
        page = open_page()
        opened(page, launch(built, folder, css=page_css(), js=page_js()))
        expect(page.locator("#head .vr-status b")).to_have_text(["one"])
        make_run(tmp_path / "runs" / "two", slope=0.0625)
        expect(page.locator("#head .vr-status b")).to_have_text(["one", "two"])
        expect(page.locator("#runs").get_by_role("checkbox")).to_have_count(2)
        only(page, "two")
        tab(page, "Answers")
        page.get_by_label("Run", exact=True).click()
        page.get_by_role("option", name="two").click()
        expect(page.locator("#answers-strip")).to_contain_text("Step 1: 3 groups")
        built.close(verbose=False)


def test_files_are_not_served(page, address, run_dir):
    for path in (run_dir / "config.yaml", "/etc/passwd", f"{run_dir}/../../x"):
        assert page.request.get(f"{address}gradio_api/file={path}").status in (403, 404)
