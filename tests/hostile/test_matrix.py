"""Every hostile input through every door of its kind (see the package's docstring)."""

import re

import pytest

from hostile import KINDS, kind, told

CASES = [pytest.param(kind(name), case, id=f"{name}: {case.name}") for name in KINDS for case in kind(name).CASES]


@pytest.mark.parametrize(("module", "case"), CASES)
@pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore::PIL.Image.DecompressionBombWarning")
def test_a_hostile_input_is_one_message(module, case, tmp_path):
    wrong = {}
    for name, door in module.DOORS.items():
        (tmp_path / name).mkdir()
        message, says = told(door, case.content, tmp_path / name), case.says
        says = says if says is None else module.OTHERWISE.get(name, says)
        if says is not ... and ((message is None) != (says is None) or not re.search(says or "", message or "")):
            wrong[name] = message or "took it"
    assert not wrong
