"""The share of a step outside model forward, backward and optimiser, at the demo's size.

    python benchmarks/overhead.py

24 prompts, G = 16, 96 x 96 images, the shipped model's architecture with random weights and answers of full length.
Writes docs/results/overhead.json.
"""

from __future__ import annotations

import datetime
import json
import tempfile

from _measure import commit, machine
from _setting import Setting
from grpo_step import ROOT, overhead, say


def main() -> None:
    """Measure and write."""
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(
            folder=folder, model="tiny", precision="float32", lr=1e-6, warmup=2, repetitions=9, threads=None
        )
        result = overhead(setting, None)
    result |= {"machine": machine(), "commit": commit(), "command": "python benchmarks/overhead.py"}
    result["date"] = datetime.datetime.now(datetime.UTC).date().isoformat()
    file = ROOT / "docs" / "results" / "overhead.json"
    file.write_text(json.dumps(result, indent=1) + "\n")
    say(f"written: {file}")


if __name__ == "__main__":
    main()
