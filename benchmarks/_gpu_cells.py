"""The cells of `gpu.py`: what each stage measures, in the order in which it is measured."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from _setting import Setting

STAGES = ("ours", "trl", "flash-pref", "decode")
MODELS = {"3b": "full", "7b": "lora"}
"""Model -> how its language part is trained; the headline comes first, also in the sizes below."""
IMAGE_TOKENS, ANSWER_TOKENS = (1280, 400), (256, 1024)
BATCHES = (16, 64, 256)
MICRO_BATCH = {False: 4, True: 16}
"""TRL's answers in a forward pass without and with checkpointing: without, 3B keeps some 5 MB a token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One process: `script` with a setting and a job. `needs` names the packages without which it cannot run."""

    stage: str
    name: str
    script: str
    setting: Setting
    job: dict[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()


def cells_of(stage: str, folder: str, *, tiny: bool, prompts: int = 8, repetitions: int = 3) -> Iterator[Cell]:
    """The cells of a stage. `folder` holds models and images; `prompts` are those of a step of `ours` and `trl`."""
    if tiny:
        base = Setting(
            folder=folder, prompts=2, group=2, image_tokens=20, answer_tokens=8, warmup=1, repetitions=1, threads=1
        )
    else:
        base = Setting(folder=folder, precision="bfloat16", prompts=prompts, warmup=1, repetitions=repetitions)
    yield from {"ours": _ours, "trl": _trl, "flash-pref": _flash_pref, "decode": _decode}[stage](base, tiny)


def size_of(setting: Setting) -> str:
    """Model, image tokens, answer tokens, and how the tower is trained."""
    return f"{setting.model}/{setting.image_tokens}/{setting.answer_tokens}/{setting.vision}"


def _steps(base: Setting, tiny: bool) -> Iterator[tuple[Setting, bool]]:
    """The sizes of a whole step, without and with gradient checkpointing: what is fastest depends on the memory."""
    if tiny:
        yield base, False
        yield base.changed(vision="lora", language="lora"), True
        return
    for model, language in MODELS.items():
        for image_tokens in IMAGE_TOKENS:
            for answer_tokens in ANSWER_TOKENS:
                for vision in (language, "frozen"):
                    size = {"image_tokens": image_tokens, "answer_tokens": answer_tokens}
                    for checkpointing in (False, True):
                        yield base.changed(model=model, language=language, vision=vision, **size), checkpointing


def _name(stage: str, setting: Setting, checkpointing: bool) -> str:
    return f"{stage}/{size_of(setting)}/{'checkpointing' if checkpointing else 'plain'}"


def _ours(base: Setting, tiny: bool) -> Iterator[Cell]:
    for setting, checkpointing in _steps(base, tiny):
        job = {"options": {"gradient_checkpointing": checkpointing}}
        yield Cell(
            stage="ours", name=_name("ours", setting, checkpointing), script="_ours.py", setting=setting, job=job
        )


def _trl(base: Setting, tiny: bool) -> Iterator[Cell]:
    fast = importlib.util.find_spec("flash_attn") is not None and not tiny
    common = {
        "fused_patches": True,
        "attention": "flash_attention_2" if fast else "sdpa",
        "liger": importlib.util.find_spec("liger_kernel") is not None and not tiny,
    }
    for setting, checkpointing in list(_steps(base, tiny))[-1 if tiny else 0 :]:
        micro = min(MICRO_BATCH[checkpointing], setting.prompts * setting.group)
        options = common | {"gradient_checkpointing": checkpointing, "micro_batch": micro}
        name, needs = _name("trl", setting, checkpointing), ("trl", "datasets")
        yield Cell(stage="trl", name=name, script="_trl.py", setting=setting, job={"options": options}, needs=needs)
        if not tiny and importlib.util.find_spec("vllm") is not None:
            job = {"options": options | {"vllm": True}}
            yield Cell(stage="trl", name=f"{name}+vllm", script="_trl.py", setting=setting, job=job, needs=needs)


def _flash_pref(base: Setting, tiny: bool) -> Iterator[Cell]:
    """One prompt and its group, as in the package's own benchmark."""
    setting = base if tiny else base.changed(model="3b", prompts=1, image_tokens=1280, answer_tokens=256)
    stage, size = "flash-pref", size_of(setting)
    theirs = {"stage": stage, "script": "_flash_pref.py", "setting": setting}
    yield Cell(name=f"{stage}/{size}/shared", job={"shared": True}, needs=("flash_pref",), **theirs)
    yield Cell(name=f"{stage}/{size}/padded", job={"shared": False}, needs=("flash_pref",), **theirs)
    yield Cell(stage=stage, name=f"{stage}/{size}/ours", script="_packed.py", setting=setting)


def _decode(base: Setting, tiny: bool) -> Iterator[Cell]:
    jobs: dict[str, dict[str, Any]] = {"native": {"side": "native"}, "transformers": {"side": "transformers"}}
    if not tiny:
        jobs["transformers-static"] = {"side": "transformers", "options": {"cache_implementation": "static"}}
    for model in ("tiny",) if tiny else MODELS:
        for batch in (4,) if tiny else BATCHES:
            setting = base.changed(model=model, prompts=batch // base.group)
            setting = setting if tiny else setting.changed(image_tokens=400, answer_tokens=256)
            for side, job in jobs.items():
                name = f"decode/{model}/{setting.image_tokens}/{setting.answer_tokens}/batch-{batch}/{side}"
                yield Cell(stage="decode", name=name, script="_decode.py", setting=setting, job=job)
