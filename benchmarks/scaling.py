"""The same run on one process and on two, each with one thread: steps a second, and how long evaluation takes.

    python benchmarks/scaling.py            # on a quiet machine with two cores
    python benchmarks/scaling.py --quick    # does it run?

Both sides run the whole GRPO loop of the headline model (2.3 M parameters) on the same recipe, in turn, over several
rounds: `--prompts` prompts of 256 image tokens, G = 8, 64 answer tokens. The first steps of each round are dropped.
Writes `docs/results/scaling.json` and `.md`.
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


def main() -> None:
    """Measure, write, and say where."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round, two steps")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repetitions", type=int, default=6, help="measured steps in each round")
    parser.add_argument("--prompts", type=int, default=16, help="prompts in a step")
    parser.add_argument("--questions", type=int, default=128, help="held-out questions")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.repetitions, arguments.prompts, arguments.questions = 1, 2, 4, 8
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(
            folder=folder, prompts=arguments.prompts, warmup=2, repetitions=arguments.repetitions, threads=1
        )
        prepare(setting)
        found: dict[int, list[dict[str, Any]]] = {1: [], 2: []}
        for number in range(arguments.rounds):
            for processes in found:
                found[processes].append(run_side(setting, processes, arguments.questions))
                print(f"round {number + 1}: {processes} process(es), {median(found[processes][-1:], 'step_s'):.3f} s")
        alone, beside = (run_pair(setting, copies) for copies in (1, 2))
    write(arguments, found, 2 * alone / beside)


def run_pair(setting: Setting, copies: int) -> float:
    """Seconds of a step of one process while so many copies run at once that have nothing to do with each other."""
    sides = [start_side(setting, 1, 8, f"copy-{number}") for number in range(copies)]
    return median([finish_side(*side) for side in sides], "step_s")


def run_side(setting: Setting, processes: int, questions: int) -> dict[str, Any]:
    """One round on so many processes; what the first of them wrote."""
    return finish_side(*start_side(setting, processes, questions, str(processes)))


def start_side(setting: Setting, processes: int, questions: int, name: str) -> tuple[subprocess.Popen[str], Path]:
    """Start a round; the process, and where its result will be."""
    folder = Path(setting.folder)
    job, result = folder / f"job-{name}.json", folder / f"result-{name}.json"
    setting.write(job, questions=questions)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    script = str(Path(__file__).parent / "_scaling.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1"}
    log = (folder / f"log-{name}.txt").open("w", encoding="utf-8")
    arguments = [*command, script, str(job), str(result)]
    return subprocess.Popen(arguments, stdout=log, stderr=log, text=True, env=environment), result


def finish_side(process: subprocess.Popen[str], result: Path) -> dict[str, Any]:
    """Wait for a round, and read what it wrote."""
    if process.wait():
        raise SystemExit(f"a round failed; see {result.with_suffix('.txt').name.replace('result', 'log')}")
    found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return found


def median(rounds: list[dict[str, Any]], name: str) -> float:
    """The median over all measured steps of all rounds."""
    return statistics.median(step[name] for one in rounds for step in one["steps"])


def write(arguments: argparse.Namespace, found: dict[int, list[dict[str, Any]]], ceiling: float) -> None:
    """The results, and a page about them."""
    steps = {n: median(rounds, "step_s") for n, rounds in found.items()}
    evaluation = {n: statistics.median(one["evaluation_s"] for one in rounds) for n, rounds in found.items()}
    same = found[1][0]["evaluation"] == found[2][0]["evaluation"]
    result = {
        "benchmark": "scaling",
        "speedup_step": steps[1] / steps[2],
        "speedup_evaluation": evaluation[1] / evaluation[2],
        "ceiling_step": ceiling,
        "same_evaluation": same,
        "step_s": steps,
        "evaluation_s": evaluation,
        "collectives_share": median(found[2], "collectives_share"),
        "setting": {"prompts": arguments.prompts, "group": 8, "image_tokens": 256, "answer_tokens": 64},
        "rounds": found,
        "machine": machine(),
        "versions": versions(),
        "commit": commit(),
        "date": datetime.date.today().isoformat(),
        "command": "python benchmarks/scaling.py",
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "scaling.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    lines = [
        "# Two processes against one",
        "",
        "| | 1 process, 1 thread | 2 processes, 1 thread each | ratio |",
        "|---|---|---|---|",
        f"| whole GRPO step, s | {steps[1]:.3f} | {steps[2]:.3f} | **{steps[1] / steps[2]:.2f}** |",
        f"| {arguments.questions} held-out questions, s | {evaluation[1]:.2f} | {evaluation[2]:.2f} "
        f"| {evaluation[1] / evaluation[2]:.2f} |",
        "",
        f"Two copies that share nothing and run at once do {ceiling:.2f} times the steps of one alone: this machine "
        "gives no more.",
        "",
        f"Of a step of two processes {result['collectives_share']:.0%} is spent in collectives (gloo on one machine, "
        f"waiting for the other process included). Both give the same evaluation: {same}. Step: {arguments.prompts} "
        "prompts of 256 image tokens, G = 8, 64 answer tokens, model of 2.3 M parameters, float32; medians over "
        f"{arguments.rounds} alternating rounds. `python benchmarks/scaling.py` at commit {result['commit']} on "
        f"{result['date']}; every repetition is in `scaling.json`.",
    ]
    (arguments.out / "scaling.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
