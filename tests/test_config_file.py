"""Recipes read from YAML and the command line; every mistake is named with its place."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vlm_r1.config import Recipe
from vlm_r1.config_file import load_config, parse_value, resolved_yaml
from vlm_r1.config_keys import OTHER_NAMES, all_keys, unknown_key
from vlm_r1.config_section import MAX_INTEGER
from vlm_r1.errors import ConfigError


@pytest.fixture
def recipe(tmp_path):
    """Writes a text to a file and returns its path."""

    def write(text: str):
        path = tmp_path / "my.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def message(path, *overrides) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, list(overrides))
    return str(caught.value)


def test_values_reach_their_sections(recipe):
    got = load_config(recipe("rl:\n  group_size: 4\ndata:\n  train:\n    - path: a.jsonl\n"), ["optim.lr=2e-6"])
    assert (got.rl.group_size, got.optim.lr, got.data.train[0].path) == (4, 2e-6, "a.jsonl")
    assert got.run.steps == Recipe().run.steps


def test_overrides_win_and_reach_into_lists_and_mappings(recipe):
    path = recipe("data:\n  train:\n    - path: a\n    - path: b\nrewards: {parts: {iou: 1}}\n")
    got = load_config(path, ["data.train.1.path=c", "rewards.parts.format=0.5", "model.path=no", "run.dir=a=b"])
    assert [source.path for source in got.data.train] == ["a", "c"]
    assert got.rewards.parts == {"iou": 1.0, "format": 0.5}
    assert (got.model.path, got.run.dir) == ("no", "a=b")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-6", 1e-6),
        ("2.", 2.0),
        ("-3", -3),
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("~", None),
        ("", None),
        ("12:30", "12:30"),
        ("2024-01-31", "2024-01-31"),
        ("012", "012"),
        ("[1, a]", [1, "a"]),
        ("{a: 1}", {"a": 1}),
        ("'1'", "1"),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text, value):
    got = parse_value(text)
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "rl:\n  group_sise: 4\n",
            'my.yaml:2: unknown key "rl.group_sise": did you mean "group_size"? (valid: algorithm',
        ),
        ("a: 1\n", 'my.yaml:1: unknown key "a": (valid: data, env, eval, lora, method'),
        ("rwards: {}\n", 'my.yaml:1: unknown key "rwards": did you mean "rewards"?'),
        ("rl:\n  beta: 0\n  lr: 1\n", 'my.yaml:3: unknown key "rl.lr": did you mean "optim.lr"?'),
        ("rl: {temprature: 1}\n", 'unknown key "rl.temprature": did you mean "rollout.temperature"?'),
        ("learning_rate: 1\n", 'did you mean "optim.lr"?'),
        (
            "data:\n  eval:\n    scenes:\n      pathh: 1\n",
            'my.yaml:4: unknown key "data.eval.scenes.pathh": did you mean "path"?',
        ),
        (
            "data:\n  train:\n  - scenes: {splt: base}\n",
            'my.yaml:3: unknown key "data.train.0.scenes.splt": did you mean "split"?',
        ),
    ],
)
def test_a_wrong_key_names_itself_and_the_right_one(recipe, text, expected):
    assert expected in message(recipe(text))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rl:\n\n  group_size: many\n", 'my.yaml:3: rl.group_size: must be a valid integer; got "many" (a string)'),
        ("rl: {group_size: true}\n", "rl.group_size: must be a valid integer; got true (true or false)"),
        ("rl: {group_size: '4'}\n", 'rl.group_size: must be a valid integer; got "4" (a string)'),
        ("rl: {group_size: 1}\n", "rl.group_size: must be greater than 1; got 1"),
        ("optim: {lr: }\n", "optim.lr: must be a valid number; got nothing (null)"),
        ("run: {dir: 3}\n", "run.dir: must be a string; got 3 (an integer)"),
        ("run: 3\n", "my.yaml:1: run: must be a mapping of keys; got 3"),
        ("method: ppo\n", "method: must be 'grpo' or 'sft'; got \"ppo\""),
        ("rewards: {parts: {iou: high}}\n", 'rewards.parts.iou: must be a valid number; got "high"'),
        (
            "data:\n  train:\n    - path: a\n      hub: b\n",
            "my.yaml:3: data.train.0: give exactly one of scenes, path, hub",
        ),
    ],
)
def test_a_wrong_value_names_key_value_and_what_is_expected(recipe, text, expected):
    assert expected in message(recipe(text))


def test_all_mistakes_are_told_at_once_in_the_order_of_the_lines(recipe):
    lines = message(recipe("rl:\n  group_size: x\nmodel:\n  pth: y\nrun:\n  steps: -1\n"), "optim.lr=fast").splitlines()
    assert [line.partition(": ")[0].rpartition("/")[2] for line in lines] == [
        "command line",
        "my.yaml:2",
        "my.yaml:4",
        "my.yaml:6",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "my.yaml: is empty"),
        ("# only a comment\n", "my.yaml: is empty"),
        ("- 1\n", "my.yaml: holds a list of 1; a recipe is a mapping"),
        ("rl:\n  beta: 0\n  beta: 1\n", 'my.yaml:3: key "beta" is given twice (first in line 2)'),
        ("rl: {beta: 0\nrun: 1\n", "my.yaml:2: is not valid YAML"),
        ("rl:\n\tbeta: 0\n", "my.yaml:2: is not valid YAML"),
        ("a: 1\n---\nb: 2\n", "my.yaml:2: is not valid YAML"),
        ("rl: &x [*x]\n", "my.yaml:1: an alias (*) stands inside its own anchor (&)"),
        (
            "rl: !!python/object:os.system {}\n",
            "my.yaml:1: the tag tag:yaml.org,2002:python/object:os.system is not one",
        ),
        ("? [a]\n: 1\n", "my.yaml:1: a key must be a name"),
        ("rl: \x07\n", "is not valid YAML"),
    ],
)
def test_broken_files(recipe, text, expected):
    assert expected in message(recipe(text))


def test_files_that_cannot_be_read(tmp_path):
    assert "no such recipe" in message(tmp_path / "none.yaml")
    assert "cannot be read" in message(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"run: {dir: \xe9}\n")
    assert "UTF-8" in message(tmp_path / "latin.yaml")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("rl", 'command line: "rl" is not an override; write section.key=value'),
        ("rl..beta=1", "is not an override"),
        ("=1", "is not an override"),
        ("rl.group_sise=4", 'command line: unknown key "rl.group_sise": did you mean "group_size"?'),
        ("sampler.x=1", 'command line: unknown key "sampler"'),
        ("rl.group_size.x=1", "rl.group_size is 3 (an integer) and has no key"),
        ("data.train.1.path=a", 'data.train is a list of 1; give an index from 0 to 0, not "1"'),
        ("prompt.template={question} x", "put a string in quotes: prompt.template='\"...\"'"),
        ("rl.group_size=x", 'command line: rl.group_size: must be a valid integer; got "x"'),
    ],
)
def test_wrong_overrides(recipe, override, expected):
    assert expected in message(recipe("rl: {group_size: 3}\ndata: {train: [path: a]}\n"), override)


def test_an_override_mends_a_wrong_value_of_the_file(recipe):
    assert load_config(recipe("rl: {group_size: x}\n"), ["rl.group_size=4"]).rl.group_size == 4


def test_anchors_and_merges_work(recipe):
    text = "data:\n  train:\n    - &a {path: x, weight: 2}\n  eval:\n    held: {<<: *a, path: y}\n"
    held = load_config(recipe(text)).data.eval["held"]
    assert (held.path, held.weight) == ("y", 2.0)


def test_every_other_name_leads_to_a_key():
    assert set(OTHER_NAMES.values()) <= set(all_keys())
    assert "data.train[].scenes.n" in all_keys()
    assert unknown_key(("rl", "num_generations")).endswith('did you mean "rl.group_size"?')


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    text=st.text()
    | st.sampled_from(["1e-3", "no", "null", "~", "1_0", "12:30", "=", "<<", ".inf", "+1", "0x1f", "a\rb"]),
    lr=st.floats(min_value=1e-12, max_value=1e3),
    parts=st.dictionaries(st.text(), st.floats(allow_nan=False, allow_infinity=False), max_size=3),
    extra=st.dictionaries(
        st.text(), st.none() | st.booleans() | st.integers(-MAX_INTEGER, MAX_INTEGER) | st.text(), max_size=3
    ),
)
def test_the_resolved_recipe_reads_back_equal(tmp_path, text, lr, parts, extra):
    recipe = Recipe.model_validate(
        {
            "model": {"path": text, "init": "scratch", "scratch": extra},
            "optim": {"lr": lr},
            "rewards": {"parts": parts},
            "data": {"eval": {"held": {"scenes": {"n": 3}}}},
        }
    )
    path = tmp_path / "config.yaml"
    path.write_text(resolved_yaml(recipe), encoding="utf-8")
    assert load_config(path) == recipe
