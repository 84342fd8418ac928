"""flash-preference's forward and backward pass, in a process of its own. Usage: _flash_pref.py JOB.json RESULT.json

Its own ground (its `tests/benchmark.py`): Qwen2.5-VL with random weights in `precision`, FlashAttention-2 where it is
installed, gradient checkpointing, `loss.backward()` on G completions of every prompt in one padded batch. `shared` says
whether its context manager is on. flash-pref 0.1.1 needs transformers 4.49 to 4.51, so nothing of the package (which
needs a newer one) is imported here, and the configuration is written as those versions read it.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from _measure import machine, now, peak_memory, versions
from _setting import MERGE, MODELS, PATCH, VOCABULARY, Setting, read_job
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

QUESTION_TOKENS = 26
"""Prompt tokens beside the image's, as many as the other benchmarks' prompts have."""


def load_shared_prefix() -> Any:
    """Its context manager, without its `__init__`, which imports an old TRL for trainers that are not used here."""
    spec = importlib.util.find_spec("flash_pref")
    if spec is None or spec.submodule_search_locations is None:
        raise SystemExit("flash-pref is not installed")
    file = Path(spec.submodule_search_locations[0], "shared_prefix.py")
    found = importlib.util.spec_from_file_location("flash_pref_shared_prefix", file)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module.shared_prefix


def build(setting: Setting, device: torch.device) -> Any:
    """The model with random weights."""
    values = MODELS[setting.model]
    text, vision = dict(values["text_config"]), values["vision_config"]
    rope = text.pop("rope_parameters")
    config = Qwen2_5_VLConfig(
        **text,
        vocab_size=VOCABULARY[setting.model],
        rope_theta=rope["rope_theta"],
        rope_scaling={"type": "mrope", "mrope_section": rope["mrope_section"]},
        tie_word_embeddings=values.get("tie_word_embeddings", False),
        vision_config=vision,
        image_token_id=VOCABULARY[setting.model] - 1,
        video_token_id=VOCABULARY[setting.model] - 2,
        vision_start_token_id=VOCABULARY[setting.model] - 3,
        vision_end_token_id=VOCABULARY[setting.model] - 4,
        use_cache=False,
    )
    fast = device.type == "cuda" and importlib.util.find_spec("flash_attn") is not None
    config._attn_implementation = "flash_attention_2" if fast else "sdpa"
    torch.manual_seed(setting.seed)
    torch.set_default_dtype(getattr(torch, setting.precision))
    with device:
        model = Qwen2_5_VLForConditionalGeneration(config)
    torch.set_default_dtype(torch.float32)
    model.gradient_checkpointing_enable()
    return model.train()


def inputs_of(setting: Setting, model: Any, device: torch.device) -> dict[str, torch.Tensor]:
    """G completions of every prompt, each with its prompt and image; the labels are the completions."""
    config, G = model.config, setting.group
    generator = torch.Generator().manual_seed(setting.seed)
    width, height = setting.size
    words = torch.randint(8, config.vocab_size - 8, (setting.prompts, QUESTION_TOKENS - 2), generator=generator)
    start, end = (
        torch.full((setting.prompts, 1), t) for t in (config.vision_start_token_id, config.vision_end_token_id)
    )
    image = torch.full((setting.prompts, setting.image_tokens), config.image_token_id)
    prompt = torch.cat([start, image, end, words], 1).repeat_interleave(G, 0)
    answers = torch.randint(8, config.vocab_size - 8, (len(prompt), setting.answer_tokens), generator=generator)
    ids = torch.cat([prompt, answers], 1)
    patches = torch.randn(setting.prompts, setting.image_tokens * MERGE**2, 3 * 2 * PATCH**2, generator=generator)
    found = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": torch.cat([torch.full_like(prompt, -100), answers], 1),
        "pixel_values": patches.repeat_interleave(G, 0).flatten(0, 1).to(getattr(torch, setting.precision)),
        "image_grid_thw": torch.tensor([[1, height // PATCH, width // PATCH]]).repeat(len(ids), 1),
    }
    return {name: value.to(device) for name, value in found.items()}


def measure(setting: Setting, shared: bool) -> dict[str, Any]:
    """Seconds of every forward and backward pass after the warm-up ones."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shared_prefix = load_shared_prefix() if shared else None
    model = build(setting, device)
    inputs = inputs_of(setting, model, device)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    steps = []
    for repetition in range(setting.warmup + setting.repetitions):
        started = now()
        with (
            shared_prefix(model, input_ids=ids, attention_mask=mask, group_size=setting.group)
            if shared
            else nullcontext()
        ):
            model(**inputs).loss.backward()
        seconds = now() - started
        model.zero_grad()
        if repetition >= setting.warmup:
            steps.append({"update_s": seconds, "answer_tokens": int((inputs["labels"] >= 0).sum())})
    return {
        "steps": steps,
        "prompt_tokens": setting.image_tokens + QUESTION_TOKENS,
        "attention": model.config._attn_implementation,
        "versions": versions(),
        "machine": machine(),
        **peak_memory(),
    }


if __name__ == "__main__":
    given, rest = read_job(sys.argv[1])
    Path(sys.argv[2]).write_text(json.dumps(measure(given, rest["shared"])), encoding="utf-8")
