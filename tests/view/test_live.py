"""The page over runs that are being written, that are damaged, and whose text and images mean harm."""

import json
import shutil
import struct
import zlib
from pathlib import Path

import pytest
from playwright.sync_api import expect

import vlm_r1
from vlm_r1.config_file import load_config
from vlm_r1.report.web import launch, private_folder
from vlm_r1.rl.loop import train
from vlm_r1.runtime.runlog import RunLog
from vlm_r1.view.folder import RunFolder
from vlm_r1.view.server import build_page, page_css, page_js

EVIL = "<script>alert(1)</script><img src=http://evil.example/x onerror=alert(2)> ${1+1} {{value}} {% x %}"


def huge_png():
    """A PNG whose header promises 11000 x 11000 pixels, with none behind it."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 11_000, 11_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.fixture
def serve():
    """`serve(run, ...)` is the address of a page over run folders."""
    pages = []
    with private_folder() as folder:

        def start(*runs):
            pages.append(build_page(runs))
            return launch(pages[-1], folder, css=page_css(), js=page_js())

        yield start
        for built in pages:
            built.close(verbose=False)


def answers(page):
    page.get_by_role("tab", name="Answers", exact=True).click()


def test_the_page_follows_a_run_and_waits_for_whole_lines(serve, page, make_run, tmp_path):
    folder = make_run(tmp_path / "live", finished=False)
    page.goto(serve(folder))
    head = page.locator("#head")
    expect(head).to_contain_text("step 6 of 10")
    answers(page)
    page.get_by_role("checkbox", name="Follow the newest step").check()
    expect(page.locator("#answers-strip")).to_contain_text("Step 6:")
    log, run = RunLog(folder), RunFolder(folder)
    with open(folder / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": 7, "reward": 0.9}) + '\n{"step": 8, "rew')
    log.rollouts(7, run.rollouts(6))
    expect(page.locator("#answers-strip")).to_contain_text("Step 7:")
    expect(head).to_contain_text("step 7 of 10")
    page.get_by_role("tab", name="Training", exact=True).click()
    assert page.locator("svg.vr-chart").first.get_attribute("data-axes").split()[1] == "7.0"
    expect(page.locator(".vr-notice")).to_have_count(0)


def test_what_is_damaged_is_named_on_the_page(serve, page, make_run, tmp_path):
    folder = make_run(tmp_path / "damaged")
    rows = RunFolder(folder).rollouts(2)
    RunLog(folder).rollouts(2, [row | {"image": huge_png() if row["image"] else None} for row in rows])
    (folder / "rollouts" / "step-000005.parquet").write_bytes(b"PAR1, and then the power went")
    with open(folder / "metrics.jsonl", "a") as file:
        file.write("no metrics\n")
    (folder / "eval.json").write_text('{"before": {"in_dom')
    page.goto(serve(folder))
    expect(page.locator("#head")).to_contain_text("eval.json: not JSON")
    expect(page.locator("#head")).to_contain_text('metrics.jsonl: not a metrics line ("no metrics"). That is left out')
    expect(page.locator("#training")).to_contain_text("Reward parts")
    answers(page)
    step = page.get_by_role("button", name="Next", exact=True)
    expect(page.locator("#answers-strip")).to_contain_text("Step 1:")
    step.click()
    expect(page.locator("#answers-detail")).to_contain_text("11000x11000 is over the limit")
    step.click()
    expect(page.locator("#answers-strip")).to_contain_text("not a whole Parquet file")
    page.get_by_role("tab", name="Evaluation", exact=True).click()
    expect(page.locator("#evaluation-table")).to_contain_text("No evaluation yet")
    shutil.rmtree(folder)
    answers(page)
    expect(page.locator("#answers-strip")).to_contain_text("The run has kept no answers")


def test_text_of_models_and_data_stays_text(serve, page, make_run, tmp_path):
    folder = make_run(tmp_path / "evil")
    log, run = RunLog(folder), RunFolder(folder)
    words = dict.fromkeys(("question", "completion", "think", "answer", "source", "sample_id", "failure"), EVIL)
    evil = {
        **words,
        "parts": json.dumps({EVIL: 1.0}),
        "true_boxes": json.dumps([{"box": [1, 2, 30, 40], "label": EVIL}] * 2),
    }
    log.rollouts(1, [row | evil for row in run.rollouts(1)])
    samples = [row | words | {"split": "in_domain"} for row in run.samples("after")]
    log.evaluation("after", {"in_domain": {"n": 2, EVIL: 0.5}}, samples)
    log.metrics(7, {f"rewards/{EVIL}/mean": 0.5, "warnings": [EVIL]})
    (folder / "config.yaml").write_text(f"method: grpo\nmodel:\n  path: '{EVIL}'\n")
    page.on("dialog", lambda dialog: pytest.fail(f"a script ran: {dialog.message}"))
    page.goto(serve(folder))
    expect(page.locator("#training .vr-warnings")).to_contain_text(EVIL)
    answers(page)
    for place in ("h3", ".vr-answer pre >> nth=0", ".vr-tag >> nth=0", ".vr-parts >> nth=0"):
        expect(page.locator(f"#answers-detail {place}")).to_contain_text(EVIL)
    page.get_by_role("button", name="Follow this question").click()
    expect(page.locator("#question-detail h3")).to_have_text(EVIL)
    page.get_by_role("tab", name="Evaluation", exact=True).click()
    expect(page.get_by_label("metrics")).to_contain_text(EVIL)
    page.get_by_role("tab", name="Settings", exact=True).click()
    expect(page.locator("#settings pre")).to_contain_text(EVIL)
    assert page.locator("img[src*=evil]").count() == 0


def test_a_supervised_run_without_answers_says_so(serve, page, tmp_path):
    log = RunLog(tmp_path / "sft")
    for step in range(1, 4):
        log.metrics(step, {"loss": 1 / step, "lr": 1e-3})
    page.goto(serve(log.run_dir))
    expect(page.locator("#training figcaption")).to_contain_text(["Loss"])
    expect(page.locator("#training .vr-level")).to_contain_text("Learning rate 0.001")
    answers(page)
    expect(page.locator("#answers-strip")).to_contain_text("Supervised runs have none")
    page.get_by_role("tab", name="One question", exact=True).click()
    expect(page.locator("#question-strip")).to_contain_text("No question is chosen")
    page.get_by_role("tab", name="Evaluation", exact=True).click()
    expect(page.locator("#evaluation-table")).to_contain_text("No evaluation yet")


@pytest.mark.slow
def test_what_training_writes_is_shown(serve, page, tmp_path):
    recipe = Path(vlm_r1.__file__).parent / "assets" / "demo.yaml"
    few = [f"data.eval.{split}.sampling=first:8" for split in ("in_domain", "out_of_domain")]
    small = ["rl.group_size=4", "rl.prompts_per_step=2", "run.log_rollouts_every=1", "run.steps=2"]
    train(load_config(recipe, [f"run.dir={tmp_path / 'run'}", *few, *small]))
    page.goto(serve(tmp_path / "run"))
    expect(page.locator("#head")).to_contain_text("step 2 of 2")
    titles = page.locator("#training figcaption")
    for title in ("Reward", "Held-out mean IoU", "Entropy", "Gradient norm", "Time of a step"):
        expect(titles.filter(has_text=title).first).to_be_visible()
    answers(page)
    expect(page.locator("#answers-detail .vr-answer")).to_have_count(4)
    assert page.locator("#answers-detail svg.vr-pic image").get_attribute("href").startswith("data:image/")
    page.get_by_role("tab", name="One question", exact=True).click()
    expect(page.locator("#question-strip .vr-thumb")).to_have_count(2)
    page.get_by_role("tab", name="Evaluation", exact=True).click()
    expect(page.get_by_label("metrics")).to_contain_text("mean IoU")
    expect(page.locator(".vr-notice")).to_have_count(0)
