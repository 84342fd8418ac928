"""What is checked before a model is loaded and before a run folder is made, and what is warned of."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from support import recipe

from vlm_r1.config import Recipe
from vlm_r1.errors import ConfigError, DataError, RewardError
from vlm_r1.rl import loop
from vlm_r1.runtime import session
from vlm_r1.runtime.inputs import read_inputs, with_steps
from vlm_r1.sft import train as sft

HELD = {"held": {"scenes": {"split": "in_domain", "n": 2}}}


@pytest.fixture
def rows(tmp_path):
    """`rows(n, **fields)`: a data file of n rows about one image."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")

    def write(n, **fields):
        row = {"image": "a.png", "solution": [1, 1, 5, 5], "task": "rec"} | fields
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row | {"problem": f"q{i}"}) + "\n" for i in range(n)))
        return str(path)

    return write


@pytest.mark.parametrize("method", ["grpo", "sft"])
@pytest.mark.parametrize(
    ("sections", "error", "message"),
    [
        ({"data": {"train": []}}, ConfigError, r"data\.train: is empty"),
        ({"data": {"train": [{"path": "nope.jsonl"}]}}, DataError, "nope.jsonl"),
        ({"data": {"eval": {"held": {"path": "nope.jsonl"}}}}, DataError, "nope.jsonl"),
        ({"data": {"eval": {"held": HELD["held"] | {"sampling": "last:3"}}}}, ConfigError, 'sampling is "last:3"'),
        ({"prompt": {"template": "r2"}}, ConfigError, r'prompt\.template: "r2"'),
        ({"data": {"eval": HELD}, "eval": {"suites": {"hold": "rec"}}}, ConfigError, 'suites: "hold".*mean "held"'),
        (
            {"data": {"eval": HELD}, "eval": {"keep_best": "hold/mean_iou", "every": 1}},
            ConfigError,
            r'eval\.keep_best: "hold" is not a split of data\.eval: did you mean "held"',
        ),
        (
            {"data": {"eval": HELD}, "eval": {"keep_best": "held/iou", "every": 1}},
            ConfigError,
            r'eval\.keep_best: "iou" is not a metric of held: did you mean "mean_iou"',
        ),
        (
            {"data": {"eval": HELD}, "eval": {"keep_best": "held/mean_length", "every": 1}},
            ConfigError,
            r"valid: acc@0\.5, mean_iou, well_formed",
        ),
    ],
)
def test_what_is_wrong_is_said_before_a_model_is_loaded(tmp_path, monkeypatch, method, sections, error, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(session, "open_trained", lambda *_: pytest.fail("a model is loaded"))
    train = loop.train if method == "grpo" else sft.train
    with pytest.raises(error, match=message):
        train(recipe(tmp_path / "no-model", tmp_path / "run", method, **sections))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("parts", [{"iuo": 1.0}, {"nope.py:f": 1.0}])
def test_wrong_rewards_are_said_before_a_model_is_loaded(tmp_path, monkeypatch, parts):
    monkeypatch.setattr(session, "open_trained", lambda *_: pytest.fail("a model is loaded"))
    with pytest.raises(ConfigError, match=r"iuo|nope"):
        loop.train(recipe(tmp_path / "no-model", tmp_path / "run", rewards={"parts": parts}))
    assert not (tmp_path / "run").exists()


def test_a_row_that_names_an_unknown_reward_is_found_at_once(tmp_path, rows):
    settings = recipe(tmp_path, tmp_path / "run", data={"train": [{"path": rows(2, reward="iuo")}]})
    with pytest.raises(RewardError, match=r'sample rows\.jsonl:1: unknown reward "iuo": did you mean "iou"'):
        read_inputs(settings)
    pq.write_table(pa.table({"problem": ["a"], "solution": ["yes"], "reward": ["iuo"]}), tmp_path / "rows.parquet")
    settings = recipe(tmp_path, tmp_path / "run", data={"train": [{"path": str(tmp_path / "rows.parquet")}]})
    with pytest.raises(RewardError, match=r'rows\.parquet: unknown reward "iuo"'):
        read_inputs(settings)


def test_overlap_and_too_large_a_sampling_are_warned_of_by_the_first_process(tmp_path, rows, monkeypatch, capsys):
    path = rows(30)
    data = {"train": [{"path": path, "sampling": "first:26"}], "eval": {"held": {"path": path, "sampling": "end:40"}}}
    settings = recipe(tmp_path, tmp_path / "run", data=data)
    read_inputs(settings)
    first, second = capsys.readouterr().err.splitlines()
    assert first == ('warning: data.eval.held: sampling "end:40" asks for more rows than there are; all 30 are used')
    assert second.startswith("warning: data.eval.held: 26 of its 30 rows are trained on too (same image and question)")
    monkeypatch.setenv("RANK", "1")
    read_inputs(settings)
    assert capsys.readouterr().err == ""
    monkeypatch.delenv("RANK")
    read_inputs(settings, trains=False)
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(
    ("epochs", "items", "per_step", "steps"),
    [(1, 12, 4, 3), (2, 13, 4, 7), (0.1, 30, 3, 1), (0.01, 5, 4, 1), (3, 10, 30, 1)],
)
def test_epochs_are_steps_rounded_up(tmp_path, epochs, items, per_step, steps):
    settings = Recipe.model_validate({"run": {"epochs": epochs}})
    run = with_steps(settings, items, per_step).run
    assert (run.steps, run.epochs) == (steps, None)
    plain = Recipe.model_validate({"run": {"steps": 9}})
    assert with_steps(plain, items, per_step) is plain


@pytest.mark.parametrize(("method", "steps"), [("grpo", 9), ("sft", 5)])
def test_an_epoch_is_over_rows_and_of_sft_over_images(tmp_path, monkeypatch, method, steps):
    class Opened(Exception):
        pass

    def opened(settings, inputs):
        raise Opened(settings.run.steps)

    # 12 rows of 12 images, and 6 of 3 images: 18 rows, 15 images; 2 (rows, or images of 3) in a step
    extra = {"scenes": {"split": "base", "n": 3, "per_image": 2}}
    data = {"train": [{"scenes": {"split": "train", "n": 12}}, extra]}
    run = {"dir": str(tmp_path / "run"), "epochs": 1}
    settings = recipe(tmp_path, tmp_path / "run", method, data=data, sft={"images_per_step": 3})
    settings = settings.model_copy(update={"run": type(settings.run).model_validate(run)})
    module = loop if method == "grpo" else sft
    monkeypatch.setattr(module, "open_session", opened)
    with pytest.raises(Opened) as told:
        module.train(settings)
    assert told.value.args == (steps,)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"run": {"steps": 3, "epochs": 1}}, "steps and epochs"),
        ({"eval": {"early_stopping_patience": 1}}, "need keep_best"),
        ({"eval": {"load_best_at_end": True}}, "need keep_best"),
        ({"eval": {"keep_best": "held/mean_iou"}}, r"set eval\.every"),
        ({"eval": {"keep_best": "mean_iou", "every": 1}}, "must be SPLIT/metric"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(sections, message):
    with pytest.raises(ValueError, match=message):
        Recipe.model_validate(sections)
