"""The notebook runs from its first cell to its last in a new process, with fewer steps and questions."""

import json
import os
import re
import subprocess
import sys

import pytest

FEWER = {'"steps": 10': '"steps": 1', '"n": 40': '"n": 4', '"prompts_per_step": 8': '"prompts_per_step": 2'}


@pytest.fixture(scope="module")
def cells(root):
    return json.loads((root / "examples" / "quick_start.ipynb").read_text(encoding="utf-8"))["cells"]


@pytest.mark.slow
def test_the_notebook_runs(root, cells, tmp_path):
    program = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    for many, few in FEWER.items():
        assert many in program
        program = program.replace(many, few)
    environment = {**os.environ, "PYTHONPATH": str(root / "src"), "MPLBACKEND": "agg"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "| held out | mean IoU | 4 |" in done.stdout
    assert done.stdout.endswith("runs/notebook/report.html\nruns/notebook/final/README.md\n")


def test_its_links_exist_and_its_outputs_hold_no_errors(root, cells):
    text = "".join(part for cell in cells if cell["cell_type"] == "markdown" for part in cell["source"])
    for link in re.findall(r"\]\(([^)]+)\)", text):
        assert (root / "examples" / link).is_file(), link
    kinds = {output["output_type"] for cell in cells for output in cell.get("outputs", [])}
    assert kinds == {"stream", "execute_result", "display_data"}
