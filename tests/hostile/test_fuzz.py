"""Contents of each kind's strategy, and the corpus, through every door of the kind (see the package's docstring)."""

import pytest
from hypothesis import HealthCheck, given, settings

from hostile import CORPUS, KINDS, MANY, kind, told

DOORS = [(name, door) for name in KINDS if hasattr(kind(name), "CONTENTS") for door in kind(name).DOORS]


def fuzz(name: str, door: str, folder, examples: int, *, repeatable: bool) -> None:
    module = kind(name)

    @settings(max_examples=examples, deadline=None, derandomize=repeatable, suppress_health_check=list(HealthCheck))
    @given(content=module.CONTENTS)
    def run(content) -> None:
        told(module.DOORS[door], content, folder)

    run()


@pytest.mark.parametrize(("name", "door"), DOORS)
@pytest.mark.filterwarnings("ignore")
def test_a_few_damaged_inputs(name, door, tmp_path):
    fuzz(name, door, tmp_path, kind(name).EXAMPLES, repeatable=True)


@pytest.mark.campaign
@pytest.mark.parametrize(("name", "door"), DOORS)
@pytest.mark.filterwarnings("ignore")
def test_many_damaged_inputs(name, door, tmp_path):
    fuzz(name, door, tmp_path, MANY * kind(name).EXAMPLES, repeatable=False)


@pytest.mark.parametrize("name", sorted(folder.name for folder in CORPUS.iterdir()))
@pytest.mark.filterwarnings("ignore")
def test_what_the_fuzzing_once_found(name, tmp_path):
    assert name in KINDS
    for file in sorted((CORPUS / name).iterdir()):
        for door in kind(name).DOORS.values():
            told(door, file.read_bytes(), tmp_path)
