"""The pages that lead by the hand: their files are written and their commands run in order, with less of all."""

import json
import re
import runpy
import shlex
from pathlib import Path

import pytest
from pages import ROOT, blocks, table, text

from vlm_r1 import demo
from vlm_r1.cli import main
from vlm_r1.config_file import load_config
from vlm_r1.report.findings import number, signed
from vlm_r1.runtime.runlog import read_eval, read_metrics

SHORTER = (
    (r"range\(\d{4}\)", "range(24)"),
    (r"first:\d{4}", "first:16"),
    (r"end:\d{3}", "end:6"),
    (r"2990\.png", "0023.png"),
    (r"\bn: (20000|200)\b", "n: 6"),
    (r"images_per_step: \d+", "images_per_step: 4"),
    (r"group_size: \d+, prompts_per_step: \d+", "group_size: 2, prompts_per_step: 2"),
    (r"steps: \d+", "steps: 2"),
    (r"save_every: \d+", "save_every: 1"),
    (r"max_new_tokens: \d+", "max_new_tokens: 24"),
    (r"run\.steps=160", "run.steps=3"),
)
"""What a page says, and what is run in its place."""

OUTSIDE = ("git clone", "source ", "pip install", "tar ")
"""Commands of a page that are not the package's."""


def short(written: str) -> str:
    for pattern, less in SHORTER:
        written = re.sub(pattern, less, written)
    return written


def run(line: str) -> None:
    """One line of a bash block."""
    words = shlex.split(line, comments=True)
    if words[0] == "python":
        exec(words[2], {}) if words[1] == "-c" else runpy.run_path(words[1])
        return
    arguments = ["demo"] if words == ["make", "demo"] else words[1:]
    assert words[0] in ("vlm-r1", "make"), line
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert not ended.value.code, line


def follow(page: str) -> None:
    """Write the files that a page shows under their names, and run its commands, all in the working folder."""
    named = r"(?:`(?P<name>[\w.-]+\.(?:py|yaml))`(?:.|\n(?!\n))*:\n\n)?^```(?P<language>\w+)\n(?P<block>(?s:.*?))^```"
    for found in re.finditer(named, text(page), flags=re.MULTILINE):
        block = short(found["block"])
        if found["name"] and found["language"] in ("yaml", "python"):
            Path(found["name"]).write_text(block)
        if found["language"] == "bash":
            for line in block.replace("\\\n", " ").splitlines():
                if line.strip() and not line.startswith(OUTSIDE):
                    run(line)


@pytest.fixture(scope="module")
def alone():
    """No page is served for longer than it takes to build it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vlm_r1.view.server.wait_for_the_end", lambda: None)
        patch.setattr("vlm_r1.play.serve.wait_for_the_end", lambda: None)
        yield patch


@pytest.fixture(scope="module")
def quick_start(tmp_path_factory, alone):
    """The working folder of a reader who did what quick-start.md says, with a short demo."""
    pytest.importorskip("gradio")
    folder = tmp_path_factory.mktemp("quick-start")
    recipe = folder / "demo.yaml"
    recipe.write_text(short((ROOT / "src/vlm_r1/assets/demo.yaml").read_text().replace("n: 400", "n: 6")))
    alone.chdir(folder)
    alone.setattr(demo, "demo_recipe", lambda out, seed, steps: load_config(recipe, [f"run.dir={out}"]))
    follow("quick-start.md")
    return folder


def test_the_quick_start_ends_with_three_whole_runs(quick_start):
    for name, steps in (("demo", 2), ("slow", 3), ("mine", 2)):
        run_dir = quick_start / "runs" / name
        assert [row["step"] for row in read_metrics(run_dir)] == list(range(1, steps + 1))
        assert set(read_eval(run_dir)) == {"before", "after"}
        assert (run_dir / "final" / "model.safetensors").is_file() and (run_dir / "report.html").is_file()
    assert load_config(quick_start / "runs" / "slow" / "config.yaml").optim.lr == 3e-5


def test_the_table_of_the_demo_is_that_of_its_first_seed():
    measured = json.loads((ROOT / "docs/results/demo.json").read_text())["runs"][0]
    names = {"In-domain": "in_domain", "Out-of-domain": "out_of_domain", "mean IoU": "mean_iou", "Acc@0.5": "acc@0.5"}
    rows = table("quick-start.md", "split", "metric")
    assert len(rows) == 4
    for split, metric, questions, before, after, difference in rows:
        of_split = measured[names[split]]
        values = of_split[names[metric]]
        assert (before, after) == (number(values["before"]), number(values["after"]))
        assert difference == signed(values["after"] - values["before"])
        assert int(questions) == of_split["n"]


def test_the_error_that_the_quick_start_shows_is_what_a_typo_says(quick_start, capsys):
    shown = re.search(r'error: command line: (unknown key "rl\.\w+": did you mean "\w+"\?)', text("quick-start.md"))[1]
    with pytest.raises(SystemExit) as ended:
        main(["train", str(quick_start / "my.yaml"), "rl.groupsize=16"])
    assert ended.value.code == 2
    assert shown in capsys.readouterr().err


@pytest.fixture(scope="module")
def own_data(tmp_path_factory, alone):
    """The working folder of a reader who did what your-own-data.md says, with few images and steps."""
    folder = tmp_path_factory.mktemp("own-data")
    alone.chdir(folder)
    follow("your-own-data.md")
    return folder


def test_the_page_leads_from_a_coco_file_to_a_detector(own_data):
    rows = [json.loads(line) for line in (own_data / "own/rows.jsonl").read_text().splitlines()]
    annotated = json.loads((own_data / "own/instances.json").read_text())["annotations"]
    assert len(rows) == 24 and sum(len(row["solution"]) for row in rows) == len(annotated) > 12
    assert len(read_metrics(own_data / "runs/own-sft")) == len(read_metrics(own_data / "runs/own-rl")) == 2
    assert json.loads((own_data / "own_data.json").read_text())["models"] == MODELS
    for name in ("samples.html", "own_data.png", "answer.png", "runs/own-rl/report.html"):
        assert (own_data / name).stat().st_size > 1000, name


def test_the_row_that_the_page_shows_is_the_one_that_is_written(own_data):
    [shown] = blocks("your-own-data.md", "json")
    assert shown in (own_data / "own/rows.jsonl").read_text()


MODELS = ["own-rl before", "own-rl after", "base"]
"""Of docs/results/own_data.json: after SFT, after RL, and the tiny model."""


def test_the_numbers_of_the_page_are_those_of_its_file():
    measured = json.loads((ROOT / "docs/results/own_data.json").read_text())
    assert measured["models"] == MODELS
    page = " ".join(text("your-own-data.md").split())
    rows = table("your-own-data.md", "400 held-out images")
    assert [row["metric"] for row in measured["rows"]] == ["mAP", "AP50", "GP", "GR"] and len(rows) == 4
    for told, found in zip(rows, measured["rows"], strict=True):
        sft, rl, tiny = (f"{number(c['value'])} ({number(c['low'])} to {number(c['high'])})" for c in found["cells"])
        assert told[1:] == [tiny, sft, rl] and found["n"] == 400
        gain = found["cells"][1]
        low, high = (signed(gain[f"difference_{end}"]) for end in ("low", "high"))
        assert f"{signed(gain['difference'])} ({low} to {high})" in page
