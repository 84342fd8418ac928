"""Does vLLM answer as the trainer does? 200 held-out questions of the demo, greedy and sampled, log-prob by log-prob.

    python benchmarks/vllm_parity.py

Runs `vlm-r1 check-engine` and writes docs/results/vllm_parity.json. Needs vLLM's environment: make vllm-env.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from _measure import commit, machine

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Run and write."""
    recipe = ROOT / "src" / "vlm_r1" / "assets" / "demo.yaml"
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "parity.json"
        settings = ["rollout.engine=vllm", "data.train=[]", f"run.dir={folder}"]
        asked = ["--prompts", "200", "--answers", "4", "--out", str(out)]
        subprocess.run([sys.executable, "-m", "vlm_r1", "check-engine", str(recipe), *settings, *asked], check=True)
        found = json.loads(out.read_text())
    found |= {"command": "python benchmarks/vllm_parity.py", "commit": commit(), "machine": machine()}
    found["date"] = datetime.now(UTC).date().isoformat()
    file = ROOT / "docs" / "results" / "vllm_parity.json"
    file.write_text(json.dumps(found, indent=1) + "\n")
    print(file.read_text())


if __name__ == "__main__":
    main()
