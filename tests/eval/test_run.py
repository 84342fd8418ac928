"""Greedy evaluation: what is asked, what is kept, and that it leaves the model as it was."""

import io
import json

import pytest
import torch
from PIL import Image
from support import Scripted, answered, recipe, save_tiny, tiny

from vlm_r1.boxes import iou
from vlm_r1.errors import ConfigError, EngineError
from vlm_r1.eval import run
from vlm_r1.eval.run import evaluate, evaluate_model, read_rollouts
from vlm_r1.rollout.native import NativeEngine
from vlm_r1.runtime.inputs import read_inputs
from vlm_r1.sft.targets import target_text

SPLITS = {
    "in_domain": {"scenes": {"split": "in_domain", "n": 5}},
    "out_of_domain": {"scenes": {"split": "out_of_domain", "n": 3, "questions": {"superlative": 1.0}}},
}


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    options = {"data": {"train": [], "eval": SPLITS}, "eval": {"max_new_tokens": 6, "batch_size": 2}}
    return recipe(save_tiny(folder), folder / "run", **options)


def splits_of(settings):
    return read_inputs(settings, trains=False).splits


def written(text_of, splits, settings):
    """Metrics and rows of a model that writes `text_of(prompt)`, asked once and greedily."""
    engine = Scripted(lambda prompt, answer: text_of(prompt))
    found = evaluate(engine, tiny().family, splits, settings)
    assert {(sampling.seed, n) for _, sampling, n in engine.asked} == {(None, 1)}
    assert max(len(ids) for ids, _, _ in engine.asked) == 2  # eval.batch_size
    return found


def test_a_model_that_writes_the_truth_is_always_right(settings):
    metrics, rows = written(lambda p: target_text(p.sample, p.box_map), splits_of(settings), settings)
    for split, n in (("in_domain", 5), ("out_of_domain", 3)):
        found = metrics[split]
        assert (found["n"], found["acc@0.5"], found["well_formed"], found["mean_length"]) == (n, 1, 1, 2)
        assert found["mean_iou"] > 0.9
    assert all(row["correct"] and row["iou"] > 0.9 and row["failure"] is None for row in rows)


def test_shifted_boxes_score_their_iou_and_broken_ones_zero(settings):
    splits = splits_of(settings)
    texts = {}
    for number, sample in enumerate(splits["in_domain"]):
        x1, y1, x2, y2 = sample.truth.boxes[0].box
        moved = (x1 + (x2 - x1) / 2, y1, x2 + (x2 - x1) / 2, y2)  # half of its width: 1/3
        shown = [round(v / 96 * 1000) for v in moved]
        texts[sample.id] = f"<think></think><answer>{shown}</answer>" if number else "no answer"
    metrics, rows = written(lambda p: texts[p.sample.id], {"in_domain": splits["in_domain"]}, settings)
    moved = [iou(b.box, (b.box[0] + w, b.box[1], b.box[2] + w, b.box[3])) for b, w in halves(splits)]
    expected = [0.0, *moved[1:]]
    assert [row["iou"] for row in rows] == pytest.approx(expected, abs=0.01)
    assert metrics["in_domain"]["mean_iou"] == pytest.approx(4 / 3 / 5, abs=0.01)
    assert metrics["in_domain"]["acc@0.5"] == 0 and metrics["in_domain"]["well_formed"] == 0.8
    assert rows[0]["failure"] and not rows[1]["correct"]
    assert sum(value for name, value in metrics["in_domain"].items() if name.startswith("failures/")) == 0.2


def halves(splits):
    boxes = [sample.truth.boxes[0] for sample in splits["in_domain"]]
    return [(b, (b.box[2] - b.box[0]) / 2) for b in boxes]


def test_answers_are_the_greedy_ones_whatever_the_batch(settings):
    loaded, splits = tiny(), splits_of(settings)
    _, rows = evaluate(NativeEngine(loaded), loaded.family, splits, settings)
    for row, sample in zip(rows, [*splits["in_domain"], *splits["out_of_domain"]], strict=True):
        (alone,) = answered(loaded, [loaded.family.encode(sample)], 1, seed=None, max_new_tokens=6)
        assert row["completion"] == alone.rollouts[0].text == read_rollouts(alone)[0].raw
        assert (row["sample_id"], row["question"]) == (sample.id, sample.question)


def test_evaluation_leaves_the_model_as_it_was(settings):
    loaded = tiny()
    loaded.policy.train()
    state = torch.get_rng_state()
    evaluate(NativeEngine(loaded), loaded.family, splits_of(settings), settings)
    assert loaded.policy.training and torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None and p.requires_grad for p in loaded.policy.parameters())
    loaded.policy.eval()
    evaluate(NativeEngine(loaded), loaded.family, {}, settings)
    assert not loaded.policy.training


def test_images_of_the_first_questions_of_each_split_are_kept(monkeypatch, settings):
    monkeypatch.setattr(run, "IMAGES_KEPT", 2)
    loaded = tiny()
    _, rows = evaluate(NativeEngine(loaded), loaded.family, splits_of(settings), settings)
    kept = [row["image"] is not None for row in rows]
    assert kept == [True, True, False, False, False, True, True, False]
    assert Image.open(io.BytesIO(rows[0]["image"])).size == (96, 96)


def test_the_command_writes_metrics_and_rows(settings, tmp_path):
    metrics = evaluate_model(settings, tmp_path / "eval.json")
    assert json.loads((tmp_path / "eval.json").read_text()) == metrics
    assert set(metrics) == {"in_domain", "out_of_domain"} and (tmp_path / "eval.parquet").is_file()


def test_without_a_split_the_remedy_is_said(settings):
    nothing = settings.model_copy(update={"data": settings.data.model_copy(update={"eval": {}})})
    with pytest.raises(ConfigError, match=r"data\.eval: is empty; name at least one held-out split"):
        evaluate_model(nothing)


@pytest.mark.parametrize("wanted", [None, 3, 4])
def test_answers_of_several_versions_are_not_compared(settings, wanted):
    class Updated(NativeEngine):
        def generate(self, prompts, sampling, *, n):
            self.version = 4 if prompts[0].number >= 4 else 3
            yield from super().generate(prompts, sampling, n=n)

    loaded, splits = tiny(), splits_of(settings)
    with pytest.raises(EngineError, match=r"in_domain: .* there are 2 \(3, 4\)"):
        evaluate(Updated(loaded), loaded.family, splits, settings, version=wanted)


def test_answers_of_another_version_than_the_wanted_one_are_refused(settings):
    loaded, splits = tiny(), splits_of(settings)
    engine = NativeEngine(loaded)
    engine.sync(iter(()), version=2)
    assert (
        evaluate(engine, loaded.family, splits, settings, version=2)[0]
        == evaluate(engine, loaded.family, splits, settings)[0]
    )
    with pytest.raises(EngineError, match=r"there are 2 \(2, 5\)"):
        evaluate(engine, loaded.family, splits, settings, version=5)
