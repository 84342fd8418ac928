"""docs/add-a-model.md: its example is what the package has, and it is run."""

import re

import pytest
import torch
import zoo
from pages import ROOT, blocks, first_column, text

from vlm_r1.errors import ModelError
from vlm_r1.models.families import FAMILIES
from vlm_r1.models.family import Family
from vlm_r1.models.generic import check_forward

FAMILY, LINE, ENTRY = blocks("add-a-model.md", "python")


def test_the_page_shows_the_files_as_they_are():
    assert (ROOT / "src/vlm_r1/models/llava_next.py").read_text() == FAMILY
    assert (ROOT / "tests/zoo/llava_next.py").read_text() == ENTRY
    assert FAMILY.count("\n") < 60
    assert zoo.zoo()["llava_next"]


def test_the_example_is_refused_without_its_family_and_works_with_it(tmp_path, monkeypatch):
    found = {"FAMILIES": FAMILIES}
    exec(ENTRY, found)
    found["ENTRIES"]["llava_next"].build(tmp_path)
    monkeypatch.delitem(FAMILIES, "llava_next")
    with pytest.raises(ModelError, match=re.escape(blocks("add-a-model.md", "text")[0].strip())):
        zoo.load(tmp_path)
    exec(FAMILY, found)
    exec(LINE, found)
    loaded = zoo.load(tmp_path)
    assert type(loaded.family) is found["LlavaNext"]
    check_forward(loaded.policy, loaded.family)


def test_everything_that_a_family_can_say_is_on_the_page():
    source = (ROOT / "src/vlm_r1/models/family.py").read_text()
    stated = source[source.index("class Family") : source.index("# -- what all families share")]
    names = re.findall(r"^    (?:def )?([a-z]\w*)(?:\(| = )", stated, flags=re.MULTILINE)
    assert first_column("add-a-model.md", "name") == names
    assert all(hasattr(Family, name) for name in names)


def test_the_tolerances_of_the_page_are_the_checks():
    single, half = (100 * torch.finfo(dtype).eps ** 0.5 for dtype in (torch.float32, torch.bfloat16))
    assert f"by less than {single:.2f} % of their size in float32, and by {half:.0f} % in bfloat16" in text(
        "add-a-model.md"
    )
