"""What pages say of calls: what was asked, where, what came back."""

import json

from vlm_r1.report.looks import MAX_REPLY, looks

CALLS = [
    {"text": "<think>a</think><tool>{} </tool>", "reply": "", "failure": "", "box": [1.5, 2, 3, 4.4], "images": 2},
    {"text": "<tool>x</tool>", "reply": "y" * 1000, "failure": "timeout", "box": None, "images": 0},
    {"text": "no call", "reply": "z", "failure": "", "box": None, "images": 1},
]


def test_each_call_has_its_own_images():
    first, second, third = looks({"calls": json.dumps(CALLS), "shown": [b"1", b"2", b"3"]})
    assert (first.asked, first.where, first.failure) == ("{}", "(2, 2, 3, 4)", "")
    assert [len(look.images) for look in (first, second, third)] == [2, 0, 1]
    assert third.images[0] == "data:image/jpeg;base64,Mw=="
    assert (second.where, second.failure, len(second.reply)) == ("", "timeout", MAX_REPLY)


def test_rows_without_calls_have_none():
    assert looks({}) == looks({"calls": None, "shown": None}) == ()
