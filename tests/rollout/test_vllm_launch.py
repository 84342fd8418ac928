"""How a vLLM server is started: flags and environment, what a recipe needs, and which Python."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support import scratch

from vlm_r1.config import Recipe
from vlm_r1.errors import EngineError
from vlm_r1.models.load import load_without_weights
from vlm_r1.rollout import vllm_launch
from vlm_r1.rollout.vllm_launch import Launch, command, find_python, launch_of, shell_line

BASE = {"model": "models/mine", "dtype": "float32", "port": 8000, "max_model_len": 600}


def started(**settings) -> tuple[dict[str, str | None], dict[str, str], list[str]]:
    """Flags with their values, variables, and the arguments as they are."""
    argv, variables = command(Launch(**(BASE | settings)), "python")
    flags, rest = {}, argv[3:]
    while rest:
        name = rest.pop(0).removeprefix("--")
        flags[name] = rest.pop(0) if rest and not rest[0].startswith("--") else None
    return flags, variables, argv


def test_the_routes_and_log_probs_that_rollouts_need_are_there():
    flags, variables, argv = started(images=2)
    assert argv[:3] == ["python", "-m", "vllm.entrypoints.openai.api_server"]
    assert variables["VLLM_SERVER_DEV_MODE"] == "1"
    assert flags["logprobs-mode"] == "processed_logprobs"
    assert flags["generation-config"] == "vllm"
    assert flags["enable-scale-out"] is None
    assert json.loads(flags["weight-transfer-config"]) == {"backend": "vlm_r1_files"}
    assert json.loads(flags["limit-mm-per-prompt"]) == {"image": 2, "video": 0}
    assert not any("trust" in flag for flag in flags)
    module, worker = flags["worker-extension-cls"].split(".")
    text = Path(variables["PYTHONPATH"], f"{module}.py").read_text()
    assert f"class {worker}:" in text
    assert "vlm_r1 import" not in text.replace("imports nothing of vlm_r1", "")


def test_on_a_cpu_every_prompt_fits_one_batch():
    """A seeded request whose prompt is cut ends the engine there."""
    flags, variables, _ = started(max_model_len=9000, threads=2)
    assert "no-enable-chunked-prefill" in flags
    assert int(flags["max-num-batched-tokens"]) >= 9000
    assert "enforce-eager" in flags
    assert "enable-sleep-mode" not in flags
    assert variables["OMP_NUM_THREADS"] == "2"
    assert variables["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    assert "CUDA_VISIBLE_DEVICES" not in variables


def test_on_gpus_it_sees_only_its_own_and_can_sleep():
    flags, variables, _ = started(
        dtype="bfloat16", gpus=("2", "3"), tensor_parallel=2, gpu_memory=0.4, sleeps=True, kv_cache_gb=1.5
    )
    assert variables["CUDA_VISIBLE_DEVICES"] == "2,3"
    assert flags["tensor-parallel-size"] == "2"
    assert flags["gpu-memory-utilization"] == "0.4"
    assert flags["kv-cache-memory-bytes"] == str(3 * 2**29)
    assert "enable-sleep-mode" in flags
    assert not {"enforce-eager", "no-enable-chunked-prefill", "distributed-executor-backend"} & flags.keys()
    assert "enable-sleep-mode" not in started(gpus=("0",))[0]


def test_the_secret_is_in_the_environment_alone():
    launch = Launch(**BASE, secret="hush-hush")
    argv, variables = command(launch, "python")
    assert variables["VLM_R1_SECRET"] == variables["VLLM_API_KEY"] == "hush-hush"
    assert "vlm_r1_secret.RequireSecret" in argv
    for text in (str(argv), repr(launch), shell_line(argv, variables)):
        assert "hush-hush" not in text
    flags, variables, _ = started()
    assert "middleware" not in flags
    assert not {"VLM_R1_SECRET", "VLLM_API_KEY"} & variables.keys()


def test_a_printed_line_does_in_a_shell_what_the_process_does(tmp_path):
    program = "import json, os, sys; print(json.dumps([sys.argv[1:], dict(os.environ)]))"
    argv, variables = command(Launch(**(BASE | {"model": "a model's folder"}), secret="s3"), sys.executable)
    argv[1:3] = ["-c", program]
    line = shell_line(argv, variables)
    done = subprocess.run(["sh", "-c", line], env={"VLM_R1_SECRET": "s3"}, capture_output=True, check=True, text=True)
    arguments, environment = json.loads(done.stdout)
    assert arguments == argv[3:]
    assert variables.items() <= environment.items()


@pytest.mark.parametrize(("rank", "size"), [(1, "1"), (2, "8"), (16, "16"), (200, "256"), (512, "512")])
def test_adapters_are_held_in_a_size_that_vllm_has(rank, size):
    flags, variables, _ = started(lora_rank=rank, loras=3, tower_lora=rank > 16)
    assert flags["max-lora-rank"] == size
    assert flags["max-loras"] == "3"
    assert ("enable-tower-connector-lora" in flags) == (rank > 16)
    assert variables["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"
    with pytest.raises(EngineError, match=r"lora\.rank.*512, not 513"):
        started(lora_rank=513)


def test_the_address_of_this_machine_where_it_listens_on_all():
    assert [Launch(**BASE, host=host).url for host in ("127.0.0.1", "0.0.0.0", "::", "10.0.0.7")] == [
        "http://127.0.0.1:8000",
        "http://127.0.0.1:8000",
        "http://[::1]:8000",
        "http://10.0.0.7:8000",
    ]


def recipe(**sections) -> Recipe:
    data = {"train": [{"scenes": {"n": 40}}], "eval": {"held": {"scenes": {"split": "in_domain", "n": 3}}}}
    return Recipe.model_validate({"data": data, "rollout": {"engine": "vllm", "max_new_tokens": 32}} | sections)


def launched(made: Recipe, **settings) -> Launch:
    return launch_of(made, load_without_weights(made.model, made.prompt).family, port=8000, **settings)


def test_a_recipe_says_what_its_server_needs():
    made = recipe(
        model={"path": "tiny", "max_pixels": 4096},
        rl={"group_size": 300},
        run={"seed": 5},
        train={"language": "lora", "connector": "lora"},
        lora={"rank": 4},
    )
    launch = launched(made, secret="x", weights_dir="w")
    assert Path(launch.model, "model.safetensors").is_file()
    assert launch.dtype == "float32"
    assert launch.max_model_len == 4096 + 512  # room for any prompt, and eval.max_new_tokens
    assert launch.max_num_seqs == 300  # one request asks for a group
    assert launch.image_kwargs["size"]["longest_edge"] == 4096
    assert (launch.images, launch.seed, launch.gpu_memory) == (4, 5, made.rollout.server_memory)
    assert (launch.lora_rank, launch.tower_lora) == (4, True)
    assert launched(recipe(), gpus=("1",)).dtype == "bfloat16"
    assert launched(recipe(), max_model_len=77).max_model_len == 77
    assert launched(recipe()).lora_rank is None


def test_longer_prompts_and_completions_get_more_room(monkeypatch):
    family = load_without_weights(recipe().model).family
    longest = max(
        len(family.encode(s).token_ids) for s in vllm_launch._first_questions(recipe(model={"max_pixels": 9216}))
    )
    monkeypatch.setattr(vllm_launch, "MIN_PROMPT", 1)
    assert launched(recipe(eval={"max_new_tokens": 700})).max_model_len == 2 * longest + 700


def test_a_model_without_a_folder_is_refused():
    with pytest.raises(EngineError, match=r"model\.init: scratch"):
        launch_of(recipe(model={"init": "scratch", "scratch": scratch()}), None, port=1)


def test_the_python_is_the_one_named_this_one_or_that_of_the_environment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(vllm_launch, "__file__", str(tmp_path / "repo/src/vlm_r1/rollout/vllm_launch.py"))
    with pytest.raises(EngineError) as none:
        find_python(None)
    assert all(text in str(none.value) for text in ("make vllm-env", "pip install", str(tmp_path / "repo")))
    with pytest.raises(EngineError, match=r'rollout\.vllm_python: "nowhere/python" is not a program'):
        find_python("nowhere/python")
    program = tmp_path / "repo" / ".venv-vllm" / "bin" / "python"
    program.parent.mkdir(parents=True)
    program.touch(mode=0o755)
    assert find_python(None) == str(program)
    assert find_python("repo/.venv-vllm/bin/python") == str(program)
    monkeypatch.setattr(vllm_launch, "_installed", lambda name: name == "vllm-cpu")
    assert find_python(None) == sys.executable


@pytest.mark.vllm
def test_vllm_has_every_flag(vllm_python):
    """The server that tests share has those of a CPU; these are parsed alone."""
    gpu, _, argv = started(
        gpus=("0",), sleeps=True, kv_cache_gb=2, lora_rank=16, tower_lora=True, image_kwargs={"size": {"x": 1}}
    )
    assert {"enable-sleep-mode", "enable-tower-connector-lora"} <= gpu.keys()
    program = (
        "import sys\n"
        "try: from vllm.entrypoints.common.cli_args import make_arg_parser\n"  # since 0.33
        "except ImportError: from vllm.entrypoints.launchers.cli_args import make_arg_parser\n"
        "from vllm.utils.argparse_utils import FlexibleArgumentParser\n"
        "found = make_arg_parser(FlexibleArgumentParser()).parse_args(sys.argv[1:])\n"
        "print(found.mm_processor_kwargs, found.enable_sleep_mode, found.enable_tower_connector_lora)"
    )
    done = subprocess.run([vllm_python, "-c", program, *argv[3:]], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == ["{'images_kwargs': {'size': {'x': 1}}} True True"], done.stderr
