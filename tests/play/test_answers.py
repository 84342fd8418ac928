"""Answers as they grow: prefixes of the final ones, which are those of the other commands; and stopping them."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image
from support import answered

from vlm_r1.config import ScenesSource
from vlm_r1.data.scenes import load_scenes
from vlm_r1.errors import DataError
from vlm_r1.eval.predict import ask
from vlm_r1.play import answers
from vlm_r1.play.answers import Asked, stream
from vlm_r1.records import Sample, SampleImage, Truth


@pytest.fixture(scope="module")
def pool():
    with ThreadPoolExecutor(1) as pool:
        yield pool


@pytest.fixture
def sample(tmp_path):
    scene = load_scenes(ScenesSource(split="in_domain", n=1))[0]
    scene.images[0].open().save(tmp_path / "scene.png")
    return Sample(id="s", images=(SampleImage(path=tmp_path / "scene.png"),), question=scene.question, truth=Truth())


def test_the_greedy_answer_is_that_of_predict_and_every_text_a_beginning_of_it(speaker, sample, pool, monkeypatch):
    monkeypatch.setattr(answers, "MIN_PAUSE", 0.0)
    seen = list(stream(speaker, Asked(sample=sample), threading.Event(), pool))
    _, expected = ask("tiny", sample.images[0].path, sample.question)
    assert seen[-1].answers == (expected,) and not seen[-1].stopped
    texts = [progress.texts[0] for progress in seen]
    assert all(expected.raw.startswith(text) for text in texts)
    assert len(set(texts)) > 10 and texts == sorted(texts, key=len)
    assert [progress.answers for progress in seen[:-1]] == [None] * (len(seen) - 1)
    assert seen[0].asked == sample.question  # the template of tiny is plain


def test_samples_are_those_of_the_rollout_with_the_same_seed(speaker, sample, pool):
    asked = Asked(sample=sample, n=3, temperature=0.7, seed=5, max_new_tokens=20)
    *_, last = stream(speaker, asked, threading.Event(), pool)
    prompt = speaker.loaded.family.encode(sample)
    [group] = answered(speaker.loaded, [prompt], 3, seed=5, temperature=0.7, max_new_tokens=20)
    assert [answer.raw for answer in last.answers] == [rollout.text for rollout in group.rollouts]
    assert all(answer.truncated for answer in last.answers) == all(r.finish == "length" for r in group.rollouts)


def test_a_halt_ends_the_model_after_the_next_token_and_keeps_what_was_written(speaker, sample, pool, slowly):
    halt, seen = threading.Event(), []
    for progress in stream(speaker, Asked(sample=sample), halt, pool):
        seen.append(progress)
        if len(seen) == 6:
            halt.set()
    assert seen[-1].stopped and len(seen) < 15
    [answer] = seen[-1].answers
    assert answer.raw and answer.truncated and answer.failure is not None


def test_closing_the_stream_ends_the_model(speaker, sample, pool, slowly):
    halt = threading.Event()
    answering = stream(speaker, Asked(sample=sample), halt, pool)
    next(answering), next(answering)
    answering.close()
    assert halt.is_set()
    assert pool.submit(lambda: "free").result(timeout=5) == "free"


def test_another_template_is_asked_once_and_the_model_keeps_its_own(speaker, sample, pool):
    asked = Asked(sample=sample, template="r1", max_new_tokens=2)
    *_, last = stream(speaker, asked, threading.Event(), pool)
    assert last.asked.startswith(f"{sample.question} Output the thinking process in <think>")
    assert speaker.template == "plain" and speaker.asked_with("r1").template == "r1"


def test_what_encoding_raises_reaches_the_caller(speaker, tmp_path, pool):
    Image.new("RGB", (32, 32)).save(tmp_path / "gone.png")
    sample = Sample(id="s", images=(SampleImage(path=tmp_path / "gone.png"),), question="x", truth=Truth())
    answering = stream(speaker, Asked(sample=sample), threading.Event(), pool)
    (tmp_path / "gone.png").unlink()
    with pytest.raises(DataError, match="does not exist"):
        list(answering)
