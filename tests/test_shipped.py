"""What comes with the package: recipes that `vlm-r1 init` writes, pages that `vlm-r1 docs` prints, and the wheel."""

import ast
import json
import re
import tomllib

import pytest
from command import run
from pages import ROOT

from vlm_r1 import shipped
from vlm_r1.config_file import load_config
from vlm_r1.data.check import inspect_file
from vlm_r1.runtime.runlog import read_eval

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", sorted(shipped.recipes()))
def test_a_recipe_is_written_with_rows_in_the_format_of_its_data(folder, name, capsys):
    assert run("init", name) == 0
    [file] = folder.glob("*.yaml")
    recipe, source = load_config(file), load_config(shipped.recipes()[name])
    assert recipe.model_dump(exclude={"rewards"}) == source.model_dump(exclude={"rewards"})
    report = inspect_file(folder / f"{file.stem}-data" / "rows.jsonl")
    assert (report.rows, report.faults) == (4, [])
    sources = recipe.data.train or list(recipe.data.eval.values())
    if sources[0].scenes is None:  # rows of the published data sets, of the same task
        assert set(report.tasks) == {"ovd" if "ovd" in name else "rec"}
    text = file.read_text()
    assert "recipes/" not in text and f"{file.stem}-data/rows.jsonl" in text
    for mentioned in re.findall(r"[\w.-]+\.(?:py|sh)\b", text):
        assert (folder / mentioned).is_file()
    said = capsys.readouterr().out
    command = "eval" if not recipe.data.train else {"grpo": "train", "sft": "sft"}[recipe.method]
    assert f"run it:   vlm-r1 {command} {file.name}\n" in said


def test_the_demo_that_init_writes_trains_on_its_rows(folder, capsys):
    assert run("init", "demo", "--out", "new") == 0
    shorter = ["run.steps=1", "rl.prompts_per_step=2", "rl.group_size=2", "data.eval.in_domain.scenes.n=2"]
    shorter += ["data.eval.out_of_domain.scenes.n=2", "run.log_rollouts_every=0", "run.threads=1"]
    assert run("train", "new/demo.yaml", "data.train=[{path: new/demo-data/rows.jsonl}]", *shorter) == 0
    assert set(read_eval(folder / "runs" / "demo")) == {"before", "after"}
    assert run("init", "demo", "--out", "new") == 2
    assert "new/demo-data: is there already; remove it, or give another folder with --out" in capsys.readouterr().err


def test_names_are_listed_and_the_nearest_is_named(folder, capsys):
    assert run("init") == 0
    said = capsys.readouterr().out
    assert said.startswith("demo  ") and "\npaper/rec  " in said
    assert run("init", "ovd") == 2
    assert 'there is no recipe "ovd": did you mean "paper/ovd"?' in capsys.readouterr().err
    assert run("docs", "rewrds") == 2
    assert 'there is no page "rewrds": did you mean "rewards"?' in capsys.readouterr().err
    assert not list(folder.iterdir())


def test_a_page_is_printed(capsys):
    assert run("docs") == 0
    assert re.search(r"^rewards +Rewards$", capsys.readouterr().out, re.MULTILINE)
    assert run("docs", "rewards") == 0
    assert capsys.readouterr().out.rstrip("\n") == (ROOT / "docs" / "rewards.md").read_text().rstrip("\n")


def test_the_wheel_holds_what_is_looked_for_in_it(tmp_path, monkeypatch):
    wheel, held = PROJECT["build"]["targets"]["wheel"], ("recipes", "docs")
    assert {*wheel["only-include"]} == {"src/vlm_r1", *held}
    assert wheel["sources"] == {"src": ""} | {name: f"vlm_r1/{name}" for name in held}
    assert all(shipped.shipped(name) == ROOT / name for name in held)
    for name in held:
        (tmp_path / name).mkdir()
    monkeypatch.setattr(shipped.resources, "files", lambda package: tmp_path)
    assert all(shipped.shipped(name) == tmp_path / name for name in held)


def test_the_pages_that_help_and_errors_name_are_there_and_no_path_of_the_repository_is():
    named, paths = set(), []
    for file in (ROOT / "src" / "vlm_r1").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                named |= set(re.findall(r"vlm-r1 docs ([\w-]+)", node.value))
                told = re.search(r"docs/[\w-]+\.md|recipes/\w+/", node.value)
                paths += [f"{file.name}: {told[0]}"] if told and file.parent.name == "cli" else []
    assert {"rewards", "configuration", "scale-out", "vllm"} <= named <= {p.stem for p in (ROOT / "docs").glob("*.md")}
    assert not paths


def test_the_readme_of_an_index_has_no_link_into_the_repository():
    text = (ROOT / "README.md").read_text()
    hook = PROJECT["metadata"]["hooks"]["fancy-pypi-readme"]
    assert [fragment["path"] for fragment in hook["fragments"]] == ["README.md"]
    for change in hook["substitutions"]:
        text = re.sub(change["pattern"], change["replacement"], text)
    assert re.findall(r"\]\((?!https?:|#)", text) == []
    assert "Troubleshooting" in text and "```bash" in text and json.dumps("![") not in text
