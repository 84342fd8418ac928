"""Training while its vLLM servers are killed: does the run finish, and is every group there once, of a known version?

    python benchmarks/vllm_faults.py              # 18 kills and 2 hangs of the run's own server; then two servers
    python benchmarks/vllm_faults.py --kills 4 --hangs 0

Writes docs/results/vllm_faults.json. Runs go to runs/vllm-faults/. Needs vLLM's environment: make vllm-env.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

from _measure import commit, machine

from vlm_r1.rollout.vllm_server import free_port
from vlm_r1.runtime.runlog import read_metrics, read_rollouts, rollout_steps

ROOT = Path(__file__).resolve().parent.parent
RUNS = Path("runs/vllm-faults")
RECIPE = ROOT / "src" / "vlm_r1" / "assets" / "demo.yaml"
PROMPTS, ANSWERS = 12, 8
SETTINGS = (
    *("rollout.engine=vllm", "data.eval={}", "run.log_rollouts_every=1", "run.save_every=1000"),
    *(f"rl.prompts_per_step={PROMPTS}", f"rl.group_size={ANSWERS}"),
)
SERVER = "vllm.entrypoints.openai.api_server"


def start(folder: Path, steps: int, *more: str) -> subprocess.Popen[bytes]:
    """Train in a fresh folder, in the background."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    arguments = ["train", str(RECIPE), *SETTINGS, f"run.dir={folder}", f"run.steps={steps}", *more]
    with (folder / "output.txt").open("wb") as out:
        return subprocess.Popen([sys.executable, "-m", "vlm_r1", *arguments], stdout=out, stderr=out)


def servers_of(process: int) -> list[int]:
    """The server processes below a process that have begun to answer or will."""
    parents, names = {}, {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            names[int(entry.name)] = (entry / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue

    def below(number: int) -> bool:
        while number in parents:
            if number == process:
                return True
            number = parents[number]
        return False

    return [n for n, name in names.items() if SERVER in name and "-S\0" not in name and below(n)]


def answers(server: int) -> bool:
    """Whether a server process answers on the port that its command line names."""
    try:
        words = Path(f"/proc/{server}/cmdline").read_bytes().decode().split("\0")
        with urllib.request.urlopen(f"http://127.0.0.1:{words[words.index('--port') + 1]}/health", timeout=2) as found:
            return bool(found.status == 200)
    except OSError:
        return False


def step_of(folder: Path) -> int:
    """Steps that a run has done."""
    file = folder / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.is_file() else 0


def disturb(run: subprocess.Popen[bytes], folder: Path, signals: list[int], seed: int) -> list[dict[str, object]]:
    """Send each signal to the run's server at a random moment of its work; what happened."""
    moments, happened = random.Random(seed), []
    for number in signals:
        before = step_of(folder)
        while run.poll() is None and step_of(folder) < before + 1:  # it works again
            time.sleep(0.1)
        time.sleep(moments.uniform(0, 4))
        if run.poll() is not None:
            break
        targets = servers_of(run.pid)
        while number == signal.SIGSTOP and run.poll() is None and not any(map(answers, targets)):
            time.sleep(0.5)  # one that hangs while it starts is waited for as long as a large model may take
            targets = servers_of(run.pid)
        for target in targets:
            os.kill(target, number)
        happened.append({"signal": signal.Signals(number).name, "at_step": step_of(folder), "processes": len(targets)})
    return happened


def faults_of(folder: Path, steps: int) -> dict[str, object]:
    """What is wrong with the rollout tables of a run: groups that are missing, double, or of another version."""
    missing, double, unknown, rows = 0, 0, 0, 0
    for step in range(1, steps + 1):
        table = read_rollouts(folder, step) if step in rollout_steps(folder) else []
        counts = Counter(row["group"] for row in table)
        missing += sum(counts[group] < ANSWERS for group in range(PROMPTS))
        double += sum(count > ANSWERS for count in counts.values()) + len(counts.keys() - set(range(PROMPTS)))
        unknown += sum(row["version"] != step - 1 for row in table)
        rows += len(table)
    return {"answers": rows, "groups_missing": missing, "groups_double": double, "answers_of_other_versions": unknown}


def same_answers(folder: Path, other: Path, steps: int) -> int:
    """Steps whose answers are token for token those of another run."""

    def tokens(of: Path, step: int) -> list[list[int]]:
        return [row["token_ids"] for row in read_rollouts(of, step)]

    return sum(tokens(folder, step) == tokens(other, step) for step in range(1, steps + 1))


def own_server(kills: int, hangs: int, seed: int) -> dict[str, object]:
    """A run whose own server is killed, and hangs, again and again."""
    signals = [signal.SIGKILL] * kills + [signal.SIGSTOP] * hangs
    random.Random(seed).shuffle(signals)
    steps = 2 * len(signals) + 4
    quiet, folder = RUNS / "quiet", RUNS / "killed"
    if start(quiet, steps).wait() != 0:
        raise SystemExit((quiet / "output.txt").read_text())
    began = time.monotonic()
    run = start(folder, steps)
    happened = disturb(run, folder, [int(s) for s in signals], seed)
    code = run.wait()
    return {
        "kills": happened,
        "exit_code": code,
        "steps": step_of(folder),
        "steps_wanted": steps,
        "steps_with_the_answers_of_the_quiet_run": same_answers(folder, quiet, steps),
        "last_reward": read_metrics(folder)[-1]["reward"],
        "last_reward_of_the_quiet_run": read_metrics(quiet)[-1]["reward"],
        "seconds": round(time.monotonic() - began, 1),
        **faults_of(folder, steps),
    }


def answered(url: str) -> int:
    """Requests that a server has finished, by its own count."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as response:
        lines = response.read().decode().splitlines()
    return int(sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("vllm:request_success_total")))


def two_servers(steps: int = 12) -> dict[str, object]:
    """A run over two servers of its own choosing, one of which is killed for good half way."""
    ports = [free_port(), free_port()]
    serving = []
    for port in ports:
        arguments = ["serve", str(RECIPE), "--port", str(port), *SETTINGS]
        serving.append(subprocess.Popen([sys.executable, "-m", "vlm_r1", *arguments], stderr=subprocess.DEVNULL))
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    try:
        for url in urls:
            for _ in range(600):
                try:
                    answered(url)
                    break
                except OSError:
                    time.sleep(0.5)
        folder = RUNS / "two"
        run = start(folder, steps, f"rollout.servers={json.dumps(urls)}")
        while run.poll() is None and step_of(folder) < steps // 2:
            time.sleep(0.1)
        spread = [answered(url) for url in urls]
        for target in servers_of(serving[0].pid):
            os.kill(target, signal.SIGKILL)
        code = run.wait()
        return {
            "answered_before_the_kill": spread,
            "answered_by_the_other_at_the_end": answered(urls[1]),
            "exit_code": code,
            "steps": step_of(folder),
            "steps_wanted": steps,
            **faults_of(folder, steps),
        }
    finally:
        for process in serving:
            process.terminate()
            process.wait()


def main() -> None:
    """Run both and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=18)
    parser.add_argument("--hangs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    result = {
        "own_server": own_server(given.kills, given.hangs, given.seed),
        "two_servers": two_servers(),
        "command": "python " + " ".join(sys.argv),
        "commit": commit(),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
    }
    file = ROOT / "docs" / "results" / "vllm_faults.json"
    file.write_text(json.dumps(result, indent=1) + "\n")
    print(file.read_text())


if __name__ == "__main__":
    main()
