"""`benchmarks/generation_queue.py` runs, and keeps the version rule (it asserts that itself)."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "generation_queue.py"


@pytest.mark.slow
def test_two_processes_keep_the_rule(tmp_path):
    command = [sys.executable, str(BENCHMARK), "--quick", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "generation_queue.json").read_text())
    assert len(found["rows"]) == 15 and all(row["step_s"] > 0 for row in found["rows"])
    assert (tmp_path / "generation_queue.md").read_text().count("| even |") == 5
