"""Recipes: bombs of aliases, values that no setting can have, and YAML of other tools."""

import itertools
from pathlib import Path

from hostile import Case, damaged
from vlm_r1.config_file import load_config, resolved_yaml
from vlm_r1.errors import ConfigError
from vlm_r1.report.html import parsed_recipe
from vlm_r1.report.runs import list_runs

LETTERS = "abcdefghij"


def bomb(first: str, item: str, items: str) -> str:
    """Anchors that each hold the one before nine times."""
    lines = [f"a: &a {first}"]
    lines += [f"{new}: &{new} " + items % ", ".join([item % old] * 9) for old, new in itertools.pairwise(LETTERS)]
    return "\n".join(lines) + "\n"


def setting(dotted: str, value: str) -> str:
    """A recipe with one setting."""
    section, _, key = dotted.partition(".")
    return f"{section}:\n  {key}: {value}\n"


VALUES = {
    ("optim.lr", ".inf"): "optim.lr: must be a finite number; got inf",
    ("optim.lr", ".nan"): "optim.lr: must be a finite number; got nan",
    ("optim.lr", "1" + "0" * 400): "optim.lr: ",
    ("optim.max_grad_norm", ".inf"): "optim.max_grad_norm: must be a finite number",
    ("rewards.parts", "{iou: .nan}"): "rewards.parts.iou: must be a finite number; got nan",
    ("rewards.parts", "{iou: -.inf}"): "rewards.parts.iou: must be a finite number; got -inf",
    ("rewards.options", "{iou: {floor: [.nan]}}"): "rewards.options: iou: floor: must be a finite number; got nan",
    ("rewards.timeout_s", "1e300"): "rewards.timeout_s: must be less than or equal to 1",
    ("model.scratch", "{vocab_size: 10000000000}"): "model.scratch: vocab_size: must be an integer of at most",
    ("run.steps", "1e22"): "run.steps: must be a valid integer",
    ("run.steps", "10000000000000000000000"): "run.steps: must be an integer of at most 2147483647",
    ("run.steps", "9" * 4000): "run.steps: must be an integer of at most 2147483647",
    ("run.steps", "9" * 5000): "Exceeds the limit",
    ("run.epochs", "1e300"): "run.epochs: must be less than or equal to 1000000",
    ("run.seed", "-1"): "run.seed: must be greater than or equal to 0",
    ("run.seed", "4294967296"): "run.seed: must be less than 4294967296",
    ("run.keep", "true"): "run.keep: must be a valid integer; got true",
    ("rl.group_size", "1000000000"): "rl.group_size: must be less than or equal to 65536",
    ("rollout.max_new_tokens", "2000000000"): "rollout.max_new_tokens: must be less than or equal to 1048576",
    ("run.dir", '"\\ud800"'): ":2: half a character",
    ("run.dir", "!!binary aGk="): "the tag tag:yaml.org,2002:binary is not one of a recipe",
    ("run.dir", "!!python/object/apply:os.system [id]"): "the tag .* is not one of a recipe",
    ("run.steps", '!!int ""'): "not valid YAML",
    ("run.steps", "!!bool x"): "not valid YAML",
}
"""Setting and value -> what the message says."""
CASES = [
    Case("bomb of lists", bomb("[x, x]", "*%s", "[%s]").encode(), "more than 20000 values"),
    Case("bomb of mappings", bomb("{x: x}", "*%s", "{p: [%s]}").encode(), "more than 20000 values"),
    Case("bomb of merges", bomb("{x: x}", "*%s", "{<<: [%s]}").encode(), "more than 20000 values"),
    Case("two merges", b"run: {<<: &a {steps: 1}, <<: *a}", 'key "<<" is given twice'),
    Case("an alias inside itself", b"run: &a {dir: *a}", "inside its own anchor"),
    Case("a merge inside itself", b"run: &a {<<: *a}", "inside its own anchor"),
    Case("deep lists", b"[" * 600, "too deeply nested"),
    Case("deep sections", "".join(f"{' ' * n}a:\n" for n in range(800)).encode(), "too deeply nested"),
    Case("a huge file", b"# padding\n" * 60_000, "has 600000 characters"),
    Case("bytes that are not UTF-8", b"run: \xff", "UTF-8"),
    Case("a zero byte", b"run: \0", "special characters"),
    Case("a list", b"- a", "a recipe is a mapping"),
    Case("a key that is a list", b"? [a]\n: b", "a key must be a name"),
    *(Case(f"{key}: {value[:40]}", setting(key, value).encode(), says) for (key, value), says in VALUES.items()),
]


def _file(content: bytes, folder: Path) -> Path:
    (folder / "config.yaml").write_bytes(content)
    return folder / "config.yaml"


def _load(content: bytes, folder: Path) -> None:
    recipe = load_config(_file(content, folder))
    assert load_config(_file(resolved_yaml(recipe).encode("utf-8"), folder)) == recipe


def _runs(content: bytes, folder: Path) -> None:
    _file(content, folder)
    [run] = list_runs(folder)
    if run.state == "broken":
        raise ConfigError("; ".join(run.problems))


def _report(content: bytes, folder: Path) -> None:
    parsed_recipe(content.decode("utf-8", "replace"), "config.yaml", lambda told: None)


DOORS = {"train": _load, "runs": _runs, "report": _report}
OTHERWISE = {"report": None}

EXAMPLE = b"""model: {path: tiny, scratch: {a: &a [1, 2.5, .inf], b: *a}}
data:
  train:
    - {scenes: {split: train, n: 1_000, questions: {attribute: 1.0}}, weight: 2}
  eval:
    held: &held {path: "x \\ud83e\\udd2a.jsonl", sampling: "random:10%"}
    more: {<<: *held, task: 'rec'}
rewards: {parts: {iou: 1.0, format: 0.5}, options: {iou: {x: ~}}}
run: {dir: runs/x, steps: 20, seed: 0}
optim: {lr: 1e-6, name: !!str adamw}
"""
CONTENTS = damaged([EXAMPLE, *(case.content for case in CASES if len(case.content) < 300)])
EXAMPLES = 25
