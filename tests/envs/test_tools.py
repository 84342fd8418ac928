"""Calls as models write them, and the tools for pictures, against pixels worked out by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support import sample

from vlm_r1.config import EnvConfig
from vlm_r1.envs import Reply, function_tool
from vlm_r1.envs.call import FAILURES, Call, CallError, read_call
from vlm_r1.envs.environment import build_environment
from vlm_r1.envs.tools import MARK, TOOLS, Seen, make_tool, run_call
from vlm_r1.errors import ConfigError
from vlm_r1.records import SampleImage

PIXELS = np.arange(40 * 60 * 3, dtype=np.uint32).reshape(40, 60, 3).astype(np.uint8)
IMAGE = Image.fromarray(PIXELS)


def seen() -> Seen:
    """An image of 60 x 40 pixels about which the model writes 0 to 10."""
    image = SampleImage(image=IMAGE)
    to_pixels = lambda box: (box[0] * 6, box[1] * 4, box[2] * 6, box[3] * 4)  # noqa: E731
    return Seen(sample=sample("?", image), images=[image], to_pixels=to_pixels)


def asked(text: str, *tools, state: Seen | None = None) -> Reply:
    found = {tool.name: tool for tool in map(make_tool, tools or TOOLS.values())}
    return run_call(found, read_call(text), state or seen())


def failure(text: str, *tools) -> tuple[str, str]:
    with pytest.raises(CallError) as found:
        asked(text, *tools)
    return found.value.kind, str(found.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('<think>x</think><tool>{"name": "a", "box": [1, 2]}</tool>', Call(name="a", arguments={"box": [1, 2]})),
        ('<tool>{"name": "a", "arguments": {"b": 1}}</tool> \n', Call(name="a", arguments={"b": 1})),
        ('<tool>\n```json\n{"name": "a"}\n```\n</tool>', Call(name="a", arguments={})),
        ('<tool>{"name": "a"}</tool> and <tool>{"name": "b"}</tool>', Call(name="b", arguments={})),
        ("<think>I could use <tool></think><answer>4</answer>", None),
        ('<tool>{"name": "a"}', None),
        ("", None),
    ],
)
def test_a_call_is_what_a_text_ends_with(text, expected):
    assert read_call(text) == expected


@pytest.mark.parametrize(
    "text",
    ["x</tool>", "<tool>zoom</tool>", "<tool>[1]</tool>", '<tool>{"box": 1}</tool>', f"<tool>{'[' * 5000}</tool>"],
)
def test_a_call_that_cannot_be_read_says_how_to_write_one(text):
    with pytest.raises(CallError) as found:
        read_call(text)
    assert found.value.kind == "bad_call"


@given(st.text(max_size=60), st.text(max_size=60))
def test_no_text_does_worse_than_a_call_error(before, inside):
    try:
        read_call(f"{before}<tool>{inside}</tool>")
    except CallError as error:
        assert error.kind in FAILURES


def test_zoom_shows_the_part_in_full_resolution():
    reply = asked('<tool>{"name": "zoom", "box": [1, 2, 5, 7.6]}</tool>')
    assert np.array_equal(np.array(reply.image), PIXELS[8:31, 6:30])  # 30.4 is rounded outward
    assert reply.box == (6, 8, 30, pytest.approx(30.4))


def test_a_box_is_kept_within_the_image():
    reply = asked('<tool>{"name": "zoom", "box": [-3, 5, 20, 99]}</tool>')
    assert reply.box == (0, 20, 60, 40) and reply.image.size == (60, 20)


def test_crop_shows_where_the_part_lies():
    reply = asked('<tool>{"name": "crop", "box": [1, 2, 5, 7]}</tool>')
    part, whole = reply.images
    assert np.array_equal(np.array(part), PIXELS[8:28, 6:30]) and whole.size == (60, 40)
    assert whole.getpixel((6, 8)) == tuple(int(MARK[i : i + 2], 16) for i in (1, 3, 5))


def test_points_and_boxes_stay_drawn():
    state = seen()
    for count in (1, 2):
        reply = asked(f'<tool>{{"name": "point", "point": [{3 * count}, 5]}}</tool>', state=state)
        assert reply.text == f"Points marked: {count}." and state.notes["points"][-1] == (18.0 * count, 20.0)
        assert asked('<tool>{"name": "draw", "box": [1, 1, 3, 3]}</tool>', state=state).text == f"Boxes drawn: {count}."
    assert np.array_equal(np.array(state.images[0].open()), PIXELS)  # on a copy


@pytest.mark.parametrize(
    ("call", "kind", "told"),
    [
        ('{"name": "zoon", "box": [1, 2, 3, 4]}', "unknown_tool", "zoom"),
        ('{"name": "zoom"}', "bad_arguments", "box is missing"),
        ('{"name": "zoom", "box": [1, 2, 3, 4], "by": 2}', "bad_arguments", "no argument by"),
        ('{"name": "zoom", "box": [1, 2, 3]}', "bad_arguments", "4 numbers"),
        ('{"name": "zoom", "box": "1, 2, 3, 4"}', "bad_arguments", "4 numbers"),
        ('{"name": "zoom", "box": [1, 2, NaN, 4]}', "bad_arguments", "4 numbers"),
        ('{"name": "zoom", "box": [5, 5, 5, 9]}', "bad_arguments", "no area"),
        ('{"name": "zoom", "box": [20, 20, 30, 30]}', "bad_arguments", "no area"),
        ('{"name": "zoom", "arguments": [1]}', "bad_arguments", "not an object"),
    ],
)
def test_wrong_calls_are_told_what_is_wrong(call, kind, told):
    found, message = failure(f"<tool>{call}</tool>")
    assert found == kind and told in message


def test_a_function_is_a_tool_by_its_name_docstring_and_parameters():
    def turned(seen, degrees, *, expand=True):
        """Shows the image
        turned.

        More for people.
        """
        return seen.image.rotate(degrees, expand=expand)

    tool = make_tool(turned)
    assert (tool.name, tool.description) == ("turned", "Shows the image turned.")
    assert tool.signature == "degrees, expand (optional)"
    assert asked('<tool>{"name": "turned", "degrees": 90}</tool>', turned).image.size == (40, 60)
    assert "degrees is missing" in failure('<tool>{"name": "turned"}</tool>', turned)[1]


def test_openai_schemas_are_understood():
    schema = {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather of a city.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
    tool = function_tool(schema, lambda seen, city: f"{city}: rain")
    assert (tool.name, tool.signature, tool.description) == ("weather", "city (string)", "The weather of a city.")
    assert tool(seen(), {"city": "Ulm"}).text == "Ulm: rain"
    with pytest.raises(CallError, match="city is missing"):
        tool(seen(), {})

    def call(seen, city):
        return city

    call.schema = schema
    assert make_tool(call).name == "weather"


def test_environments_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "class Ruler:\n"
        '    """Measures."""\n'
        "    def __init__(self, unit='px'):\n"
        "        self.unit = unit\n"
        "    def __call__(self, seen, box):\n"
        "        return f'{box[2] - box[0]:.0f} {self.unit}'\n"
        "class Game:\n"
        "    def instructions(self, max_calls): return 'Guess.'\n"
        "    def begin(self, seen): return [{} for _ in seen]\n"
        "    def step(self, state, text): return None\n"
    )
    options = {"mine.py:Ruler": {"unit": "mm"}}
    found = build_environment(EnvConfig(tools=["zoom", "mine.py:Ruler"], options=options))
    assert list(found.tools) == ["zoom", "ruler"] and "up to 2 times" in found.instructions(2)
    assert found.step(seen(), '<tool>{"name": "ruler", "box": [1, 1, 3, 3]}</tool>').text == "12 mm"
    assert build_environment(EnvConfig(tools=["mine.py:Game"])).instructions(1) == "Guess."
    for tools, options, told in (
        (["zoon"], {}, "zoom"),
        (["mine.py:Nothing"], {}, "has no function"),
        (["there.py:X"], {}, "there is no file"),
        (["mine.py:Game", "zoom"], {}, "stands alone"),
        (["mine.py:Ruler"], {"mine.py:Ruler": {"uni": 1}}, "uni"),
    ):
        with pytest.raises(ConfigError, match=told):
            build_environment(EnvConfig(tools=tools, options=options))
