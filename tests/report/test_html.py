import io
import json
import random
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from vlm_r1.errors import CheckpointError
from vlm_r1.records import LabelledBox
from vlm_r1.report.gallery import each_of, step_cards
from vlm_r1.report.html import training_facts, write_report
from vlm_r1.report.images import MAX_SIDE, Album
from vlm_r1.runtime.runlog import RunLog, read_eval

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """Collects tags and what they refer to, and checks that they nest."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.links, self.anchors = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        found = dict(attrs)
        self.links += [found[name] for name in ("src", "href", "data", "action", "poster") if name in found]
        self.anchors += [found["id"]] if "id" in found else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def text(run_dir):
    return write_report([run_dir]).read_text()


def test_page_holds_everything_and_fetches_nothing(text, run_dir):
    page = Page(text)
    assert (run_dir / "report.html").stat().st_size < 5_000_000
    assert "script" not in page.tags and "link" not in page.tags and "iframe" not in page.tags
    assert page.links and all(link.startswith(("data:image/", "#")) for link in page.links)
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.anchors)
    assert not re.search(r"https?://", text) and "@import" not in text
    assert len(re.findall(r"<image ", text)) == len(set(re.findall(r'href="(data:image/[^"]+)"', text)))


def test_sections_stand_in_order(text):
    names = ("Findings", "Before and after", "Held-out images", "Rollouts", "Curves", "How it was made")
    places = [text.index(f"<h2>{name}</h2>") for name in names]
    assert places == sorted(places)
    assert "GRPO of tiny, 60 steps, seed 0" in text and "group_size: 4" in text and "numpy" in text
    for word in ("Biggest gains", "Drawn at random", "Step 20", "Step 60", "Advantage", "Groups without a signal"):
        assert word in text


def test_findings_are_the_numbers_of_the_run(text, run_dir):
    evaluation = read_eval(run_dir)
    old, new = (evaluation[phase]["in_domain"]["mean_iou"] for phase in ("before", "after"))
    assert f"{old:.3f} → {new:.3f}" in text
    assert re.search(rf"Rose by {new - old:.3f} \(95 % interval \+0\.\d+ to \+0\.\d+, 60 questions\)", text)


def test_text_of_model_and_data_is_escaped(tmp_path, rollout_rows):
    evil = "<script>alert(1)</script><img src=http://evil.example/x>"
    log = RunLog(tmp_path / evil.replace("/", "_"))
    row = rollout_rows(random.Random(0), 0.5)[0]
    row |= {"think": evil, "answer": evil, "question": evil, "failure": evil, "source": evil, "finish": "length"}
    row |= {"parts": json.dumps({evil: 0.5}), "true_boxes": json.dumps([{"box": [1, 2, 3, 4], "label": evil}] * 2)}
    log.rollouts(1, [row])
    log.metrics(1, {"reward": 0.5, f"rewards/{evil}/mean": 0.5})
    sample = {"split": evil, "sample_id": "1", "question": evil, "completion": evil, "failure": evil, "iou": 0.5}
    sample |= {"image": row["image"], "image_width": 96, "image_height": 96}
    for phase in ("before", "after"):
        log.evaluation(phase, {evil: {"n": 1, "mean_iou": 0.5, evil: 0.5}}, [sample])
    (log.run_dir / "config.yaml").write_text(f"model:\n  path: '{evil}'\n")
    page = Page(text := write_report([log.run_dir]).read_text())
    assert "script" not in page.tags and "img" not in page.tags
    assert "<script" not in text and text.count("&lt;script&gt;alert(1)") > 8
    assert all(link.startswith(("data:image/", "#")) for link in page.links)


def test_supervised_run_without_rollouts_and_evaluation_says_what_is_missing(tmp_path):
    log = RunLog(tmp_path)
    for step in range(1, 4):
        log.metrics(step, {"loss": 1 / step, "lr": 1e-3})
    text = write_report([tmp_path]).read_text()
    for word in ("No evaluation", "No rollouts", "No configuration", "Loss"):
        assert word in text
    assert "<h2>Rollouts</h2>" not in text and "<h2>Held-out images</h2>" not in text


def test_a_supervised_run_is_told_of_by_its_loss_and_its_model(tmp_path):
    log = RunLog(tmp_path)
    (tmp_path / "config.yaml").write_text(
        "method: sft\nmodel: {path: tiny, init: scratch, scratch: {model_type: qwen3_vl}}\nrun: {steps: 20, seed: 4}\n"
    )
    for step in range(1, 21):
        log.metrics(step, {"loss": 4.0 - step / 10})
    text = write_report([tmp_path]).read_text()
    assert "Supervised fine-tuning of a qwen3_vl from scratch, 20 steps, seed 4" in text
    assert "Training loss: 3.850 over the first 2 steps, 2.050 over the last 2 steps." in text
    assert "No evaluation and no rollouts: supervised runs have none." in text
    assert "Not finished" not in text and "The diagnostics" not in text and "No rollouts:" not in text


def test_a_run_cut_off_shows_its_only_evaluation(tmp_path):
    log = RunLog(tmp_path)
    (tmp_path / "config.yaml").write_text("method: grpo\nrun: {steps: 600}\n")
    log.metrics(1, {"reward": 0.5})
    log.evaluation("before", {"val": {"n": 3, "mean_iou": 0.25}})
    text = write_report([tmp_path]).read_text()
    assert "GRPO, 1 step" in text and "Not finished: 1 of 600 steps are done." in text
    assert "No before and after: the evaluation of one side is missing." in text
    assert '<th scope="col">before</th></tr>' in text and "val, 3 questions" in text and "<td>0.250</td>" in text


def test_several_runs_name_the_one_without_an_evaluation(tmp_path, write_run):
    runs = [write_run(tmp_path / "a", steps=3), tmp_path / "b"]
    RunLog(runs[1]).metrics(1, {"reward": 0.5})
    assert "No before and after: the evaluation of one side of b is missing." in write_report(runs).read_text()


def test_best_and_worst_answers_differ_in_reward(tmp_path, rollout_rows):
    rows = rollout_rows(random.Random(0), 0.5)
    for row in rows:
        row["reward"] = 0.5
    RunLog(tmp_path).rollouts(1, rows)
    (step,) = step_cards(tmp_path, Album())
    assert step.alike and len(step.best) == 2 and step.worst == ()
    assert "Step 1, 16 answers, all with the same reward" in write_report([tmp_path]).read_text()
    rows[3]["reward"] = 0.75
    RunLog(tmp_path).rollouts(1, rows)
    (step,) = step_cards(tmp_path, Album())
    assert [card.reward for card in step.best] == ["0.750"] and [card.reward for card in step.worst] == ["0.500"] * 2


def test_pages_of_many_splits_show_fewer_cards_of_each():
    assert [each_of(n) for n in (0, 1, 4, 5, 12, 40)] == [3, 3, 3, 2, 1, 1]


def test_empty_folder_makes_a_page_and_no_folder_is_an_error(tmp_path):
    assert "No curves" in write_report([tmp_path]).read_text()
    with pytest.raises(CheckpointError, match="no such run folder"):
        write_report([tmp_path / "nothing"])
    with pytest.raises(CheckpointError, match="at least one"):
        write_report([])


def test_lone_evaluation_shows_its_images(tmp_path):
    log = RunLog(tmp_path)
    sink = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(sink, "PNG")
    row = {"split": "val", "sample_id": "1", "question": "the thing", "iou": 0.5, "image": sink.getvalue()}
    log.evaluation("eval", {"val": {"n": 1, "mean_iou": 0.5}}, [row | {"image_width": 8, "image_height": 8}])
    text = write_report([tmp_path]).read_text()
    assert "the thing" in text and "No before and after" in text and "<td>0.500</td>" in text


def test_cut_last_line_and_odd_configuration_are_tolerated(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "reward": 0.5}\n{"step": 2, "reward": 0.7}\n{"step": 3, "rew')
    (tmp_path / "config.yaml").write_text("just: [words\n")
    text = write_report([tmp_path]).read_text()
    assert "Training reward: 0.500 over the first step, 0.700 over the last step." in text
    assert "A run, 2 steps" in text


def test_several_runs_get_one_page_with_bands(tmp_path, write_run):
    runs = [write_run(tmp_path / f"seed{seed}", seed=seed, steps=20, gain=0.1 * seed) for seed in (1, 2, 3)]
    path = write_report(runs)
    text = path.read_text()
    assert path == tmp_path / "report.html" and "3 runs" in text
    assert "Band: from the lowest to the highest" in text and "<polygon" in text
    assert re.search(r"3 runs, from \+0\.\d+ to \+0\.\d+", text)
    assert write_report(runs[:1], tmp_path / "one.html").read_text().count("<polygon") == 0


def test_training_facts_are_computed_by_hand():
    metrics = [
        {"step": step, "reward": step / 20, "frac_reward_zero_std": 0.5, "time/step_s": 10.0, "time/rollout_s": 6.0}
        for step in range(1, 21)
    ]
    assert training_facts(metrics) == [
        "Training reward: 0.075 over the first 2 steps, 0.975 over the last 2 steps.",
        "Groups whose answers all scored alike, so that they taught nothing: 50 %.",
        "Time in training steps: 3 min (rollout 60 %).",
    ]
    assert training_facts([]) == []


def noise(side):
    sink = io.BytesIO()
    Image.effect_noise((side, side), 90).convert("RGB").save(sink, "PNG")
    return sink.getvalue()


def test_album_embeds_once_shrinks_and_keeps_to_its_budget():
    album = Album(budget=400_000)
    small = noise(16)
    first, again = album.view(small, (16, 16)), album.view(small, (16, 16), true=[LabelledBox(box=(1, 2, 5, 8))])
    assert first.uri.startswith("data:image/png") and again.uri == "" and again.anchor == first.anchor
    (stroke,) = again.strokes
    assert (stroke.x, stroke.y, stroke.width, stroke.height, stroke.kind) == (1, 2, 4, 6, "true")
    large = album.view(noise(2 * MAX_SIDE), (2 * MAX_SIDE,) * 2)
    assert large.uri.startswith("data:image/jpeg") and len(large.uri) < 400_000 and large.width == 2 * MAX_SIDE
    for _ in range(9):
        album.view(noise(400), (400, 400))
    assert album.left_out > 0 and album.budget >= 0
    assert Album().view(b"no image", (5, 5)).uri == "" and Album().view(None, (None, None)).width == 1


def test_many_boxes_are_cut_and_not_labelled():
    few = Album().view(None, (50, 40), predicted=[LabelledBox(box=(1, 1, 9, 9), label="cat")] * 3)
    assert [stroke.label for stroke in few.strokes] == ["cat"] * 3
    assert len({stroke.at for stroke in few.strokes if stroke.at}) >= 2
    assert few.content == "no true boxes, 3 predicted"
    many = Album().view(None, (50, 40), predicted=[LabelledBox(box=(1, 1, 9, 9), label="cat")] * 75)
    assert {stroke.label for stroke in many.strokes} == {""}
    assert (len(many.strokes), many.undrawn, many.boxes) == (60, 15, (0, 75))


def test_boxes_are_kept_inside_the_image():
    view = Album().view(
        None, (50, 40), predicted=[LabelledBox(box=(1e9, -5, 10, 20)), LabelledBox(box=(float("inf"), 0, 1, 1))]
    )
    (stroke,) = view.strokes
    assert (stroke.x, stroke.y, stroke.width, stroke.height) == (10, 0, 40, 20)
