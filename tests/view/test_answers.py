"""Groups, questions over time and evaluations: what is found, in which order, in which colour."""

import base64
import dataclasses
import io
import itertools
import json
import random

import pytest
from PIL import Image, ImageColor

from vlm_r1.report.findings import MINUS
from vlm_r1.runtime.runlog import RunLog
from vlm_r1.view import groups, samples
from vlm_r1.view.cards import LARGE, cards, colour, drawing, score_of, span
from vlm_r1.view.folder import RunFolder
from vlm_r1.view.history import MAX_STEPS, Index, moments, scores, search
from vlm_r1.view.samples import Chosen, choices, pairs_of, table


@pytest.fixture(scope="module")
def run(run_dir):
    return RunFolder(run_dir)


@pytest.fixture(scope="module")
def found(run):
    return groups.groups_of(run.rollouts(2))


def test_groups_are_filtered_and_ordered(found):
    names = {show: [group.name for group in groups.select(found, show)] for show in groups.SHOW}
    first, second, third = "group 1", "group 2", "group 3"
    assert names == {
        "All": [first, second, third],
        "Best first": [first, second, third],
        "Worst first": [third, second, first],
        "Parse failures": [third],
        "Zero variance": [second],
        "Warnings": [first, second, third],
    }
    assert [group.mean for group in found] == [0.625, 0.5, 0.0625]
    assert found[0].key == ("train-0", "the red circle") and found[0].image().startswith(b"\x89PNG")


def test_steps_are_filtered_by_what_their_metrics_say(run):
    assert groups.select_steps(run.steps(), run.metrics(), "Warnings") == [5]
    assert groups.select_steps(run.steps(), run.metrics(), "Worst first") == [1, 2, 5, 6]
    assert groups.select_steps([1, 2, 3], [{"step": 1, "parse/failed": 0.0}], "Parse failures") == [2, 3]
    assert [groups.nearest_step([1, 5, 9], wanted) for wanted in (-3, 3, 4, 99)] == [1, 1, 5, 9]
    assert groups.nearest_step([], 1) is None


def test_scores_have_the_colours_of_the_ramp():
    ends = (0.0, 2.0)
    assert [colour(value, ends) for value in (-1.0, 0.0, 1.0, 2.0)] == ["#d73a49", "#d73a49", "#fbd25c", "#2f7df6"]
    assert colour(0.25, ends) == "#e66040"  # halfway from (215, 58, 73) to (245, 133, 54)
    assert colour(3.0, (3.0, 3.0)) == "#fbd25c" and colour(None, ends) == "#8b95a1"


def test_an_answer_is_scored_by_its_reward_or_its_accuracy(run):
    assert score_of({"reward": None}) == ("reward", None)
    assert score_of({"iou": None, "score": 0.5, "correct": True}) == ("score", 0.5)
    assert score_of({"iou": None, "score": None, "correct": True}) == ("correct", 1.0)
    assert span(run.rollouts(2)) == (0.0, 1.0) and span(run.samples("before")) == (0.0, 1.0)
    assert span([{"reward": -0.5}, {"reward": None}, {"reward": 3.0}]) == (-0.5, 3.0)


def test_a_drawing_has_the_boxes_of_every_answer(found):
    drawn = drawing(found[2].rows, found[2].image, (0.0, 1.0))
    true, *predicted = drawn.strokes
    assert (true.kind, true.x, true.y, true.width, true.height) == ("true", 20, 30, 60, 40)
    assert [(s.answer, s.label, s.x) for s in predicted] == [(1, "1", 20), (2, "2", 30), (3, "3", 40)], (
        "4 is unreadable"
    )
    assert drawn.uri.startswith("data:image/png") and not drawn.missing


def test_a_image_that_cannot_be_shown_is_named(found):
    assert "cannot be read" in drawing(found[0].rows, lambda: b"no image", (0, 1)).missing
    lost = dataclasses.replace(found[0], rows=tuple(row | {"image": None} for row in found[0].rows))
    assert "kept no image" in drawing(lost.rows, lost.image, (0, 1)).missing


def test_the_numbers_of_many_answers_do_not_cover_each_other(found, make_row):
    """Sixteen answers about one object: numbers that find no room wait until their answer is pointed at."""
    rng = random.Random(0)
    rows = [
        make_row("the red circle", "x", [20 + rng.uniform(-6, 6), 30 + rng.uniform(-6, 6), 80, 70], reward=0.5)
        for _ in range(16)
    ]
    drawn = drawing(rows, found[0].image, (0.0, 1.0))
    numbers = [stroke for stroke in drawn.strokes if stroke.label]
    assert [stroke.label for stroke in numbers] == [str(n) for n in range(1, 17)]
    boxes = [(x, y - drawn.text, x + 0.62 * drawn.text * len(s.label), y) for s in numbers if s.at for x, y in [s.at]]
    assert len(boxes) >= 12
    for a, b in itertools.combinations(boxes, 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
    assert all(min(box[:2]) >= 0 and box[2] <= 200 and box[3] <= 100 for box in boxes)


def test_a_large_image_is_shrunk(found):
    sink = io.BytesIO()
    Image.new("RGB", (3000, 500)).save(sink, "PNG")
    uri = drawing(found[0].rows, sink.getvalue, (0, 1)).uri
    assert Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).size == (LARGE, LARGE // 6)


def test_cards_say_what_was_answered_and_what_it_got(found):
    first, *_, last = cards(found[2].rows, (0.0, 1.0))
    assert (first.score, first.advantage, first.parts) == (
        "reward 0.000",
        f"{MINUS}0.062",
        (("iou", "0.000", 0.0), ("format", "1.000", 100.0)),
    )
    assert (last.failure, last.facts) == ("no_answer", ("12 tokens", "cut at the token limit"))
    assert last.text.startswith("<think>")


def test_a_question_is_followed_through_evaluations_and_training(run):
    index = Index(run)
    index.read_on()
    index.join()
    assert index.progress == (4, 4)
    held = moments([index], ("held-0", "held out 0"))
    assert [(m.step, m.group.name, m.group.mean) for m in held] == [
        (0, "before", 0.25),
        (2, "step 2", 0.5),
        (6, "after", 1.0),
    ]
    trained = moments([index], ("train-1", "the blue square"))
    assert [(m.step, len(m.group.rows)) for m in trained] == [(1, 4), (2, 4), (5, 4), (6, 4)]
    assert scores(trained, run.name) == [(1, 0.5), (2, 0.5), (5, 0.5), (6, 0.5)]
    assert moments([index], ("train-1", "another question")) == []


def test_a_question_has_its_image_at_every_moment(make_run, tmp_path):
    folder = make_run(tmp_path / "run")
    rows = RunFolder(folder).samples("after")
    RunLog(folder).evaluation("after", {"in_domain": {"n": 2}}, [row | {"image": None} for row in rows])
    found = moments([Index(RunFolder(folder))], ("held-0", "held out 0"))
    assert [m.group.image()[:4] for m in found] == [b"\x89PNG"] * 3


def test_questions_are_found_by_words_or_sample_id(run):
    index = Index(run)
    assert search([index], "OUT 1") == [("held-1", "held out 1")]
    index.read_on()
    index.join()
    assert search([index], "train-2") == [("train-2", "the green cross")]
    assert search([index], "", most=3)[:2] == [("held-0", "held out 0"), ("held-1", "held out 1")]
    assert search([index], "nowhere") == []


def test_a_question_of_very_many_steps_is_shown_at_some(run):
    index = Index(run)
    index._steps[("train-1", "the blue square")] = [1] * (MAX_STEPS * 3)
    assert len(moments([index], ("train-1", "the blue square"))) == MAX_STEPS


def test_held_out_questions_are_filtered_by_score_and_change(run):
    after, before = Chosen(run=run, name="after"), Chosen(run=run, name="before")
    pairs = pairs_of(after, before)["in_domain"]
    told = {show: [p.row["sample_id"] for p in samples.select(pairs, show)] for show in samples.SHOW}
    assert told == {
        "All": ["held-0", "held-1"],
        "Best first": ["held-0", "held-1"],
        "Worst first": ["held-1", "held-0"],
        "Gains": ["held-0"],
        "Losses": [],
        "Parse failures": [],
    }
    assert samples.group(pairs[0], after).name == "+0.750"
    back = pairs_of(before, after)["in_domain"]
    assert [p.row["sample_id"] for p in samples.select(back, "Losses")] == ["held-0"]


def test_a_held_out_question_without_a_stored_image_has_that_of_its_data(make_run, tmp_path):
    folder = make_run(tmp_path / "run")
    colours = ["#eeeeee", "#123456"]
    for place, paint in enumerate(colours):
        Image.new("RGB", (200, 100), paint).save(tmp_path / f"{place}.png")
    lines = [
        json.dumps({"id": f"held-{n}", "image": f"{n}.png", "problem": f"held out {n}", "solution": [20, 30, 80, 70]})
        for n in range(2)
    ]
    (tmp_path / "val.jsonl").write_text("\n".join(lines) + "\n")
    data = {"folder": str(tmp_path), "seed": 0, "splits": {"in_domain": {"path": "val.jsonl"}}}
    for phase in ("before", "after"):
        RunLog(folder).evaluation(phase, {"in_domain": {"n": 2}}, RunFolder(folder).samples(phase), data)
    run = RunFolder(folder)
    after = Chosen(run=run, name="after")
    pairs = pairs_of(after, Chosen(run=run, name="before"))["in_domain"]
    assert pairs[1].after["image"] is None
    for pair, paint in zip(pairs, colours, strict=True):
        image = Image.open(io.BytesIO(samples.group(pair, after).image())).convert("RGB")
        assert image.size == (200, 100) and image.getpixel((5, 5)) == ImageColor.getrgb(paint)
    for moment in moments([Index(run)], ("held-1", "held out 1")):
        assert Image.open(io.BytesIO(moment.group.image())).getpixel((5, 5)) == ImageColor.getrgb(colours[1])


def test_the_table_has_the_metrics_of_both_evaluations(run, second_dir):
    second = dataclasses.replace(choices([run])[0], run=RunFolder(second_dir), name="after")
    names, rows = table(second, Chosen(run=run, name="before"))
    assert names == ["first: before", "second: after"]
    [iou] = [row for row in rows if row.metric == "mean_iou"]
    assert [cell.value for cell in iou.cells] == [0.375, 0.5] and iou.cells[1].difference == 0.125
    names, rows = table(Chosen(run=run, name="after"), None)
    assert names == ["first: after"] and len(rows[0].cells) == 1


def test_an_evaluation_in_a_file_of_its_own_is_found(make_run, tmp_path):
    run = RunFolder(make_run(tmp_path / "run"))
    (run.path / "mine.json").write_text('{"in_domain": {"n": 2, "mean_iou": 0.5}}')
    (run.path / "mine.parquet").write_bytes((run.path / "eval-after.parquet").read_bytes())
    chosen = choices([run])[-1]
    assert chosen.label == "run: mine"
    assert [row.cells[0].value for row in table(chosen, None)[1]] == [0.5]
