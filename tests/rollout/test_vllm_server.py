"""A server as a process: with a small program in vLLM's place, and (marked `vllm`) a real one."""

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import PLAIN, mixed_prompts
from vllm_servers import SharedServer

from vlm_r1.config import ModelConfig
from vlm_r1.errors import EngineError
from vlm_r1.models.load import load_policy, resolve_path
from vlm_r1.records import SamplingParams
from vlm_r1.rollout import vllm_server
from vlm_r1.rollout.vllm_launch import MODEL, Launch
from vlm_r1.rollout.vllm_request import body_of, stops_of
from vlm_r1.rollout.vllm_server import ServerProcess, free_port

PROGRAM = """#!{python}
import http.server, os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open({pids!r}, "w").write(f"{{os.getpid()}} {{child.pid}}")
print("RANK" in os.environ, "told", sys.argv[sys.argv.index("--model") + 1], flush=True)
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *args): pass
{begin}
http.server.HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Answer).serve_forever()
"""


@pytest.fixture
def make(tmp_path):
    """Make a process whose Python is a program that answers /health, starts a child, and does `begin` before."""
    made = []

    def server(begin: str = "", **settings) -> ServerProcess:
        program = tmp_path / "python"
        program.write_text(PROGRAM.format(python=sys.executable, pids=str(tmp_path / "pids"), begin=begin))
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        launch = Launch(**({"model": "m", "dtype": "float32", "port": free_port(), "max_model_len": 8} | settings))
        made.append(ServerProcess(launch, str(program), tmp_path / "logs" / "server.log"))
        return made[-1]

    yield server
    for process in made:
        process.kill()


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def pids(tmp_path: Path) -> list[int]:
    return [int(pid) for pid in (tmp_path / "pids").read_text().split()]


def gone(found: list[int], seconds: float = 5.0) -> bool:
    """Whether none of these processes runs, after some time."""
    end = time.monotonic() + seconds
    while any(map(running, found)) and time.monotonic() < end:
        time.sleep(0.05)
    return not any(map(running, found))


def test_it_starts_answers_and_starts_again_at_the_same_address(make, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "3")  # of the training job, which the server is not part of
    beats, server = [], make()
    assert not server.alive() and not server.healthy()
    server.kill()
    server.start()
    server.wait_ready(lambda: beats.append(1))
    assert server.alive() and server.healthy() and beats
    url, first = server.url, pids(tmp_path)
    server.restart()
    server.wait_ready()
    assert gone(first, 0)
    assert server.url == url and set(pids(tmp_path)).isdisjoint(first)
    server.kill()
    assert gone(pids(tmp_path), 0)
    assert not server.alive() and not server.healthy()
    assert server.log.read_text().splitlines() == ["False told m"] * 2


def test_one_that_ends_while_it_starts_says_why(make):
    server = make('sys.exit("no kernel for this image")')
    server.start()
    with pytest.raises(EngineError, match=r"(?s)ended while it started.*server\.log.*no kernel for this image"):
        server.wait_ready()
    assert not server.alive()


def test_one_that_takes_too_long_is_ended(make, tmp_path):
    server = make('print("loading", flush=True); time.sleep(600)')
    server.start()
    with pytest.raises(EngineError, match=r"(?s)not ready after 1 s.*loading"):
        server.wait_ready(timeout_s=1)
    assert gone(pids(tmp_path), 0)


def test_one_that_started_before_is_not_waited_for_as_long(make, tmp_path, monkeypatch):
    monkeypatch.setattr(vllm_server, "AGAIN_S", 1.0)
    hangs = tmp_path / "hangs"
    server = make(f"while os.path.exists({str(hangs)!r}): time.sleep(0.05)")
    server.start()
    server.wait_ready()
    hangs.touch()
    server.restart()
    with pytest.raises(EngineError, match="was not ready after"):
        server.wait_ready()
    hangs.unlink()
    server.restart()
    server.wait_ready()


@pytest.mark.parametrize("which", [0, 1])
def test_a_killed_server_is_noticed_and_leaves_no_child(make, tmp_path, which):
    """Its own process, or the guard that watches it."""
    server = make()
    server.start()
    server.wait_ready()
    found = pids(tmp_path)
    os.kill([found[0], server._guard.pid][which], signal.SIGKILL)
    end = time.monotonic() + 5
    while server.alive() and time.monotonic() < end:
        time.sleep(0.05)
    assert not server.alive()
    if which == 0:
        assert gone(found)
        assert "ended with code -9" in server.last_lines()
    server.restart()
    server.wait_ready()
    assert gone(found, 0)


def test_a_stopped_server_can_be_killed(make, tmp_path):
    server = make()
    server.start()
    server.wait_ready()
    found = pids(tmp_path)
    os.kill(found[0], signal.SIGSTOP)
    assert server.alive() and not server.healthy(timeout_s=0.2)
    server.kill()
    assert gone(found, 0)


def test_a_port_that_is_taken_is_refused(make):
    first = make()
    first.start()
    first.wait_ready()
    second = make(port=first.launch.port)
    with pytest.raises(EngineError, match=rf"127\.0\.0\.1:{first.launch.port} cannot be listened on.*another port"):
        second.start()
    assert first.healthy()


def parent_of(launch: Launch, python: str, log: Path) -> subprocess.Popen:
    """A process that starts a server, says when it answers, and waits."""
    settings = {key: getattr(launch, key) for key in ("model", "dtype", "port", "max_model_len")}
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom vlm_r1.rollout.vllm_launch import Launch\n"
        "from vlm_r1.rollout.vllm_server import ServerProcess\n"
        f"server = ServerProcess(Launch(**{settings!r}), {python!r}, Path({str(log)!r}))\n"
        "server.start()\nserver.wait_ready()\nprint('ready', flush=True)\ntime.sleep(600)"
    )
    started = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert started.stdout.readline() == "ready\n"
    return started


def below(pid: int) -> list[int]:
    """The processes that a process started, and those that they started."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            parents[int(entry.parent.name)] = int(entry.read_text().rpartition(")")[2].split()[1])
    children = [child for child, parent in parents.items() if parent == pid]
    return children + [grandchild for child in children for grandchild in below(child)]


def test_a_killed_parent_leaves_nothing(make, tmp_path):
    server = make()
    parent = parent_of(server.launch, server.python, server.log)
    found = below(parent.pid)
    assert set(pids(tmp_path)) < set(found)
    parent.kill()
    parent.wait()
    assert gone(found)


# -- a real server ----------------------------------------------------------------------------------------------------


def post(server, path: str, body: dict | None = None, *, secret: str | None = None) -> tuple[int, dict]:
    """Status and answer; GET where there is no body."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {secret or server.secret}"}
    try:
        with urllib.request.urlopen(urllib.request.Request(server.url + path, data, headers)) as answer:
            return answer.status, json.loads(answer.read() or b"null")
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read() or b"null")


def load(server, *parts: dict[str, torch.Tensor], folder: Path | None = None) -> str:
    """Load weights from one file a part; what is said where it fails, else nothing."""
    folder = folder or server.weights_dir
    files = [folder / f"part-{i}.safetensors" for i in range(len(parts))]
    for part, file in zip(parts, files, strict=True):
        save_file({name: tensor.clone() for name, tensor in part.items()}, file)
    return load_files(server, [str(file) for file in files])


def load_files(server, files: list[str]) -> str:
    assert post(server, "/pause?mode=abort", {})[0] == 200
    assert post(server, "/start_weight_update", {})[0] == 200
    status, said = post(server, "/update_weights", {"update_info": {"paths": files}})
    if status == 200:
        assert post(server, "/finish_weight_update", {"weight_version": "test"})[0] == 200
    assert post(server, "/resume", {})[0] == 200
    return "" if status == 200 else said["error"]["message"]


def checksums(server) -> dict:
    status, said = post(server, "/weight_checker", {"action": "checksum"})
    assert status == 200
    return said


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return load_file(Path(resolve_path("tiny"), "model.safetensors"))


@pytest.mark.vllm
def test_vllm_refuses_every_route_without_the_secret(vllm_server):
    status, found = post(vllm_server, "/openapi.json")
    assert status == 200
    tried = {path: methods for path, methods in found["paths"].items() if path not in ("/health", "/ping")}
    assert {"/update_weights", "/collective_rpc", "/inference/v1/generate", "/v1/models", "/metrics"} <= tried.keys()
    for path, methods in tried.items():
        body = {} if "post" in methods else None
        assert post(vllm_server, path, body, secret="wrong")[0] == 401, path
    assert post(vllm_server, "/v1/models")[1]["data"][0]["id"] == "policy"
    assert post(vllm_server, "/health", secret="wrong")[0] == 200


@pytest.mark.vllm
def test_vllm_takes_weights_from_several_files(vllm_server, weights):
    before, names = checksums(vllm_server), sorted(weights)
    halves = [{name: weights[name] * 1.5 for name in names[i::2]} for i in range(2)]
    assert load(vllm_server, *halves) == ""
    changed = checksums(vllm_server)
    assert changed != before
    assert load(vllm_server, weights) == ""
    assert checksums(vllm_server) == before


@pytest.mark.vllm
@pytest.mark.parametrize(
    ("left_out", "named"),
    [
        ("lm_head.weight", "language_model.lm_head.weight"),
        # one part of what vLLM keeps as one tensor
        (
            "model.language_model.layers.1.self_attn.v_proj.weight",
            "language_model.model.layers.1.self_attn.qkv_proj.weight",
        ),
        ("model.language_model.layers.0.mlp.up_proj.weight", "language_model.model.layers.0.mlp.gate_up_proj.weight"),
        ("model.visual.patch_embed.proj.bias", "visual.patch_embed.proj.bias"),
        ("model.language_model.norm.weight", "language_model.model.norm.weight"),
    ],
)
def test_vllm_names_a_parameter_that_did_not_come(vllm_server, weights, left_out, named):
    """Afterwards it has whole layers, and the next update is a fresh one."""
    before = checksums(vllm_server)
    assert load(
        vllm_server, weights.keys() - {left_out} and {n: weights[n] for n in weights if n != left_out}
    ).endswith(f"weights are missing for: {named}")
    assert checksums(vllm_server) == before
    assert load(vllm_server, weights) == ""
    assert checksums(vllm_server) == before


@pytest.mark.vllm
def test_vllm_refuses_other_files(vllm_server, weights, tmp_path):
    before = checksums(vllm_server)
    assert "does not lie under VLM_R1_WEIGHTS_DIR" in load(vllm_server, weights, folder=tmp_path)
    (vllm_server.weights_dir / "link.safetensors").symlink_to(tmp_path / "part-0.safetensors")
    assert "does not lie under" in load_files(vllm_server, [f"{vllm_server.weights_dir}/link.safetensors"])
    assert "does not lie under" in load_files(vllm_server, [f"{vllm_server.weights_dir}/../x.safetensors"])
    torch.save(weights, vllm_server.weights_dir / "pickled.bin")
    assert "is not a .safetensors file" in load_files(vllm_server, [f"{vllm_server.weights_dir}/pickled.bin"])
    head = {"lm_head.weight": weights["lm_head.weight"]}
    assert "lm_head.weight is in more than one file" in load(vllm_server, weights, head)
    assert "no module or parameter named" in load(vllm_server, weights | {"model.visual.nonsense": torch.ones(2)})
    assert load(vllm_server, weights | {"lm_head.weight": weights["lm_head.weight"][:-1]})
    assert checksums(vllm_server) == before
    assert load(vllm_server, weights) == ""


@pytest.mark.vllm
def test_vllm_does_not_miss_a_tied_head(vllm_python, weights, tmp_path):
    folder = tmp_path / "tied"
    shutil.copytree(resolve_path("tiny"), folder)
    config = json.loads((folder / "config.json").read_text())
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = True
    (folder / "config.json").write_text(json.dumps(config))
    tied = {name: tensor for name, tensor in weights.items() if name != "lm_head.weight"}
    save_file(tied, folder / "model.safetensors", {"format": "pt"})
    launch = Launch(
        model=str(folder), dtype="float32", port=free_port(), max_model_len=256, secret="s", weights_dir=str(tmp_path)
    )
    process = ServerProcess(launch, vllm_python, tmp_path / "log")
    process.start()
    try:
        process.wait_ready()
        server = SharedServer(process.url, "s", tmp_path, process)
        before = checksums(server)
        assert load(server, {name: tensor * 2 for name, tensor in tied.items()}) == ""
        assert checksums(server) != before
        assert load(server, tied) == ""
        assert checksums(server) == before
        embedding = "model.language_model.embed_tokens.weight"
        without = {name: tensor for name, tensor in tied.items() if name != embedding}
        assert "language_model.model.embed_tokens.weight" in load(server, without)
    finally:
        process.kill()


@pytest.mark.vllm
def test_vllm_samples_the_same_again_with_the_same_seed(vllm_server):
    loaded = load_policy(ModelConfig(path="tiny"), PLAIN)
    bodies = [
        body_of(loaded, prompt, SamplingParams(max_new_tokens=24, temperature=1.5, seed=(3,)), 8, stops_of(loaded))
        for prompt in mixed_prompts(loaded)
    ]

    def sampled(body: dict, seed: int) -> list[list[int]]:
        settings = body["sampling_params"] | {"seed": seed}
        status, said = post(vllm_server, "/inference/v1/generate", body | {"model": MODEL, "sampling_params": settings})
        assert status == 200, said
        return [choice["token_ids"] for choice in said["choices"]]

    for body in bodies:
        first = sampled(body, 11)
        assert len(set(map(tuple, first))) > 1
        assert sampled(body, 11) == first
        assert sampled(body, 12)[:7] == first[1:]  # completion i has the seed and i


@pytest.mark.vllm
def test_vllm_does_not_outlive_a_killed_parent(vllm_python, tmp_path):
    launch = Launch(model=resolve_path("tiny"), dtype="float32", port=free_port(), max_model_len=256)
    parent = parent_of(launch, vllm_python, tmp_path / "log")
    started = below(parent.pid)
    assert len(started) >= 3  # guard, API and engine
    parent.kill()
    parent.wait()
    assert gone(started)
