"""Two processes, one that generates and one that trains, against the queue model of `vlm_r1.plan.generation`.

    python benchmarks/generation_queue.py            # about 5 minutes, on a quiet machine with two cores
    python benchmarks/generation_queue.py --quick    # does it run?

Both hold the tiny base on one thread; completions and weights travel between them, and the version rule is kept for
staleness 0, 1 and 2, with three kinds of steps: long generation, even, long training. The trainer waits for the sync of
its weights, or goes on. Beside each measured time stands what the model says from phase times measured while the other
process sleeps, and what it says if two processes that work at once slow each other down as much as they do here.

Writes `docs/results/generation_queue.json` and `.md`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1"}

from _generation import Servers, Side, Training, Work, serve
from _measure import commit, machine, versions

from vlm_r1.plan.generation import timeline

ROOT = Path(__file__).resolve().parent.parent
CELLS = ((0, True), (1, True), (2, True), (1, False), (2, False))
"""Staleness, and whether the trainer waits for the sync."""


def works(steps: int) -> list[Work]:
    """The kinds of steps."""
    return [
        Work(name="long generation", prompts=2, group=4, tokens=160, iterations=1, steps=steps),
        Work(name="even", prompts=4, group=8, tokens=64, iterations=1, steps=steps),
        Work(name="long training", prompts=4, group=8, tokens=48, iterations=2, steps=steps),
    ]


class Pair:
    """The two processes."""

    def __init__(self, folder: Path, first: Work) -> None:
        context = multiprocessing.get_context("spawn")
        self.links = {"groups": context.Queue(), "weights": context.SimpleQueue(), "synced": context.SimpleQueue()}
        self.links["folder"] = folder
        self.ends: dict[type[Side], tuple[Any, Any]] = {}
        self.processes = []
        for kind in (Servers, Training):
            commands, results = context.SimpleQueue(), context.SimpleQueue()
            process = context.Process(target=serve, args=(kind, first, self.links, commands, results), daemon=True)
            process.start()
            self.processes.append(process)
            self.ends[kind] = (commands, results)

    def ask(self, command: tuple[Any, ...], *kinds: type[Side]) -> list[Any]:
        """Let these processes (or both) do something at once, and wait for their results."""
        asked = kinds or (Servers, Training)
        for kind in asked:
            self.ends[kind][0].put(command)
        while any(self.ends[kind][1].empty() for kind in asked):
            if not all(process.is_alive() for process in self.processes):
                raise SystemExit("one of the two processes ended; its error is above")
            time.sleep(0.01)
        return [self.ends[kind][1].get() for kind in asked]

    def close(self) -> None:
        """End both."""
        for commands, _ in self.ends.values():
            commands.put(None)
        for process in self.processes:
            process.join()


def phase_times(pair: Pair, file: Path) -> tuple[dict[str, Any], dict[str, float]]:
    """Seconds of generation and training by step, and of a sync, while the other process sleeps; and how many times as
    long the first two take while it works."""
    [generation], [training] = (pair.ask(("alone",), kind) for kind in (Servers, Training))
    sync = statistics.median(pair.ask(("syncs", file), Servers)[0])
    alone = {"generation_s": generation, "training_s": training, "sync_s": sync}
    beside = pair.ask(("beside", 2 * max(sum(generation), sum(training))))
    slower = {
        name: sum(taken for _, taken in found) / sum(alone[name][step] for step, _ in found)
        for name, found in zip(("generation_s", "training_s"), beside, strict=True)
    }
    return alone, slower


def shared(phases: dict[str, Any], slower: dict[str, float], k: int, waits: bool) -> float:
    """The end of `timeline` where each process takes `slower` times as long while the other one works too."""
    steps, now = len(phases["training_s"]), 0.0
    version = begun = done = trained = 0
    servers = trainer = 0.0  # work that is left, in seconds alone
    syncing = False
    while version < steps:
        if not servers and trained > version:
            servers, syncing = phases["sync_s"], True
        elif not servers and begun < steps and begun - version <= k:
            servers, syncing, begun = phases["generation_s"][begun], False, begun + 1
        if not trainer and done > trained and (version == trained or not waits):
            trainer = phases["training_s"][trained]
        rates = [1 / slower[name] if servers and trainer else 1.0 for name in ("generation_s", "training_s")]
        passed = min(work / rate for work, rate in zip((servers, trainer), rates, strict=True) if work)
        now += passed
        left = [max(0.0, w - passed * r) for w, r in zip((servers, trainer), rates, strict=True)]
        left = [work if work > 1e-9 else 0.0 for work in left]
        if servers and not left[0]:
            version, done = version + syncing, done + (not syncing)
        trained += bool(trainer and not left[1])
        servers, trainer = left
    return now


def repetition(pair: Pair, work: Work, k: int, waits: bool) -> dict[str, Any]:
    """One repetition of a cell: seconds from the first generation to the last sync, and everything that happened."""
    servers, training = pair.ask(("run", k, waits))
    for step, version in enumerate(servers["versions"]):
        assert step - version <= k, f"step {step} was generated by version {version}"
    log = sorted(servers["log"] + training["log"], key=lambda entry: entry[1])
    start = log[0][1]
    shifted = [(name, round(began - start, 5), round(ended - start, 5)) for name, began, ended in log]
    assert [name for name, _, _ in shifted].count("sync") == work.steps
    return {"total_s": shifted[-1][2], "log": shifted}


def measure(arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """All cells, in turn over rounds; the phase times are measured in each round anew."""
    kinds = works(arguments.steps)
    pair = Pair(folder, kinds[0])
    found = [{"work": work, "rounds": []} for work in kinds]
    for number in range(arguments.rounds):
        for one in found:
            work = one["work"]
            pair.ask(("take", work))
            repetition(pair, work, 0, True)  # warms up, and brings completions for the phase times of training
            alone, slower = phase_times(pair, folder / "weights-0.safetensors")
            cells = []
            for k, waits in CELLS:
                cell = repetition(pair, work, k, waits)
                predicted = {"alone": timeline(**alone, k=k, trainer_waits=waits)[-1]}
                predicted["slowed"] = shared(alone, slower, k, waits)
                assert abs(shared(alone, dict.fromkeys(slower, 1.0), k, waits) - predicted["alone"]) < 1e-6
                cells.append({"staleness": k, "trainer_waits": waits, "predicted_s": predicted, **cell})
                print(
                    f"round {number + 1}, {work.name}, {k}, {waits}: {cell['total_s']:.2f} s, {predicted}", flush=True
                )
            one["rounds"].append({"phases": alone, "slower": slower, "cells": cells})
    pair.close()
    return found


def summary(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each cell: medians over rounds, in seconds a step."""
    rows = []
    for one in found:
        steps = one["work"].steps
        alone = [turn["phases"] for turn in one["rounds"]]
        phases = {
            name: statistics.median(statistics.fmean(times[name]) for times in alone)
            for name in ("generation_s", "training_s")
        }
        for n, (k, waits) in enumerate(CELLS):
            cells = [turn["cells"][n] for turn in one["rounds"]]
            row = {"work": one["work"].name, **phases, "staleness": k, "trainer_waits": waits}
            row["step_s"] = statistics.median(cell["total_s"] for cell in cells) / steps
            for name in ("alone", "slowed"):
                row[f"{name}_s"] = statistics.median(cell["predicted_s"][name] for cell in cells) / steps
                errors = [cell["predicted_s"][name] / cell["total_s"] - 1 for cell in cells]
                row[f"{name}_error"] = statistics.median(errors)
            rows.append(row)
    return rows


def page(result: dict[str, Any]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "# Two processes against the queue model",
        "",
        "| step | generation, training alone | staleness | trainer waits for the sync | measured | model "
        "| model, and both slow each other down |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        lines.append(
            f"| {row['work']} | {row['generation_s']:.3f} s, {row['training_s']:.3f} s | {row['staleness']} "
            f"| {'yes' if row['trainer_waits'] else 'no'} | **{row['step_s']:.3f}** s | {row['alone_s']:.3f} s "
            f"({row['alone_error']:+.0%}) | {row['slowed_s']:.3f} s ({row['slowed_error']:+.0%}) |"
        )
    lines += ["", "Seconds a step from the first generation to the last sync; medians over rounds. " + about(result)]
    lines += ["", f"`{result['command']}` at commit {result['commit']} on {result['date']}; every repetition is in"]
    lines += ["`generation_queue.json`.", "", "Machine: " + ", ".join(f"{k} {v}" for k, v in result["machine"].items())]
    return "\n".join([*lines, ""])


def about(result: dict[str, Any]) -> str:
    """What the page says below the table."""
    slower = [statistics.median(result["slower"][name]) for name in ("generation_s", "training_s")]
    return (
        f"The tiny base, one thread for each process, {result['steps']} steps and {result['rounds']} rounds; the "
        "length of completions varies from step to step. The model takes phase times that were measured while the "
        "other process sleeps. On one machine two processes slow each other down, which GPUs of their own do not: "
        f"beside the other, generation takes {slower[0]:.2f} and training {slower[1]:.2f} times as long. The last "
        "column counts that where both work."
    )


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round of three steps")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10, help="steps of a repetition")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.steps = 1, 3
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        found = measure(arguments, Path(folder))
    rows = summary(found)
    result = {
        "benchmark": "generation_queue",
        "largest_error": {name: max(abs(row[f"{name}_error"]) for row in rows) for name in ("alone", "slowed")},
        "rows": rows,
        "slower": {
            name: [turn["slower"][name] for one in found for turn in one["rounds"]]
            for name in ("generation_s", "training_s")
        },
        "steps": arguments.steps,
        "rounds": arguments.rounds,
        "works": [
            {field: getattr(one["work"], field) for field in Work.__slots__}
            | {"lengths": one["work"].lengths(), "rounds": one["rounds"]}
            for one in found
        ],
        "machine": machine() | {"threads": 1},
        "versions": versions(),
        "commit": commit(),
        "command": "python benchmarks/generation_queue.py" + (" --quick" if arguments.quick else ""),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "generation_queue.json").write_text(json.dumps(result) + "\n", encoding="utf-8")
    (arguments.out / "generation_queue.md").write_text(page(result), encoding="utf-8")
    print(page(result))


if __name__ == "__main__":
    main()
