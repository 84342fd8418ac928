"""Images of rollouts reach the trackers: TensorBoard's own files are read back."""

import importlib.machinery
import io
import sys
import types

import numpy as np
import pytest
from PIL import Image
from support import recipe
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vlm_r1.data.draw import TRUE_COLOR
from vlm_r1.errors import ConfigError
from vlm_r1.rl import loop
from vlm_r1.runtime.runlog import boxes_from_json, read_rollouts
from vlm_r1.runtime.trackers import Trackers, track_images, track_table

TRACKED = {"trackers": ["tensorboard"], "track_images_every": 2, "log_rollouts_every": 1, "steps": 2}


def events(folder) -> EventAccumulator:
    found = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0})
    found.Reload()
    return found


def test_a_run_sends_images_of_its_rollouts(model_folder, tmp_path):
    run = recipe(model_folder, tmp_path / "run", run=TRACKED, rl={"prompts_per_step": 5, "group_size": 2})
    loop.train(run)
    found = events(tmp_path / "run" / "run")
    assert [event.step for event in found.Scalars("reward")] == [1, 2]
    assert sorted(found.Tags()["images"]) == [f"rollouts/{place}" for place in (1, 2, 3, 4)]
    [event] = found.Images("rollouts/1")
    assert event.step == 2
    image = Image.open(io.BytesIO(event.encoded_image_string)).convert("RGB")
    # A scene of 96 pixels is drawn 4 times as large; below are the question, the truth and two answers.
    assert image.size == (event.width, event.height) == (384, 384 + 4 * 20 + 2 * 8)
    row = read_rollouts(tmp_path / "run", 2)[0]
    assert row["pred_boxes"] == "[]"  # a tiny model with random weights draws no box over the true one
    left, top, right, bottom = (round(4 * side) for side in boxes_from_json(row["true_boxes"])[0].box)
    green = np.argwhere((np.asarray(image)[:384] == tuple(bytes.fromhex(TRUE_COLOR[1:]))).all(-1))
    assert green.min(0).tolist() == [top, left]
    assert green.max(0).tolist() == [min(bottom, 383), min(right, 383)]


def test_pixels_arrive_where_they_were(tmp_path):
    image = Image.new("RGB", (30, 20), "white")
    image.putpixel((25, 5), (255, 0, 0))
    trackers = Trackers(["tensorboard"], tmp_path / "x")
    track_images(trackers, 7, [image, Image.new("RGB", (8, 60))])
    trackers.log({"reward": 0.5, "warnings": ["not a number"]}, 7)
    trackers.finish()
    found = events(tmp_path / "x" / "x")
    assert [(event.step, event.value) for event in found.Scalars("reward")] == [(7, 0.5)]
    [first], [second] = found.Images("rollouts/1"), found.Images("rollouts/2")
    shown = Image.open(io.BytesIO(first.encoded_image_string))
    assert first.step == 7 and shown.size == (30, 20) and (second.width, second.height) == (8, 60)
    assert np.array_equal(np.asarray(shown.convert("RGB")), np.asarray(image))


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_other_trackers_get_images_as_accelerate_hands_them_on(monkeypatch, name):
    """Their packages are replaced: what counts is the calls that their trackers in accelerate take."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    sent = []
    package = types.SimpleNamespace(Image=lambda image: ("image", image))
    monkeypatch.setitem(sys.modules, name, package)
    tracker = LOGGER_TYPE_TO_CLASS[name]("x")
    tracker.run = types.SimpleNamespace(log=lambda values, step: sent.append((values, step)))
    images = [Image.new("RGB", (4, 4)), Image.new("RGB", (5, 4))]
    track_images(types.SimpleNamespace(trackers=[tracker]), 3, images)
    values = {key: value for part, _ in sent for key, value in part.items()}
    assert {step for _, step in sent} == {3}
    first, second = (("image", image) for image in images)
    listed = name == "wandb"
    assert values == {"rollouts/1": [first] if listed else first, "rollouts/2": [second] if listed else second}


def test_images_without_a_tracker_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"there are none; set run\.trackers"):
        recipe(tmp_path, tmp_path / "run", run={"track_images_every": 2})


def test_a_tracker_that_is_missing_is_named_before_the_model_is_loaded(model_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="tensorboard is not installed; run: pip install tensorboard"):
        loop.train(recipe(model_folder, tmp_path / "run", run=TRACKED))


def package(name, sent):
    """A stand-in of W&B or Trackio: what it is sent, with its tables as rows."""
    if name == "wandb":

        def table(columns, data):
            return [dict(zip(columns, row, strict=True)) for row in data]
    else:

        def table(dataframe):
            return dataframe.to_dict("records")

    run = types.SimpleNamespace(log=lambda values, step: sent.append((step, values)), finish=lambda: None)
    return types.SimpleNamespace(
        Image=lambda image: ("image", image.size), Table=table, init=lambda project: run, __spec__=importlib.machinery
    )


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_run_sends_its_answers_as_a_table_with_images(model_folder, tmp_path, monkeypatch, name):
    from accelerate import PartialState

    sent = []
    monkeypatch.setitem(sys.modules, name, package(name, sent))
    monkeypatch.setattr(PartialState, "_shared_state", {})  # as in a new process
    tracked = {"trackers": [name], "track_images_every": 2, "log_rollouts_every": 1, "steps": 2}
    loop.train(recipe(model_folder, tmp_path / "run", run=tracked, rl={"prompts_per_step": 2, "group_size": 3}))
    [(step, rows)] = [(step, values["rollouts/answers"]) for step, values in sent if "rollouts/answers" in values]
    kept = read_rollouts(tmp_path / "run", 2)
    assert step == 2 and len(rows) == len(kept) == 6
    assert sorted(row["completion"] for row in rows) == sorted(row["completion"] for row in kept)
    assert {row["question"] for row in rows} == {row["question"] for row in kept}
    assert sorted(row["advantage"] for row in rows) == pytest.approx(sorted(row["advantage"] for row in kept))
    assert {row["image"] for row in rows} == {("image", (384, 384))}
    best = [row["reward"] for row in rows[:3]]
    assert best == sorted(best, reverse=True)


def test_a_tracker_without_tables_and_a_step_without_images_send_none():
    sent = []
    for name, rows in (("tensorboard", [{"reward": 1.0}]), ("wandb", [])):
        tracker = types.SimpleNamespace(name=name, log=lambda *call: sent.append(call))
        track_table(types.SimpleNamespace(trackers=[tracker]), 3, rows)
    assert sent == []
