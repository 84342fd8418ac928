"""The tables of docs/ name what the package has: no more, no less, and with the same defaults."""

import importlib.util
import inspect
import json
import re

import pytest
from pages import DOCS, PAGES, ROOT, blocks, first_column, names, options, plain, table, tables, text
from PIL import Image
from support import recipe, save_tiny

from vlm_r1.config import Recipe
from vlm_r1.config_file import load_config
from vlm_r1.config_keys import all_keys
from vlm_r1.data.check import inspect_file
from vlm_r1.data.convert import CONVERTERS
from vlm_r1.data.faults import FAULT_KINDS
from vlm_r1.data.scene_questions import KINDS
from vlm_r1.eval.suites import SUITES
from vlm_r1.lab.study import study_files
from vlm_r1.models.families import FAMILIES
from vlm_r1.prompts.parse import FAILURE_KINDS
from vlm_r1.prompts.templates import TASKS, TEMPLATES
from vlm_r1.rewards.registry import BATCHED, REWARDS
from vlm_r1.rl.loop import train
from vlm_r1.runtime.runlog import EVAL_COLUMNS, ROLLOUT_COLUMNS
from vlm_r1.runtime.session import MAY_CHANGE

CONDITIONAL = {"the subset's folder", "all"}
"""Defaults that a page gives in words."""


def keyword_defaults(function) -> dict[str, str]:
    found = inspect.signature(function).parameters.values()
    return {p.name: plain(p.default) for p in found if p.kind is p.KEYWORD_ONLY}


@pytest.mark.parametrize("page", ["configuration.md", "results/README.md"])
def test_pages_that_a_script_makes_are_up_to_date(page):
    name = {"configuration.md": "make_configuration", "results/README.md": "make_results"}[page]
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert text(page) == module.render(), f"run: python docs/{name}.py"


def test_every_setting_is_on_its_page_with_a_meaning():
    page = text("configuration.md")
    sections = {*Recipe.model_fields} - {"method"}
    for key, meaning in all_keys().items():
        if key in sections:
            continue
        shown = re.sub(r"^data\.(train\[\]|eval\{\})\.", "", key)
        assert meaning, f"{key} has no description"
        assert f"| `{shown}` |" in page, key


PIECES = [(page.name, block) for page in PAGES for block in blocks(page.name, "yaml")]


@pytest.mark.parametrize(("page", "block"), PIECES, ids=lambda value: value[:20])
def test_a_piece_of_a_recipe_on_a_page_is_valid(page, block, tmp_path):
    file = tmp_path / "piece.yaml"
    file.write_text(block)
    assert load_config(file).model_dump(exclude_unset=True)


def test_rows_on_the_data_page_are_read_as_they_are(tmp_path):
    rows = blocks("data.md", "json")
    Image.new("RGB", (640, 480)).save(tmp_path / "0017.png")
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(rows))
    report = inspect_file(file)
    assert report.messages() == []
    assert report.rows == len(rows) == 6
    assert report.tasks == {"rec": 4, "number": 1, "yes_no": 1}
    assert report.boxes == [1, 1, 1, 1]


def test_tasks_and_templates_are_all_there():
    rows = table("data.md", "task", "solution")
    assert [names(row[0])[0] for row in rows] == list(TASKS)
    for row in rows:
        wording = TASKS[names(row[0])[0]].question.partition("{question}")[0].strip()
        assert wording in row[3] if wording else row[3] == "none"
    assert first_column("data.md", "template")[: len(TEMPLATES)] == list(TEMPLATES)


def test_faults_failures_and_scene_questions_are_all_there():
    assert sorted(first_column("data.md", "kind", "meaning")) == sorted(FAULT_KINDS)
    assert first_column("data.md", "`questions`") == list(KINDS)
    told = dict.fromkeys(first_column("evaluation.md", "failure"))
    faults = next(row[1] for row in table("run-folder.md", "metric") if row[0] == "`format/KIND`")
    assert sorted([*told, *names(faults)]) == sorted(FAILURE_KINDS)


def test_converters_have_the_options_that_the_page_lists():
    rows = table("data.md", "format")
    assert [names(row[0])[0] for row in rows] == list(CONVERTERS)
    explained = set(first_column("data.md", "option"))
    for row in rows:
        listed = options(row[3])
        real = keyword_defaults(CONVERTERS[names(row[0])[0]])
        assert listed.keys() == real.keys()
        assert {k: v for k, v in listed.items() if v not in CONDITIONAL and real[k] != v} == {}
        assert listed.keys() <= explained


def test_rewards_have_the_options_that_the_page_lists():
    rows = table("rewards.md", "reward", "value")
    assert [names(row[0])[0] for row in rows] == list(REWARDS)
    for row in rows:
        name = names(row[0])[0]
        if name not in BATCHED:
            assert options(row[3]) == keyword_defaults(REWARDS[name]), name
    judge = {names(row[0])[0]: names(row[1])[0] if names(row[1]) else row[1] for row in table("rewards.md", "option")}
    real = keyword_defaults(BATCHED["llm_judge"])
    assert judge == real | {"base_url": "required", "model": "required"}


def test_suites_families_and_keys_of_a_scratch_model_are_all_there():
    assert sorted(first_column("evaluation.md", "suite")) == sorted(SUITES)
    assert sorted(first_column("models.md", "`model_type`")) == sorted(FAMILIES)
    described = set(first_column("models.md", "key of `model.scratch`"))
    for file in set((ROOT / "recipes").rglob("*.yaml")) - set(study_files(ROOT / "recipes" / "lab").values()):
        assert set(load_config(file).model.scratch or {}) <= described


def test_columns_of_both_tables_are_all_there():
    rows = table("run-folder.md", "column")
    for place, schema in ((1, ROLLOUT_COLUMNS), (2, EVAL_COLUMNS)):
        told = [name for row in rows if row[place] == "yes" for name in names(row[0])]
        assert sorted(told) == sorted(schema.names)


def test_what_may_change_when_a_run_is_continued_is_all_there():
    rows = [row for row in table("run-folder.md", "what changed") if row[1].startswith("the run continues")]
    assert sorted(name for row in rows for name in names(row[0])) == sorted(MAY_CHANGE)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """Of a run of one step with a reference model, a shadow reward and a held-out split of boxes."""
    folder = tmp_path_factory.mktemp("docs")
    held = {"scenes": {"split": "in_domain", "n": 2}}
    settings = recipe(
        save_tiny(folder / "model"),
        folder / "run",
        data={"eval": {"held": held}},
        rewards={"shadow": ["iou"]},
        rl={"beta": 0.1},
        run={"steps": 1, "save_every": 1, "log_rollouts_every": 1},
        eval={"resamples": 2, "max_new_tokens": 4},
    )
    return train(settings)


def as_pattern(name: str) -> str:
    """A name of a page as a pattern: NAME, KIND, PHASE, N and ... stand for what differs from run to run."""
    return re.sub(r"NAME|KIND|PHASE|SUBSET|METRIC|\\\.\\\.\\\.|\bN\b", "[^ ]+", re.escape(name))


def unknown(found, told) -> list[str]:
    patterns = [as_pattern(name) for name in told]
    return [name for name in found if not any(re.fullmatch(pattern, name) for pattern in patterns)]


def test_a_run_writes_the_files_metrics_and_measures_of_the_pages(run_folder):
    files = [name.rstrip("/").partition("/")[0] for name in first_column("run-folder.md", "file")]
    assert unknown([path.name for path in run_folder.iterdir()], files) == []
    line = json.loads((run_folder / "metrics.jsonl").read_text())
    assert {"kl", "shadow/iou/mean", "boxes/dropped_per_answer"} <= set(line)
    assert unknown(line, first_column("run-folder.md", "metric")) == []
    measures = [*first_column("evaluation.md", "metric"), "METRIC/low", "METRIC/high"]
    assert unknown(json.loads((run_folder / "eval.json").read_text())["before"]["held"], measures) == []


def test_every_promise_names_tests_that_exist():
    promises = [row for rows in tables("reliability.md") for row in rows[1:]]
    assert len(promises) > 10
    for _, promise, tests in promises:
        assert promise and names(tests)
        assert [name for name in names(tests) if not (ROOT / name).is_file()] == []
