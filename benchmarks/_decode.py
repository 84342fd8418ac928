"""Decoding alone: seconds of a batch of answers, in a process of its own. Usage: _decode.py JOB.json RESULT.json

`side` native is the package's engine, transformers its `generate` on the same prompts with every prompt repeated for
each of its answers. Both sample every answer to its full length (the end-of-text token is suppressed) from the same
weights in `precision`; the prompts' own pass is part of the time. `options` go to `generate`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _measure import machine, now, peak_memory, versions
from _prompts import prompts_of
from _setting import Setting, prepare, read_job
from transformers import AutoModelForImageTextToText

from vlm_r1.config import ModelConfig, PromptConfig, RolloutConfig
from vlm_r1.models.load import LoadedPolicy, load_policy
from vlm_r1.models.policy import merge_images
from vlm_r1.records import Prompt, SamplingParams
from vlm_r1.rollout.engine import awake
from vlm_r1.rollout.native import NativeEngine, eos_token_ids


def open_model(setting: Setting) -> tuple[LoadedPolicy, list[Prompt]]:
    """The policy, its end-of-text tokens suppressed, and the prompts of one step."""
    config = ModelConfig(path=str(setting.model_path), precision=setting.precision)
    loaded = load_policy(config, PromptConfig(template="plain"))
    policy = loaded.policy.to("cuda" if torch.cuda.is_available() else "cpu")
    ends = torch.tensor(eos_token_ids(policy, loaded.tokenizer), device=policy.suppressed.device)
    policy.suppressed = torch.cat([policy.suppressed, ends])
    return loaded, prompts_of(setting, loaded)


def native(setting: Setting, loaded: LoadedPolicy, prompts: list[Prompt], options: dict[str, Any]) -> Callable[[], int]:
    """One call of the package's engine; it returns the tokens that were sampled."""
    engine = NativeEngine(loaded, RolloutConfig())
    sampling = SamplingParams(seed=(setting.seed,), max_new_tokens=setting.answer_tokens, stop_at_answer=False)

    def run() -> int:
        with awake(engine):
            groups = list(engine.generate(prompts, sampling, n=setting.group))
        return sum(len(rollout.token_ids) for group in groups for rollout in group.rollouts)

    return run


def transformers(
    setting: Setting, loaded: LoadedPolicy, prompts: list[Prompt], options: dict[str, Any]
) -> Callable[[], int]:
    """The same by `generate`, on a model of its own whose patch embedding is a matrix product."""
    device, suppressed = loaded.policy.suppressed.device, loaded.policy.suppressed.tolist()
    repeated = [prompt for prompt in prompts for _ in range(setting.group)]
    ids = torch.tensor([prompt.token_ids for prompt in repeated], device=device)  # questions of one length: no padding
    tensors = merge_images([image for prompt in repeated for image in prompt.images])
    loaded.policy.to("meta")
    dtype = getattr(torch, setting.precision)
    model = AutoModelForImageTextToText.from_pretrained(
        setting.model_path, dtype=dtype, attn_implementation="sdpa", fusion_config={"patch_embeddings": True}
    )
    model = model.to(device).eval()
    inputs = {name: value.to(device, dtype if value.is_floating_point() else None) for name, value in tensors.items()}
    inputs |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    inputs["mm_token_type_ids"] = (ids == model.config.image_token_id).int()
    wanted = {"do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": 1.0, "suppress_tokens": suppressed}

    def run() -> int:
        with torch.inference_mode():
            out = model.generate(**inputs, **wanted, max_new_tokens=setting.answer_tokens, **options)
        return (out.shape[1] - ids.shape[1]) * len(out)

    return run


SIDES = {"native": native, "transformers": transformers}


def measure(setting: Setting, side: str, options: dict[str, Any]) -> dict[str, Any]:
    """Seconds and tokens of every repetition after the warm-up ones."""
    torch.set_flush_denormal(True)
    loaded, prompts = open_model(setting)
    run = SIDES[side](setting, loaded, prompts, options)
    steps = []
    for repetition in range(setting.warmup + setting.repetitions):
        started = now()
        tokens = run()
        seconds = now() - started
        if repetition >= setting.warmup:
            steps.append({"rollout_s": seconds, "answer_tokens": tokens})
    return {
        "steps": steps,
        "prompt_tokens": len(prompts[0].token_ids),
        "versions": versions(),
        "machine": machine(),
        "settings": options,
        **peak_memory(),
    }


if __name__ == "__main__":
    given, rest = read_job(sys.argv[1])
    prepare(given)
    result = measure(given, rest["side"], rest.get("options", {}))
    Path(sys.argv[2]).write_text(json.dumps(result), encoding="utf-8")
