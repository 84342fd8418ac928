"""The card of a run: its metadata as the hub reads them, its table, and its programs run as they stand."""

import contextlib
import importlib.util
import io
import json
import re

import pytest
import yaml
from huggingface_hub import ModelCard
from support import recipe, save_tiny

from vlm_r1.eval.predict import ask
from vlm_r1.models.processor import load_processor
from vlm_r1.report.model_card import CARD, PLACE, licence_of, write_card
from vlm_r1.rl import loop
from vlm_r1.sft import train as sft

HELD_OUT = {"held_out": {"scenes": {"split": "in_domain", "n": 6, "questions": {"attribute": 1.0}}}}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One step from the shipped model, evaluated before and after."""
    found = tmp_path_factory.mktemp("card") / "mine"
    train = [{"scenes": {"split": "train", "n": 12}}]
    settings = {"steps": 1, "save_every": 1, "threads": 1, "log_rollouts_every": 0}
    made = recipe("tiny", found, data={"train": train, "eval": HELD_OUT}, run=settings, optim={"lr": 2e-6})
    loop.train(made.model_copy(update={"eval": made.eval.model_copy(update={"max_new_tokens": 48})}))
    write_card(found)
    return found


def programs(card: str, kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", card, re.DOTALL)


def test_the_card_says_what_the_model_is(run):
    card = ModelCard.load(run / "final" / CARD)
    data = card.data.to_dict()
    assert data["license"] == "apache-2.0" and data["library_name"] == "transformers"
    assert data["pipeline_tag"] == "image-text-to-text" and data["tags"] == ["vlm-r1", "grpo"]
    assert "base_model" not in data  # the hub has no model of that name
    assert "| rewards | repetition x 1, format x 1 |" in card.text
    assert "0 to 1000 of the image" in card.text and "generated scenes" in card.text
    settings = yaml.safe_load(programs(card.text, "yaml")[0])
    assert settings["optim"] == {"lr": 2e-6} and settings["run"]["dir"] == "mine"
    assert str(run.parent) not in card.content


def test_its_table_is_that_of_the_evaluations(run):
    text = (run / "final" / CARD).read_text()
    found = json.loads((run / "eval.json").read_text())
    [line] = [line for line in text.splitlines() if line.startswith("| held out | mean IoU | 6 |")]
    for phase in ("before", "after"):
        values = found[phase]["held_out"]
        low, high = values["mean_iou/low"], values["mean_iou/high"]
        assert f"{values['mean_iou']:.3f} ({low:.3f} to {high:.3f})" in line


def test_its_program_answers_as_the_package_does(run, tmp_path, monkeypatch):
    from vlm_r1.config import DataSource
    from vlm_r1.data.source import load_source

    sample = load_source(DataSource.model_validate(HELD_OUT["held_out"]))[0]
    image = sample.images[0].open()
    monkeypatch.chdir(tmp_path)
    image.save("image.png")
    [program, client] = programs((run / "final" / CARD).read_text(), "python")
    if importlib.util.find_spec("torchvision") is None:  # transformers' own processor of Qwen3-VL needs it
        program = program.replace("AutoProcessor.from_pretrained", "load_processor")
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        exec(program.replace(PLACE, str(run / "final")), {"load_processor": load_processor})
    _, answer = ask(str(run / "final"), tmp_path / "image.png", "the red circle")
    assert shown.getvalue().strip() == answer.raw.strip() != ""
    compile(client, "client", "exec")


def test_the_request_is_what_a_server_takes(run, tmp_path, monkeypatch):
    """The program for a server is run; what it would send is looked at."""
    import httpx
    from PIL import Image

    sent = []
    reply = httpx.Response(200, json={"choices": [{"message": {"content": "an answer"}}]})
    monkeypatch.setattr(httpx, "post", lambda url, json, timeout: (sent.append(json), reply)[1])
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("image.png")
    exec(programs((run / "final" / CARD).read_text(), "python")[1], {})
    assert sent[0]["stop"] == ["</answer>"] and sent[0]["include_stop_str_in_output"] and sent[0]["max_tokens"] == 48
    assert sent[0]["messages"][0]["content"][1] == {"type": "text", "text": "the red circle"}


@pytest.mark.vllm
def test_a_real_server_answers_the_request(run, tmp_path, monkeypatch, vllm_server):
    """The shared server has the shipped model, which one step with a small rate hardly moved."""
    import httpx
    from PIL import Image, ImageDraw

    client = httpx.Client(base_url=vllm_server.url, headers={"Authorization": f"Bearer {vllm_server.secret}"})
    served = client.get("/v1/models").json()["data"][0]["id"]

    def post(url, json, timeout):
        return client.post(url.removeprefix("http://localhost:8000"), json={**json, "model": served}, timeout=timeout)

    monkeypatch.setattr(httpx, "post", post)
    monkeypatch.chdir(tmp_path)
    image = Image.new("RGB", (96, 96), "white")
    ImageDraw.Draw(image).ellipse((20, 30, 50, 60), fill="red")
    image.save("image.png")
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        exec(programs((run / "final" / CARD).read_text(), "python")[1], {})
    assert re.fullmatch(r"<think>.*</think><answer>.*</answer>", shown.getvalue().strip(), re.DOTALL)


def test_an_adapter_is_said_to_be_one(tmp_path):
    base = save_tiny(tmp_path / "tiny")
    (base / CARD).write_text("---\nlicense: other\nlicense_name: mine\nlicense_link: https://x.org\n---\n# base\n")
    made = recipe(base, tmp_path / "run", "sft", train={"language": "lora"}, run={"steps": 1, "save_every": 1})
    sft.train(made)
    card = ModelCard.load(write_card(tmp_path / "run"))
    data = card.data.to_dict()
    assert data["library_name"] == "peft" and "lora" in data["tags"]
    assert licence_of(str(base)) == {"license": "other", "license_name": "mine", "license_link": "https://x.org"}
    assert data["license_name"] == "mine" and "| licence | mine |" in card.text
    assert "--enable-lora" in card.text and "Not evaluated." in card.text and str(tmp_path) not in card.content


def test_without_a_card_of_the_base_no_licence_is_claimed(tmp_path):
    assert licence_of(str(tmp_path)) == {}
    assert licence_of("nobody/nothing-at-all") == {}
