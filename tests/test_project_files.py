"""What lies beside the package: container file, workflow, citation, issue forms, security policy."""

import os
import re
import tomllib

import pytest
import yaml
from pages import ROOT

import vlm_r1

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CONTAINER = (ROOT / "Containerfile").read_text(encoding="utf-8").replace("\\\n", " ")
CLUSTER = sorted((ROOT / "examples" / "cluster").iterdir())


def load(path):
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


def copied() -> list[str]:
    lines = re.findall(r"^COPY (.+) \S+$", CONTAINER, re.MULTILINE)
    return [name for line in lines for name in line.split()]


def test_what_the_container_copies_is_there_and_not_left_out():
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert sorted(copied()) == sorted(kept)
    for name in copied():
        assert (ROOT / name).exists(), name
    needed = ["README.md", *PROJECT["license-files"], "pyproject.toml", "constraints.txt"]
    assert set(needed) <= set(copied())


def test_the_container_installs_extras_that_exist_in_versions_that_are_tested():
    [line] = [line for line in CONTAINER.splitlines() if line.startswith("RUN pip install")]
    assert "-c constraints.txt" in line
    extras = re.search(r"\.\[([^]]+)\]", line)[1].split(",")
    assert set(extras) <= PROJECT["optional-dependencies"].keys()
    pinned = re.findall(r"vllm==([\d.]+)", (ROOT / "tools" / "vllm_env.sh").read_text(encoding="utf-8"))
    assert re.findall(r"vllm==([\d.]+)", CONTAINER) == [pinned[-1]]


def test_its_image_is_the_one_that_the_templates_start():
    built = set(re.findall(r"docker build .*-t (\S+)", CONTAINER))
    started = {name for file in CLUSTER for name in re.findall(r"image: (\S+)", file.read_text(encoding="utf-8"))}
    assert started == {"vlm-r1:latest"} <= built
    targets = set(re.findall(r"--target (\S+)", CONTAINER))
    assert targets <= set(re.findall(r"^FROM \S+ AS (\S+)", CONTAINER, re.MULTILINE))


def test_the_workflow_runs_what_ci_runs():
    workflow = load(".github/workflows/ci.yml")
    assert workflow["permissions"] == {"contents": "read"}
    assert set(workflow[True]) == {"push", "pull_request"}  # YAML reads the key "on" as true
    steps = workflow["jobs"]["ci"]["steps"]
    assert steps[-1] == {"run": ".ci/run"} and os.access(ROOT / ".ci" / "run", os.X_OK)
    [python] = [step["with"] for step in steps if "setup-python" in step.get("uses", "")]
    low = re.search(r">=\s*([\d.]+)", PROJECT["requires-python"])[1]
    assert python["python-version"] == low
    assert all((ROOT / name).is_file() for name in python["cache-dependency-path"].split())


def test_the_citation_is_that_of_this_version():
    citation = load("CITATION.cff")
    assert citation["version"] == vlm_r1.__version__ and citation["license"] == PROJECT["license"]
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    [paper] = citation["references"]
    assert paper["url"].endswith("2504.07615") and len(paper["authors"]) == 12


@pytest.mark.parametrize("form", ["bug.yml", "feature.yml"])
def test_an_issue_form_is_one(form):
    found = load(f".github/ISSUE_TEMPLATE/{form}")
    assert {"name", "description", "body"} <= found.keys()
    kinds = {"markdown": "value", "textarea": "label", "dropdown": "label", "checkboxes": "label"}
    ids = [item["id"] for item in found["body"] if item["type"] != "markdown"]
    assert len(ids) == len(set(ids))
    for item in found["body"]:
        assert kinds[item["type"]] in item["attributes"], item
        assert item["type"] not in ("dropdown", "checkboxes") or item["attributes"]["options"]
    text = (ROOT / ".github" / "ISSUE_TEMPLATE" / form).read_text(encoding="utf-8")
    for name in re.findall(r"\b(?:docs/[\w-]+\.md|[A-Z]+\.md)\b", text):
        assert (ROOT / name).is_file(), name


def test_the_security_policy_names_commands_and_settings_that_exist():
    from vlm_r1.config_keys import all_keys

    policy = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    commands = re.findall(r"`vlm-r1 (\w+)", policy)
    sources = " ".join(file.read_text(encoding="utf-8") for file in (ROOT / "src" / "vlm_r1" / "cli").glob("*.py"))
    assert len(commands) > 3 and all(f'"{name}"' in sources for name in commands)
    assert "model.trust_remote_code" in policy and "model.trust_remote_code" in all_keys()
