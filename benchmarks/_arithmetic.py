"""The arithmetic of a step by counting: how much a shared prefix can save at most, whatever the implementation.

Multiplications and additions of matrix products and attention, forward: 2 per weight and token, and 4 per attended pair
and channel. A backward pass costs twice its forward pass. Norms, activations and the optimiser are left out.
The last token of an answer predicts nothing and is not run (TRL's update runs it).
"""

from __future__ import annotations

from typing import Any

from _setting import MERGE, MODELS, PATCH, VOCABULARY, Setting


def forward_flops(setting: Setting, prompt_tokens: int) -> dict[str, float]:
    """FLOPs of one forward pass: `tower` and `prompt` of one prompt, `answer` of one answer behind it, its `head`."""
    values = MODELS[setting.model]
    vision, text = values["vision_config"], values["text_config"]
    width, depth = vision["hidden_size"], vision["depth"]
    patches = setting.image_tokens * MERGE**2
    window = (vision["window_size"] // PATCH) ** 2
    layer_weights = 4 * width**2 + 3 * width * vision["intermediate_size"]
    merged = width * MERGE**2
    full = len([b for b in vision["fullatt_block_indexes"] if b < depth])
    pairs = full * patches**2 + (depth - full) * patches * min(window, patches)
    tower = 2 * patches * (3 * 2 * PATCH**2 * width + depth * layer_weights) + 4 * pairs * width
    tower += 2 * setting.image_tokens * (merged**2 + merged * vision["out_hidden_size"])
    D, heads = text["hidden_size"], text["num_attention_heads"]
    kv = D // heads * text["num_key_value_heads"]
    per_token = 2 * (2 * D * D + 2 * D * kv + 3 * D * text["intermediate_size"])
    layers, L, T = text["num_hidden_layers"], prompt_tokens, setting.answer_tokens - 1
    return {
        "tower": tower,
        "prompt": layers * (per_token * L + 4 * D * L * L / 2),
        "answer": layers * (per_token * T + 4 * D * (T * L + T * T / 2)),
        "head": 2.0 * setting.answer_tokens * D * VOCABULARY[setting.model],
    }


def limits(setting: Setting, prompt_tokens: int) -> dict[str, Any]:
    """What each way of working computes in the update's forward pass and in a step, and the ratios.

    Padded: tower and prompt once per answer, in the rollout and again, with backward, in the update. Shared: once per
    prompt in each. Answers cost the same in both.
    """
    flops, phases = forward_flops(setting, prompt_tokens), phase_flops(setting, prompt_tokens)
    P, B = setting.prompts, setting.prompts * setting.group
    prompt, answer = flops["tower"] + flops["prompt"], flops["answer"] + flops["head"]
    forward = {"padded": B * (prompt + answer), "shared": P * prompt + B * answer}
    step = {way: phases[f"rollout_{way}"] + phases[f"update_{way}"] for way in forward}
    return {
        "forward_gflop_padded": forward["padded"] / 1e9,
        "forward_gflop_shared": forward["shared"] / 1e9,
        "forward_limit": forward["padded"] / forward["shared"],
        "step_gflop_padded": step["padded"] / 1e9,
        "step_gflop_shared": step["shared"] / 1e9,
        "step_limit": step["padded"] / step["shared"],
        "share_of_tower_padded": B * flops["tower"] / forward["padded"],
    }


TEXT_TOKENS = 30
"""Prompt tokens beside those of the image that are counted for models of real size: a short question."""


def predicted() -> list[dict[str, Any]]:
    """What a shared prefix can save in a step of models of real size, G = 8: by counting alone, for any machine."""
    rows = []
    for model in ("3b", "7b"):
        for image_tokens in (1280, 400):
            for answer_tokens in (256, 1024):
                size = {"model": model, "image_tokens": image_tokens, "answer_tokens": answer_tokens}
                setting = Setting(folder="", group=8, **size)
                rows.append(size | {"step_limit": limits(setting, image_tokens + TEXT_TOKENS)["step_limit"]})
    return rows


def phase_flops(setting: Setting, prompt_tokens: int) -> dict[str, float]:
    """FLOPs of `rollout` and `update` in a step, `_padded` (tower and prompt for every answer) and `_shared` (once).

    The update is forward and backward without what checkpointing computes again. A backward pass is two forward passes,
    or one where the weights are frozen beside an adapter. A frozen tower has none; padded, its forward pass runs in the
    update again, shared, its features are kept from the rollout.
    """
    flops = forward_flops(setting, prompt_tokens)
    P, B = setting.prompts, setting.prompts * setting.group
    tower, prompt, answer = flops["tower"], flops["prompt"], flops["answer"] + flops["head"]
    passes = {"full": 3, "lora": 2}
    text = passes[setting.language]
    again, kept = (1, 0) if setting.vision == "frozen" else (passes[setting.vision],) * 2
    return {
        "rollout_padded": B * (tower + prompt + answer),
        "rollout_shared": P * (tower + prompt) + B * answer,
        "update_padded": B * (again * tower + text * (prompt + answer)),
        "update_shared": P * (kept * tower + text * prompt) + B * text * answer,
    }
