"""What is asked of a vLLM server for one prompt, and how its answer is read: token ids in, ids and log-probs out."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Sequence
from typing import Any

from vlm_r1.envs.host import Talk
from vlm_r1.errors import EngineError
from vlm_r1.models.load import LoadedPolicy
from vlm_r1.records import Prompt, Rollout, SamplingParams
from vlm_r1.rollout.native import eos_token_ids
from vlm_r1.rollout.sampling import endings
from vlm_r1.rollout.vllm_client import Unfit

SUPPRESSED = -100.0
"""What vLLM adds to the logit of a suppressed token; it takes no infinity. exp(-100) is 4e-44."""
FINAL_ONLY = 2
"""vLLM's number for: all completions of a request in one answer."""


def stops_of(loaded: LoadedPolicy) -> list[int]:
    """The tokens that end a completion: those at which the native engine stops."""
    return sorted(eos_token_ids(loaded.policy, loaded.tokenizer))


def body_of(
    loaded: LoadedPolicy,
    prompt: Prompt,
    sampling: SamplingParams,
    n: int,
    stops: Sequence[int],
    talk: Talk | None = None,
    answer: int = 0,
) -> dict[str, Any]:
    """The request for `n` completions of a prompt; with `talk`, for the next part of the answer of this number. Images
    travel once, as the tower of this process sees them."""
    family, turns = loaded.family, talk.turns if talk else []
    images = []
    shown = [(prompt.sample.images, prompt.images), *((turn.call.images, turn.images) for turn in turns)]
    for image, vision in (pair for pairs in shown for pair in zip(*pairs, strict=False)):
        file = io.BytesIO()
        family.as_seen(image, vision).save(file, "PNG", compress_level=1)
        url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
        images.append({"type": "image_url", "url": url})
    greedy = sampling.seed is None
    params: dict[str, Any] = {
        "n": 1 if greedy else n,  # vLLM refuses to write the same completion twice
        "temperature": 0.0 if greedy else sampling.temperature,
        "max_tokens": sampling.max_new_tokens,
        "logprobs": 0,
        "output_kind": FINAL_ONLY,
        "ignore_eos": True,
        "stop_token_ids": list(stops),
        "skip_special_tokens": False,
        "logit_bias": {str(int(token)): SUPPRESSED for token in loaded.policy.suppressed},
    }
    if stops_at := endings(sampling):
        params |= {"stop": stops_at, "include_stop_str_in_output": True}
    if not greedy:
        params["seed"] = seed_of(sampling, prompt.number, *([answer, len(turns)] if turns else []))
    body: dict[str, Any] = {
        "token_ids": [*family.unexpanded(prompt.sample), *(talk.history(expanded=False) if talk else [])],
        "sampling_params": params,
        "return_token_ids": True,
    }
    if images:
        body["content_parts"] = images
    return body


def seed_of(sampling: SamplingParams, *numbers: int) -> int:
    """The seed of the first completion of a prompt (its number; later also the answer's, and how many calls it made);
    vLLM counts on from it. No rank and no server has a part in it."""
    name = repr((*(sampling.seed or ()), *numbers)).encode()
    return int.from_bytes(hashlib.sha256(name).digest()[:4], "big")


def rollouts_of(
    loaded: LoadedPolicy,
    prompt: Prompt,
    answer: dict[str, Any],
    n: int,
    version: int,
    label: str | None,
    *,
    greedy: bool,
    talk: Talk | None = None,
) -> tuple[Rollout, ...]:
    """The completions of an answer, in order; with `talk`, what it goes on from stands behind the prompt.

    Raises `Unfit` where they are not `n` finished ones by weights called `label`, `EngineError` where the server read
    the prompt differently.
    """
    expected = [*prompt.token_ids, *(talk.history(expanded=True) if talk else [])]
    if answer["prompt_token_ids"] != expected:
        raise EngineError(
            f"sample {prompt.sample.id}: the server reads {len(answer['prompt_token_ids'])} prompt tokens, the trainer "
            f"{len(expected)}, or others; they have different processors: does the server run the same model "
            "folder, with the recipe's model.min_pixels and model.max_pixels?"
        )
    choices = sorted(answer["choices"], key=lambda choice: choice["index"])
    if greedy:
        choices *= n
    if len(choices) != n or any(choice["finish_reason"] not in ("stop", "length") for choice in choices):
        ends = sorted({str(choice["finish_reason"]) for choice in choices})
        raise Unfit(f"it returned {len(choices)} of {n} completions ({', '.join(ends)})")
    for choice in choices:
        spans = choice["weight_versions"] or []
        written = {span["version"] for span in spans}
        if label is not None and (written != {label} or spans[-1]["end"] != len(choice["token_ids"])):
            raise Unfit(f"it answered with the weights {', '.join(sorted(written)) or 'of no name'} instead of {label}")
    tokens = [choice["token_ids"] for choice in choices]
    texts = loaded.tokenizer.batch_decode(tokens, skip_special_tokens=True)
    return tuple(
        Rollout(
            token_ids=tuple(choice["token_ids"]),
            logprobs=tuple(entry["logprob"] for entry in choice["logprobs"]["content"]),
            text=text,
            finish=choice["finish_reason"],
            version=version,
        )
        for choice, text in zip(choices, texts, strict=True)
    )
