"""A rank that dies, hangs, or cannot write: the job ends soon, names it, and continues from the last checkpoint."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from distributed.conftest import make
from distributed.running import assert_same_run, run_all, torchrun, with_folder

from vlm_r1.config_file import resolved_yaml
from vlm_r1.runtime.runlog import read_metrics

HANGS = (
    "import os, signal, time\n"
    "def hangs(sample, answer):\n"
    "    if os.environ.get('RANK') == '1':\n"
    "        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})\n"  # as native code that never returns
    "        time.sleep(600)\n"
    "    return 0.5\n"
    "def stalls(sample, answer):\n"
    "    if os.environ.get('RANK') == '1' and 'slow' not in os.environ:\n"
    "        os.environ['slow'] = '1'\n"
    "        time.sleep(600)\n"
    "    return float(len(answer.raw) % 3)\n"
)


def write(recipe, run_dir: Path, file: Path) -> Path:
    file.write_text(resolved_yaml(with_folder(recipe, run_dir)))
    return file


def children_of(parent: int) -> list[int]:
    """Processes started by a process."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == parent:
                found.append(int(entry.name))
    return found


def rank_of(process: int) -> str | None:
    try:
        environment = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    return next((e.partition(b"=")[2].decode() for e in environment if e.startswith(b"RANK=")), None)


def kill_rank_1_at(step: int, run_dir: Path, launcher: subprocess.Popen) -> None:
    """kill -9 of rank 1 once this step is in the metrics."""
    end = time.monotonic() + 120
    while time.monotonic() < end and launcher.poll() is None:
        if any(row["step"] >= step for row in read_metrics(run_dir)):
            for process in children_of(launcher.pid):
                if rank_of(process) == "1":
                    os.kill(process, signal.SIGKILL)
                    return
        time.sleep(0.02)
    raise AssertionError("the run ended, or rank 1 was not found")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["processes", "torchrun"])
def test_a_killed_rank_is_named_and_the_run_continues_by_itself(model_folder, rewards, tmp_path, how):
    run = make(model_folder, rewards, run={"steps": 30, "save_every": 3, "log_rollouts_every": 0})
    expected = run_all({"run": run}, 1, tmp_path / "one")["run"]
    run_dir = tmp_path / "two"
    file = write(run, run_dir, tmp_path / "recipe.yaml")
    inner = ["-m", "vlm_r1", "train", str(file)]
    command = [sys.executable, *inner, "--processes", "2", "--restarts", "1"]
    if how == "torchrun":
        options = ["--standalone", "--nproc_per_node=2", "--max-restarts=1"]
        command = [sys.executable, "-m", "torch.distributed.run", *options, *inner]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as launcher:
        kill_rank_1_at(5, run_dir, launcher)
        killed = time.monotonic()
        output, _ = launcher.communicate(timeout=120)
    assert launcher.returncode == 0, output[-3000:]
    assert time.monotonic() - killed < 120
    if how == "processes":
        told = r"rank 1 \(process \d+\) was killed by SIGKILL; starting again from the last checkpoint \(1 of 1\)"
        assert re.search(told, output), output[-3000:]
    assert_same_run(expected, run_dir)


@pytest.mark.slow
def test_a_rank_that_hangs_is_named_with_what_it_does(model_folder, tmp_path):
    (tmp_path / "rewards.py").write_text(HANGS)
    run = make(model_folder, tmp_path / "rewards.py", "grpo", "hangs", run={"hang_timeout_s": 6.0, "threads": 1})
    run = run.model_copy(update={"rewards": run.rewards.model_copy(update={"timeout_s": 2.0})})
    file = write(run, tmp_path / "run", tmp_path / "recipe.yaml")
    began = time.monotonic()
    done = torchrun(2, "run_recipes.py", str(file), check=False)
    assert done.returncode != 0 and time.monotonic() - began < 90
    told = r"error: rank 1 \(process \d+ on \S+\) has done nothing for \d+ s, in: reward .*hangs\" of sample train-\d+"
    assert len(re.findall(told, done.stderr)) == 1, done.stderr[-3000:]


@pytest.mark.slow
def test_a_reward_that_stalls_costs_its_answer_and_not_the_run(model_folder, tmp_path):
    (tmp_path / "rewards.py").write_text(HANGS)
    run = make(model_folder, tmp_path / "rewards.py", "grpo", "stalls", run={"hang_timeout_s": 6.0, "steps": 2})
    run = run.model_copy(update={"rewards": run.rewards.model_copy(update={"timeout_s": 1.0})})
    torchrun(2, "run_recipes.py", str(write(run, tmp_path / "run", tmp_path / "recipe.yaml")))
    rows = read_metrics(tmp_path / "run")
    counts = [v for row in rows for k, v in row.items() if k.startswith("rewards/counts/timeouts/")]
    assert counts == [1.0, 1.0]


@pytest.mark.slow
def test_a_full_disk_on_one_rank_is_said_and_nothing_is_lost(model_folder, rewards, tmp_path):
    run = make(model_folder, rewards, run={"steps": 4, "save_every": 1, "keep": 4, "log_rollouts_every": 0})
    expected = run_all({"run": run}, 1, tmp_path / "one")["run"]
    file = write(run, tmp_path / "run", tmp_path / "recipe.yaml")
    done = torchrun(2, "full_disk.py", str(file), "2", check=False)
    assert done.returncode != 0
    told = r"checkpoint-3: could not be written by rank 1 \(.*\); to continue, .* checkpoint-2 is intact"
    assert re.search(told, done.stderr), done.stderr[-3000:]
    assert sorted(p.name for p in (tmp_path / "run").glob("*checkpoint*")) == ["checkpoint-1", "checkpoint-2"]
    torchrun(2, "run_recipes.py", str(file))
    assert_same_run(expected, tmp_path / "run")


@pytest.mark.slow
def test_a_changed_bit_in_the_shard_of_one_rank_is_named_by_all(model_folder, rewards, tmp_path):
    run = make(model_folder, rewards, run={"steps": 3, "save_every": 1, "keep": 3, "log_rollouts_every": 0})
    done = torchrun(2, "damaged.py", str(write(run, tmp_path / "run", tmp_path / "recipe.yaml")))
    shard = tmp_path / "run" / "checkpoint-3" / "shard-00002-model-00001-of-00001.safetensors"
    said = [line for line in done.stdout.splitlines() if line.startswith("refused")]
    assert len(said) == 2 and all(f"{shard}: is not what was written" in line for line in said), done.stdout
    assert (tmp_path / "run" / "checkpoint-3.damaged").is_dir() and "same" in done.stdout, done.stdout


@pytest.mark.slow
def test_numbers_that_are_not_finite_on_one_rank_skip_the_update_on_all(model_folder, rewards, tmp_path):
    run = make(model_folder, rewards, run={"steps": 4, "save_every": 1, "keep": 9, "log_rollouts_every": 0})
    limited = run.model_copy(update={"optim": run.optim.model_copy(update={"max_skipped": 2})})
    files = [write(run, tmp_path / "run", tmp_path / "a.yaml"), write(limited, tmp_path / "lost", tmp_path / "b.yaml")]
    done = torchrun(2, "diverge.py", *map(str, files))
    assert [row["skipped_updates"] for row in read_metrics(tmp_path / "run")] == [0, 1, 1, 0]
    said = [line for line in done.stdout.splitlines() if line.startswith("lost")]
    told = r"lost: step 3: the \w+ is not finite, 2 times in a row since step 2 .*lost/checkpoint-1:"
    assert len(said) == 2 and all(re.match(told, line) for line in said), done.stdout


@pytest.mark.slow
def test_a_scheduler_that_starts_a_run_twice_gets_one_line_and_one_that_stops_it_a_checkpoint(
    model_folder, rewards, tmp_path
):
    run = make(model_folder, rewards, run={"steps": 5000, "save_every": 5000, "log_rollouts_every": 0})
    run_dir = tmp_path / "run"
    file = write(run, run_dir, tmp_path / "recipe.yaml")
    command = [sys.executable, "-m", "vlm_r1", "train", str(file), "--processes", "2"]
    told = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, **told) as launcher:
        while launcher.poll() is None and len(read_metrics(run_dir)) < 2:
            time.sleep(0.1)
        again = subprocess.run(command, **told, timeout=120)
        launcher.terminate()
        output, _ = launcher.communicate(timeout=120)
    assert again.returncode == 2, again.stdout
    refused = rf"error: {run_dir}: process \d+ on \S+ trains in this folder, so this one ends and has changed nothing"
    assert len(re.findall(refused, again.stdout)) == 1, again.stdout
    assert launcher.returncode == 143, output[-3000:]
    steps = [row["step"] for row in read_metrics(run_dir)]
    assert steps == list(range(1, len(steps) + 1)), "the second process wrote nothing"
    assert [path.name for path in run_dir.glob("checkpoint-*")] == [f"checkpoint-{steps[-1]}"]
    assert output.endswith(f"To continue from the last checkpoint: vlm-r1 train {file} --processes 2\n")


@pytest.mark.slow
def test_a_cluster_that_does_not_share_a_folder_fails_before_the_first_step(tmp_path):
    done = torchrun(2, "broken_cluster.py", str(tmp_path), "folders", check=False)
    assert re.search(r"all machines must write to one shared folder", done.stderr), done.stderr[-3000:]
    done = torchrun(2, "broken_cluster.py", str(tmp_path), "versions", check=False)
    assert "rank 1 on" in done.stderr and "has vlm-r1 2, rank 0 on" in done.stderr, done.stderr[-3000:]


def test_a_mistake_is_said_once_and_nothing_is_started_again(model_folder, rewards, tmp_path):
    run = make(model_folder, rewards, optim={"name": "muon"})
    file = write(run, tmp_path / "run", tmp_path / "recipe.yaml")
    command = [sys.executable, "-m", "vlm_r1", "train", str(file), "--processes", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.count("muon cannot step on sharded weights; use adamw") == 1, done.stderr[-3000:]
    assert "Traceback" not in done.stderr and "starting again" not in done.stderr
