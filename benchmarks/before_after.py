"""Whole steps of this commit beside those of an earlier one, each by its own benchmark code, in turn.

    python benchmarks/before_after.py d645cda                     # with its prompts' graph kept, and without
    python benchmarks/before_after.py d645cda --quick

Three shapes: the headline (256 image tokens, 64 answer tokens), real proportions (1,296 image tokens, 256 answer
tokens), and the demo. The earlier commit is checked out beside this one and run with the same Python. At d645cda the
rollout kept its prompts' graph for the update (`rl.reuse_prefill`): the result says what that was worth.

Writes `docs/results/before_after.json` and `.md`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from _measure import commit, machine, versions
from _setting import Setting, prepare

ROOT = Path(__file__).resolve().parent.parent
SHAPES = {"headline": {}, "real proportions": {"image_tokens": 1296, "answer_tokens": 256, "prompts": 2}}
DEMO_STEPS = 24


def main() -> None:
    """Measure, write, and say where."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit", help="the earlier commit")
    parser.add_argument("--quick", action="store_true", help="one round, two steps, no demo")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        subprocess.run(["git", "worktree", "add", "--detach", str(base), arguments.commit], cwd=ROOT, check=True)
        try:
            result = measure(arguments, base, Path(folder))
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(base)], cwd=ROOT, check=True)
    write(arguments, result)


def measure(arguments: argparse.Namespace, base: Path, folder: Path) -> dict[str, Any]:
    """Seconds of every step: shape -> side -> rounds."""
    sides: dict[str, tuple[Path, dict[str, Any]]] = {
        "before": (base, {}),
        "before, graph not kept": (base, {"reuse_prefill": False}),
        "now": (ROOT, {}),
    }
    found: dict[str, dict[str, list[Any]]] = {}
    for name, shape in SHAPES.items():
        repetitions = 2 if arguments.quick else 5
        setting = Setting(folder=str(folder), warmup=1 if arguments.quick else 2, repetitions=repetitions, **shape)
        prepare(setting)
        found[name] = {side: [] for side in sides}
        for _ in range(1 if arguments.quick else arguments.rounds):
            for side, (group, options) in sides.items():
                found[name][side].append(run_step(setting, group, options, folder))
                print(name, side, f"{statistics.median(s['step_s'] for s in found[name][side][-1]):.3f} s", flush=True)
    if not arguments.quick:
        found["demo"] = {side: [] for side in sides}
        for _ in range(arguments.rounds):
            for side, (group, options) in sides.items():
                found["demo"][side].append(run_demo(group, options, folder))
    return found


def environment(group: Path) -> dict[str, str]:
    """This Python with the package of another prefix group."""
    return {
        **os.environ,
        "PYTHONPATH": str(group / "src"),
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_OFFLINE": "1",
    }


def run_step(setting: Setting, group: Path, options: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """The measured steps of one process of a prefix group's own `_ours.py`."""
    job, result = folder / "job.json", folder / "result.json"
    setting.write(job, options=options)
    content = json.loads(job.read_text(encoding="utf-8"))
    if group != ROOT:  # its setting has other names
        content["setting"].pop("precision", None)
        content["setting"]["dtype"] = "float32"
        job.write_text(json.dumps(content), encoding="utf-8")
    script = str(group / "benchmarks" / "_ours.py")
    done = subprocess.run(
        [sys.executable, script, str(job), str(result)], capture_output=True, text=True, env=environment(group)
    )
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return json.loads(result.read_text(encoding="utf-8"))["steps"]


def run_demo(group: Path, options: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """Steps of the demo's recipe, without its evaluations; the first ones are dropped."""
    recipe = group / "src" / "vlm_r1" / "assets" / "demo.yaml"
    run_dir = Path(tempfile.mkdtemp(dir=folder))
    settings = [f"run.dir={run_dir}", f"run.steps={DEMO_STEPS}", "run.save_every=1000", "data.eval={}"]
    settings += [f"rl.{key}={str(value).lower()}" for key, value in options.items()]
    code = "import sys; from vlm_r1.cli import main; main(sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", code, "train", str(recipe), *settings],
        capture_output=True,
        text=True,
        env=environment(group),
    )
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{"step_s": line["time/step_s"]} for line in lines[4:]]


def write(arguments: argparse.Namespace, found: dict[str, dict[str, list[Any]]]) -> None:
    """The results, and a page about them."""
    medians = {
        shape: {side: statistics.median(s["step_s"] for one in rounds for s in one) for side, rounds in sides.items()}
        for shape, sides in found.items()
    }
    result = {
        "benchmark": "before_after",
        "base": arguments.commit,
        "median_step_s": medians,
        "graph_was_worth": {s: m["before, graph not kept"] / m["before"] - 1 for s, m in medians.items()},
        "now_over_before": {s: m["now"] / m["before"] for s, m in medians.items()},
        "steps": found,
        "machine": machine(),
        "versions": versions(),
        "commit": commit(),
        "date": datetime.date.today().isoformat(),
        "command": f"python benchmarks/before_after.py {arguments.commit}",
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "before_after.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    lines = [
        f"# A step before and after {arguments.commit}",
        "",
        "| shape | before, s | before, graph not kept, s | now, s | the graph was worth | now over before |",
        "|---|---|---|---|---|---|",
    ]
    for shape, m in medians.items():
        sides = " | ".join(f"{value:.3f}" for value in m.values())
        worth, ratio = result["graph_was_worth"][shape], result["now_over_before"][shape]
        lines.append(f"| {shape} | {sides} | {worth:+.0%} | {ratio:.2f} |")
    lines += ["", f"`{result['command']}` at commit {result['commit']} on {result['date']}; medians over "]
    lines[-1] += f"{arguments.rounds} alternating rounds, every step in `before_after.json`."
    (arguments.out / "before_after.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
