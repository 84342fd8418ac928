"""Clocks and facts that the processes of a benchmark share."""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def now() -> float:
    """Seconds; on a GPU after everything queued so far has run."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class Clock:
    """Seconds spent inside wrapped functions, by name. A wrapped call inside another one is left out of the outer."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.calls: defaultdict[str, int] = defaultdict(int)
        self._inner: list[float] = []

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function with its time counted under `name`."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            started = now()
            self._inner.append(0.0)
            try:
                return function(*args, **kwargs)
            finally:
                spent = now() - started
                self.seconds[name] += spent - self._inner.pop()
                self.calls[name] += 1
                if self._inner:
                    self._inner[-1] += spent

        return timed

    def take(self) -> dict[str, float]:
        """The seconds since the last call, and start again."""
        taken = dict(self.seconds)
        self.seconds.clear()
        return taken


def peak_memory() -> dict[str, float]:
    """Most memory this process held, in MiB."""
    import torch

    peak = {"peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
    if torch.cuda.is_available():
        peak["peak_cuda_mib"] = torch.cuda.max_memory_allocated() / 2**20
    return peak


def moved(model: Any, before: dict[str, Any]) -> dict[str, float]:
    """Norm of the change of tower and language part since `before` (name -> tensor): 0 would mean not trained."""
    total = {"vision": 0.0, "text": 0.0}
    for name, parameter in model.named_parameters():
        if name not in before:
            continue
        part = "vision" if "visual" in name else "text"
        total[part] += float((_whole(parameter).float() - before[name].float()).square().sum())
    return {part: value**0.5 for part, value in total.items()}


def trained_dtype(model: Any) -> str:
    """The number format of the trained parameters."""
    return str(next(p.dtype for p in model.parameters() if p.requires_grad))


def snapshot(model: Any) -> dict[str, Any]:
    """A copy of all trained parameters on the CPU."""
    return {name: _whole(parameter).clone() for name, parameter in model.named_parameters() if parameter.requires_grad}


def _whole(parameter: Any) -> Any:
    """A parameter on the CPU, also where it is sharded."""
    value = parameter.detach()
    return (value.full_tensor() if hasattr(value, "full_tensor") else value).cpu()


_VERSIONS = ("vlm-r1", "torch", "transformers", "trl", "accelerate", "peft", "datasets", "numpy", "pillow")
_VERSIONS += ("liger-kernel", "flash-attn", "flash-pref", "vllm", "bitsandbytes")


def versions() -> dict[str, str]:
    """Versions of what decides the speed."""
    found = {"python": platform.python_version()}
    for name in _VERSIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """The machine as far as it matters for speed."""
    import torch

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        named = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = named[0].split(":", 1)[1].strip() if named else cpu
    facts = {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
    }
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


def commit(*paths: str) -> str:
    """The commit that is measured, with a mark where files (of these paths, if any are given) differ from it."""

    def git(*command: str) -> str:
        done = subprocess.run(["git", *command], capture_output=True, text=True, cwd=Path(__file__).parent, check=False)
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", *paths)
    found = git("describe", "--always", "--abbrev=12")
    return f"{found}-dirty" if found and changed else found or "unknown"


def run_process(
    script: str, job: Path, result: Path, timeout: float, packages: str | Path | None = None
) -> dict[str, Any]:
    """Run `benchmarks/SCRIPT JOB RESULT` alone in a process of its own and return what it wrote.

    A process that fails returns `{"error": its last line}`: settings that do not work are part of what was tried.
    `packages` is a folder whose packages come before the installed ones.
    """
    result.unlink(missing_ok=True)
    command = [sys.executable, str(Path(__file__).parent / script), str(job), str(result)]
    log = result.with_suffix(".log")
    environment = {
        **os.environ,
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "TRL_EXPERIMENTAL_SILENCE": "1",
    }
    if packages is not None:
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(packages), os.environ.get("PYTHONPATH")]))
    with log.open("w", encoding="utf-8") as out:
        try:
            subprocess.run(command, stdout=out, stderr=out, env=environment, timeout=timeout, check=False)
        except subprocess.TimeoutExpired:
            return {"error": f"not done after {timeout:.0f} s"}
    if not result.is_file():
        lines = [
            line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()
        ]
        folder = str(Path(__file__).resolve().parent.parent)
        return {"error": lines[-1].replace(folder, ".")[:300] if lines else "no output"}
    return json.loads(result.read_text(encoding="utf-8"))
