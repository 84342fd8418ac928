"""What goes wrong in an environment is told to the model and counted, once; nothing of it stops a run."""

import time

import pytest
from PIL import Image
from support import mixed_prompts, noise_image, tiny

from vlm_r1.config import EnvConfig
from vlm_r1.envs import Reply
from vlm_r1.envs.host import MAX_TEXT, Host, open_host
from vlm_r1.errors import RewardError
from vlm_r1.image_file import MAX_PIXELS
from vlm_r1.records import Rollout

LOADED = tiny()
PROMPT = mixed_prompts(LOADED)[0]


class Huge:
    """Says that it is an image of more pixels than may be."""

    def __new__(cls):
        image = Image.new("RGB", (8, 8))
        image._size = (MAX_PIXELS, 2)
        return image


class Bad:
    def __init__(self, step):
        self.answer = step

    def instructions(self, max_calls):
        return ""

    def begin(self, seen):
        return seen

    def step(self, state, text):
        return self.answer(state)


def host_of(step=None, **settings) -> Host:
    host = Host(EnvConfig(tools=["zoom"], **{"timeout_s": 0.3} | settings), LOADED.family)
    if step is not None:
        host.environment = Bad(step)
    return host


def written(text: str, finish: str = "stop") -> Rollout:
    ids = tuple(LOADED.tokenizer(text, add_special_tokens=False)["input_ids"])
    return Rollout(token_ids=ids, logprobs=(-1.0,) * len(ids), text=text, finish=finish)


def told(host: Host, text: str = '<tool>{"name": "zoom", "box": [0, 0, 500, 500]}</tool>'):
    [talk] = host.talks(PROMPT, 1)
    reply = host.ask(talk, written(text))
    return None if reply is None else reply.result(timeout=10)


def stopping(state):
    raise SystemExit(3)


def raising(state):
    raise ValueError("no such thing")


CASES = {
    "hangs": (lambda state: time.sleep(5), "timeout", "0.3 s"),
    "raises": (raising, "tool_error", "ValueError: no such thing"),
    "exits": (stopping, "tool_error", "SystemExit"),
    "no reply": (lambda state: "text", "tool_error", "no reply"),
    "huge image": (lambda state: Reply(image=Huge()), "bad_image", "pixels"),
    "no image": (lambda state: Reply(image="a.png"), "bad_image", "str"),
    "closed image": (lambda state: Reply(image=_closed()), "bad_image", ""),
    "sliver": (lambda state: Reply(image=Image.new("RGB", (4000, 1))), "bad_image", "refuses"),
}


def _closed() -> Image.Image:
    image = Image.new("RGB", (8, 8))
    image.close()
    return image


@pytest.mark.parametrize("case", CASES)
def test_faults_of_a_tool_are_text_for_the_model(case):
    step, kind, words = CASES[case]
    start = time.monotonic()
    turn = told(host_of(step))
    assert time.monotonic() - start < 4
    assert turn.call.failure == kind and turn.call.reply.startswith("Error: ") and words in turn.call.reply
    assert not turn.images and "Error" in LOADED.tokenizer.decode(turn.token_ids)


def test_a_wrong_call_is_told_what_is_wrong_and_a_right_one_gets_its_image():
    wrong = told(host_of(), '<tool>{"name": "zoom"}</tool>')
    assert wrong.call.failure == "bad_arguments" and "box is missing" in wrong.call.reply
    right = told(host_of())
    assert not right.call.failure and len(right.images) == len(right.call.images) == 1
    assert right.call.box == pytest.approx((0, 0, 24, 16))  # of 48 x 32
    assert right.at == len(written(right.call.text).token_ids)


def test_answers_and_cut_texts_and_those_over_the_limit_are_not_asked_about():
    host = host_of(max_calls=1)
    [talk] = host.talks(PROMPT, 1)
    assert host.ask(talk, written("<answer>4</answer>")) is None
    assert host.ask(talk, written('<tool>{"name": "zo', "length")) is None
    assert told(host, "I am done") is None  # asked, and it was the answer
    turn = host.ask(talk, written('<tool>{"name": "zoom", "box": [0, 0, 9, 9]}</tool>'))
    talk.add(turn.result(), (1, 2))
    assert host.ask(talk, written('<tool>{"name": "zoom", "box": [0, 0, 9, 9]}</tool>')) is None


def test_a_long_text_is_cut_and_images_add_up():
    host = host_of(lambda state: Reply(text="x" * 10 * MAX_TEXT, image=noise_image(32, 32).open()))
    [talk] = host.talks(PROMPT, 1)
    talk.add(host.ask(talk, written("a")).result(), (1,))
    assert len(talk.turns[0].call.reply) == MAX_TEXT
    assert len(talk.seen.images) == 2


def test_a_text_cannot_end_a_turn_or_stand_for_an_image():
    special = [LOADED.family.placeholder(), *LOADED.tokenizer.all_special_tokens]
    turn = told(host_of(lambda state: Reply(text=f"a{''.join(special)}b")))
    assert turn.call.reply == "ab" and not turn.call.failure


def test_an_environment_that_cannot_begin_or_score_names_the_sample():
    host = host_of(raising)
    host.environment.begin = lambda seen: []
    with pytest.raises(RewardError, match=r"begin of sample s gave 0 for 2"):
        host.talks(PROMPT, 2)
    host.environment.begin = lambda seen: seen
    host.environment.score = lambda states, texts: 1 / 0
    with pytest.raises(RewardError, match=r"score of sample s failed \(ZeroDivisionError"):
        host.scores(host.talks(PROMPT, 1), [written("a")])


def test_a_model_has_one_host():
    settings = EnvConfig(tools=["zoom"])
    assert open_host(None, LOADED.family) is None
    assert open_host(settings, LOADED.family) is open_host(settings, LOADED.family)
