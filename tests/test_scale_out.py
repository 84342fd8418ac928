"""docs/scale-out.md: its templates are what Slurm and Kubernetes take, and their commands and the page's run here."""

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pages import ROOT, blocks, first_column, names, table, text
from support import untimed

from vlm_r1.config_file import load_config
from vlm_r1.runtime.runlog import read_metrics

PAGE = "scale-out.md"
CLUSTER = ROOT / "examples" / "cluster"
RECIPE = """
model: {path: tiny}
data:
  train:
    - scenes: {split: train, n: 64, questions: {attribute: 1.0}}
  eval:
    held_out: {scenes: {split: in_domain, n: 5}}
prompt: {template: plain}
rollout: {max_new_tokens: 8}
rewards: {parts: {repetition: 1.0, format: 1.0}}
rl: {group_size: 2, prompts_per_step: 4}
optim: {lr: 1e-4}
eval: {max_new_tokens: 4, resamples: 0}
run: {dir: runs/mine, steps: 2, save_every: 1, threads: 1}
"""


def objects(file: str) -> dict:
    """The one object of a Kubernetes template."""
    [found] = yaml.safe_load_all((CLUSTER / file).read_text(encoding="utf-8"))
    return found


def job_set() -> tuple[dict, dict, dict]:
    """The JobSet, its one job's specification, and that of its pods."""
    whole = objects("jobset.yaml")
    [jobs] = whole["spec"]["replicatedJobs"]
    job = jobs["template"]["spec"]
    return whole, job, job["template"]["spec"]


def environment(container: dict) -> dict[str, str]:
    """The variables of a container that have a value in the template."""
    return {entry["name"]: entry["value"] for entry in container["env"] if "value" in entry}


def options(script: str) -> dict[str, str]:
    """What follows each option of torchrun in a shell script."""
    assert "torchrun" in script and "-m vlm_r1" in script
    arguments = script.replace("\\\n", " ").partition("torchrun")[2].partition(" -m vlm_r1")[0]
    return dict(re.findall(r"--([\w-]+) (\"[^\"]*\"|\S+)", arguments))


def test_the_slurm_template_is_a_shell_script_for_one_torchrun_a_machine():
    file = CLUSTER / "slurm.sbatch"
    assert subprocess.run(["bash", "-n", str(file)], capture_output=True, text=True).stderr == ""
    script = file.read_text(encoding="utf-8")
    assert script.startswith("#!/bin/bash\n")
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)$", script, flags=re.MULTILINE))
    assert (asked["nodes"], asked["ntasks-per-node"], asked["gpus-per-node"]) == ("2", "1", "8")
    last_directive, first_command = script.rindex("#SBATCH"), script.index("\nset -euo")
    assert last_directive < first_command, "Slurm reads directives up to the first command"
    given = options(script)
    assert given["nnodes"] == '"$SLURM_NNODES"' and "SLURM_GPUS_ON_NODE" in given["nproc_per_node"]
    assert given["rdzv_backend"] == "c10d" and given["rdzv_endpoint"].startswith('"$first:')
    assert given["rdzv_id"] == '"$SLURM_JOB_ID"' and int(given["max-restarts"]) > 0
    assert "scontrol show hostnames" in script and 'vlm_r1 "$@"' in script


def check_pod(pod: dict, name: str) -> str:
    """The script of a pod that trains with all its GPUs, on a shared folder."""
    [container] = pod["containers"]
    assert container["name"] == name and container["command"] == ["bash", "-c"]
    [script] = container["args"]
    assert subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True).stderr == ""
    set_here = environment(container)
    assert int(set_here["GPUS"]) == container["resources"]["limits"]["nvidia.com/gpu"] == 8
    assert load_config(ROOT / set_here["RECIPE"])
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}.keys() == volumes.keys()
    assert "claimName" in volumes["data"]["persistentVolumeClaim"] and volumes["shm"]["emptyDir"]["medium"] == "Memory"
    [address] = [e["valueFrom"]["fieldRef"]["fieldPath"] for e in container["env"] if e["name"] == "POD_IP"]
    assert address == "status.podIP"
    given = options(script)
    assert given["nproc_per_node"] == '"$GPUS"' and given["rdzv_backend"] == "c10d" and given["rdzv_id"]
    assert given["local_addr"] == '"$POD_IP"' and int(given["max-restarts"]) > 0
    assert re.search(r'-m vlm_r1 train "\$RECIPE"\s*$', script)
    return script


def test_the_jobset_template_makes_indexed_pods_that_meet_at_the_first():
    whole, job, pod = job_set()
    assert (whole["apiVersion"], whole["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert job["parallelism"] == job["completions"] == 2
    assert (job["completionMode"], job["backoffLimit"], pod["restartPolicy"]) == ("Indexed", 0, "Never")
    assert whole["spec"]["failurePolicy"]["maxRestarts"] > 0
    given, set_here = options(check_pod(pod, "trainer")), environment(pod["containers"][0])
    assert int(set_here["NODES"]) == job["parallelism"] and given["nnodes"] == '"$NODES"'
    network, [jobs] = whole["spec"]["network"], whole["spec"]["replicatedJobs"]
    first = f"{whole['metadata']['name']}-{jobs['name']}-0-0.{network['subdomain']}"
    assert network["enableDNSHostnames"] and set_here["RENDEZVOUS"].rpartition(":")[0] == first
    assert given["rdzv_endpoint"] == '"$RENDEZVOUS"'
    assert given["rdzv_conf"] == '"is_host=$((JOB_COMPLETION_INDEX == 0))"'


def test_the_pytorchjob_template_takes_the_operators_variables():
    whole = objects("pytorchjob.yaml")
    assert (whole["apiVersion"], whole["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    replicas = whole["spec"]["pytorchReplicaSpecs"]
    assert {kind: spec["replicas"] for kind, spec in replicas.items()} == {"Master": 1, "Worker": 1}
    assert replicas["Master"]["template"] == replicas["Worker"]["template"]
    given = options(check_pod(replicas["Master"]["template"]["spec"], "pytorch"))
    assert given["nnodes"] == '"$WORLD_SIZE"' and given["rdzv_endpoint"] == '"$MASTER_ADDR:$MASTER_PORT"'
    assert given["rdzv_conf"] == '"is_host=$((RANK == 0))"'
    operators = {"MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE"}
    assert not operators & environment(replicas["Master"]["template"]["spec"]["containers"][0]).keys()


def test_templates_name_no_registry_and_the_page_links_them_all():
    for file in CLUSTER.iterdir():
        script = file.read_text(encoding="utf-8")
        assert re.findall(r"image: (.*)", script) in ([], ["vlm-r1:latest"])
        assert f"(../examples/cluster/{file.name})" in text(PAGE) and f"examples/cluster/{file.name}" in script
        assert "docs/scale-out.md" in script
    assert sorted(file.name for file in CLUSTER.iterdir()) == ["jobset.yaml", "pytorchjob.yaml", "slurm.sbatch"]


def test_recipes_of_the_page_exist_and_need_the_gpus_that_they_say():
    rows = table(PAGE, "recipe", "GPUs")
    shown = {path for row in rows for path in names(row[0])}
    paper = {f"recipes/paper/{file.name}" for file in (ROOT / "recipes" / "paper").glob("*.yaml")}
    assert shown == {path for path in paper if "sft" not in path}
    for row in rows:
        for path in names(row[0]):
            recipe, header = load_config(ROOT / path), (ROOT / path).read_text(encoding="utf-8").partition("\nm")[0]
            memory = re.search(r"with (\d+) GB", row[1])[1]
            assert f"--gpu-memory {memory}" in header and ("all weights" in row[0]) == (recipe.lora is None)


def test_messages_of_the_start_are_those_of_the_package():
    package = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "src/vlm_r1").rglob("*.py"))
    assert [message for message in first_column(PAGE, "message") if message not in package] == []


# -- the commands, run ------------------------------------------------------------------------------------------------


@pytest.fixture
def shared(tmp_path):
    """A shared folder with a recipe, and commands of this interpreter's environment."""
    (tmp_path / "my.yaml").write_text(RECIPE)
    commands = tmp_path / ".venv" / "bin"
    commands.mkdir(parents=True)
    (commands / "activate").write_text(f'PATH="{commands}:$PATH"\n')
    for name, module in (("torchrun", "torch.distributed.run"), ("vlm-r1", "vlm_r1")):
        (commands / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" -m {module} "$@"\n')
        (commands / name).chmod(0o755)
    return tmp_path


def call(folder: Path, script: str, **variables: str) -> subprocess.Popen:
    """A shell script in the shared folder; whatever rank this process may have is not passed on."""
    clean = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    path = f"{folder / '.venv' / 'bin'}:{clean['PATH']}"
    return subprocess.Popen(
        ["bash", "-c", script],
        cwd=folder,
        env=clean | {"PATH": path, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"} | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(*running: subprocess.Popen) -> str:
    """What they said, once all have ended well."""
    said = [process.communicate(timeout=240)[0] for process in running]
    assert [process.returncode for process in running] == [0] * len(running), "\n".join(said)[-5000:]
    return "\n".join(said)


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return str(probe.getsockname()[1])


def check_run(folder: Path, processes: int, steps: int = 2) -> None:
    run = folder / "runs" / "mine"
    assert [row["step"] for row in read_metrics(run)] == list(range(1, steps + 1))
    assert ("time/collectives_share" in read_metrics(run)[-1]) == (processes > 1)
    assert len(list((run / f"checkpoint-{steps}").glob("*.safetensors"))) == processes
    assert (run / "final" / "model.safetensors").is_file() and not (run / ".check").exists()


@pytest.mark.slow
def test_commands_for_one_machine_run_and_another_number_goes_on(shared):
    train, sft, evaluate = blocks(PAGE, "bash")[0].splitlines()
    again = next(b for b in blocks(PAGE, "bash") if b.rstrip().endswith("--processes 2")).strip()
    assert train.endswith("--processes 8") and again == train.replace("8", "2")
    small = again.replace("recipes/paper/rec.yaml", "my.yaml")
    finish(call(shared, small))
    check_run(shared, 2)
    finish(call(shared, f"{small.replace(' --processes 2', '')} run.steps=3"))
    check_run(shared, 1, steps=3)
    finish(call(shared, f"{small} run.steps=4"))
    check_run(shared, 2, steps=4)
    two = evaluate.replace("recipes/paper/rec.yaml", "my.yaml").replace("paper-rec", "mine").replace("8", "2")
    finish(call(shared, two))
    finish(call(shared, two.replace("--processes 2", "").replace("after.json", "one.json")))
    assert (shared / "after.json").read_text() == (shared / "one.json").read_text()
    small_sft = sft.replace("recipes/paper/rec_sft.yaml", "my.yaml method=sft run.dir=runs/sft").replace("8", "2")
    finish(call(shared, small_sft))
    assert len(read_metrics(shared / "runs" / "sft")) == 2


@pytest.mark.slow
def test_the_torchrun_commands_of_the_page_run(shared):
    one, several = (b.strip() for b in blocks(PAGE, "bash") if b.startswith("torchrun"))
    finish(call(shared, one.replace("8", "2").replace("recipes/paper/rec.yaml", "my.yaml")))
    check_run(shared, 2)
    ran = untimed(shared / "runs" / "mine")
    shutil.rmtree(shared / "runs")
    here = several.replace("first-machine:29500", f"localhost:{free_port()}").replace("node 8", "node 1")
    here = re.sub(r"recipes/\S+", "my.yaml run.shard_size=1", here)
    finish(call(shared, here), call(shared, here))
    check_run(shared, 2)
    for alone, together in zip(ran, untimed(shared / "runs" / "mine"), strict=True):
        assert together == pytest.approx(alone, rel=1e-4)


@pytest.mark.slow
def test_the_slurm_template_runs_with_stand_ins_for_slurm(shared):
    commands = shared / ".venv" / "bin"
    (commands / "scontrol").write_text('#!/bin/sh\necho localhost\necho "$3" >/dev/null\n')
    (commands / "srun").write_text('#!/bin/sh\nshift\n"$@" & first=$!\n"$@"\nwait $first\n')
    for name in ("scontrol", "srun"):
        (commands / name).chmod(0o755)
    slurm = {"SLURM_SUBMIT_DIR": str(shared), "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_NNODES": "2"}
    slurm |= {"SLURM_JOB_ID": "17", "SLURM_GPUS_ON_NODE": "1", "PORT": free_port()}
    finish(call(shared, f'bash "{CLUSTER / "slurm.sbatch"}" train my.yaml', **slurm))
    check_run(shared, 2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["jobset", "pytorchjob"])
def test_the_commands_of_the_pods_run(shared, kind):
    port = free_port()
    if kind == "jobset":
        [container] = job_set()[2]["containers"]
        pods = [{"JOB_COMPLETION_INDEX": str(i), "RENDEZVOUS": f"localhost:{port}"} for i in range(2)]
    else:
        replicas = objects("pytorchjob.yaml")["spec"]["pytorchReplicaSpecs"]
        [container] = replicas["Master"]["template"]["spec"]["containers"]
        operator = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "WORLD_SIZE": "2"}
        pods = [operator | {"RANK": str(i)} for i in range(2)]
    [script] = container["args"]
    variables = environment(container) | {"GPUS": "1", "RECIPE": "my.yaml", "POD_IP": "127.0.0.1"}
    variables["HF_HOME"] = str(shared / "huggingface")
    finish(*(call(shared, script, **variables | pod) for pod in pods))
    check_run(shared, 2)
