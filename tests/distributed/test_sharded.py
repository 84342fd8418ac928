"""What each process holds between steps, how much memory loading takes, and what only this package may import."""

import json
import re
from pathlib import Path

import pytest
from distributed.conftest import make
from distributed.running import torchrun, with_folder

from vlm_r1.config_file import resolved_yaml

PACKAGE = Path(__file__).resolve().parent.parent.parent / "src" / "vlm_r1"


def test_torch_distributed_is_imported_in_one_place():
    users = {
        file.relative_to(PACKAGE).parts[0]
        for file in PACKAGE.rglob("*.py")
        if re.search(r"^\s*(from|import) torch\.distributed", file.read_text(), re.MULTILINE)
    }
    assert users == {"distributed"}


@pytest.mark.slow
def test_no_process_holds_more_than_its_share_between_steps(model_folder, rewards, tmp_path):
    run = with_folder(make(model_folder, rewards, rl={"beta": 0.02}), tmp_path / "run")
    (tmp_path / "recipe.yaml").write_text(resolved_yaml(run))
    torchrun(4, "hold.py", str(tmp_path / "recipe.yaml"), str(tmp_path / "held.json"))
    held = json.loads((tmp_path / "held.json").read_text())
    assert len(held) == 4
    whole = held[0]["whole"]
    for name in ("parameters", "gradients", "state", "reference"):
        parts = [process[name] for process in held]
        copies = 2 if name == "state" else 1
        # Rows that do not divide by four are padded: the tiny model's rows are few.
        assert all(part <= 1.15 * copies * whole / 4 for part in parts), (name, parts, whole)
        assert sum(parts) >= 0.999 * copies * whole, (name, parts, whole)


@pytest.mark.slow
def test_loading_takes_no_second_copy(tmp_path):
    """A model of 100 M parameters: 4 processes together stay under 1.5 copies beside what idle ones take."""
    torchrun(1, "load_large.py", "make", str(tmp_path / "model"))
    torchrun(4, "load_large.py", "load", str(tmp_path / "model"), str(tmp_path / "memory.json"), timeout=600)
    memory = json.loads((tmp_path / "memory.json").read_text())
    assert memory["copy"] > 390e6
    together = sum(process["peak"] - process["idle"] for process in memory["processes"])
    assert together < 1.5 * memory["copy"], memory
