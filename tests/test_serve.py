"""`vlm-r1 serve`: what it refuses, what it prints, and that it ends with Ctrl-C."""

import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
from command import run

from vlm_r1.cli import serve
from vlm_r1.rollout.vllm_server import free_port

RECIPE = "data: {train: [{scenes: {n: 4}}]}\nrollout: {engine: vllm, max_new_tokens: 64, vllm_python: %s}\n"


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """A recipe that names a Python which is not run."""
    monkeypatch.delenv("VLM_R1_SECRET", raising=False)
    path = tmp_path / "my.yaml"
    path.write_text(RECIPE % sys.executable)
    return str(path)


def run_serve(*arguments: str) -> int:
    return run("serve", *arguments)


def test_it_prints_the_line_for_a_shell(recipe, capsys, monkeypatch):
    monkeypatch.setenv("VLM_R1_SECRET", "hush-hush")
    assert run_serve(recipe, "model.max_pixels=4096", "--host", "0.0.0.0", "--port", "8123", "--print") == 0
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith("env PYTHONPATH=")
    assert f"{sys.executable} -m vllm.entrypoints.openai.api_server --model " in line
    assert "--host 0.0.0.0 --port 8123 " in line
    assert "--gpu-memory-utilization" not in line or "CUDA_VISIBLE_DEVICES" in line
    assert 'VLM_R1_SECRET="$VLM_R1_SECRET"' in line and "hush-hush" not in line


@pytest.mark.parametrize("host", ["0.0.0.0", "10.1.2.3", "::", "a-name"])
def test_without_a_secret_it_listens_to_this_computer_alone(recipe, capsys, host):
    assert run_serve(recipe, "--host", host, "--print") == 2
    said = capsys.readouterr().err
    assert f"--host {host}" in said and "export VLM_R1_SECRET" in said


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_on_this_computer_it_needs_none(recipe, capsys, host):
    assert run_serve(recipe, "--host", host, "--print") == 0
    assert "SECRET" not in capsys.readouterr().out


@pytest.mark.parametrize("secret", ["two words", "s\u00e9cret", "line\nbreak"])
def test_a_secret_that_no_header_can_hold_is_refused(recipe, capsys, monkeypatch, secret):
    monkeypatch.setenv("VLM_R1_SECRET", secret)
    assert run_serve(recipe, "--print") == 2
    assert "VLM_R1_SECRET" in (said := capsys.readouterr().err) and secret not in said


def test_a_model_without_a_folder_and_a_missing_python_are_refused(recipe, capsys):
    scratch = ["model.init=scratch", "model.scratch={}"]
    assert run_serve(recipe, *scratch, "--print") == 2
    assert "model.init: scratch" in capsys.readouterr().err
    assert run_serve(recipe, "rollout.vllm_python=nowhere", "--print") == 2
    assert '"nowhere" is not a program' in capsys.readouterr().err


def test_it_takes_the_first_gpus_that_are_visible(monkeypatch):
    cuda = SimpleNamespace(is_available=lambda: True, device_count=lambda: 3)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert serve._gpus(2) == ("0", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-a,7")
    assert serve._gpus(2) == ("4", "GPU-a")
    with pytest.raises(serve.EngineError, match=r"rollout\.tensor_parallel: 4 GPUs are wanted, and 3 are there"):
        serve._gpus(4)
    cuda.is_available = lambda: False
    assert serve._gpus(1) == ()
    with pytest.raises(serve.EngineError, match="there is none"):
        serve._gpus(2)


def test_a_server_that_ends_by_itself_ends_the_command(tmp_path, capfd, recipe):
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho no such kernel >&2\n")
    program.chmod(0o755)
    assert run_serve(recipe, f"rollout.vllm_python={program}", "--port", str(free_port())) == 2
    said = capfd.readouterr().err
    assert "ended while it started. What it printed is above" in said
    assert said.index("no such kernel") < said.index("error:")


@pytest.mark.vllm
def test_a_real_server_answers_until_ctrl_c(tmp_path, vllm_python):
    recipe = tmp_path / "my.yaml"
    recipe.write_text(RECIPE % vllm_python)
    port = free_port()
    command = [sys.executable, "-m", "vlm_r1", "serve", str(recipe), "--port", str(port)]
    served = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"VLM_R1_SECRET": "s"})
    end = threading.Timer(120, served.kill)
    end.start()
    lines = []
    for line in served.stderr:
        lines.append(line)
        if line.startswith("Ready"):
            served.send_signal(signal.SIGINT)
    assert served.wait() == 130, "".join(lines)
    end.cancel()
    assert f'rollout.servers: ["http://127.0.0.1:{port}"]' in "".join(lines)
    time.sleep(0.2)
    there = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    assert str(port) not in there
