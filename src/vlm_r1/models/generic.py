"""Models of a `model_type` without a family of its own: what they must have, and a check that packed rows are exact.

`Family` reads all it needs from the model and its processor where they follow transformers' conventions. For a model
that nobody looked at, `family_class` asks for each of them, and `check_forward` compares a packed row with the model's
own forward.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, ProcessorMixin

from vlm_r1.errors import ModelError, nearest
from vlm_r1.models import shared_prefix
from vlm_r1.models.families import FAMILIES
from vlm_r1.models.family import Family
from vlm_r1.models.layout import Layout, Rule
from vlm_r1.models.logprobs import masked_logprobs
from vlm_r1.models.packing import make_prefix_group, pack
from vlm_r1.models.policy import Policy
from vlm_r1.prompts.templates import chat_messages
from vlm_r1.records import Prompt, Sample, SampleImage, Truth

SIZES = ((64, 48), (40, 150))
"""Images of the check, width and height: one prompt each, of different shapes, so that their tensors differ too."""
ANSWERS = ("[12, 40, 310, 402]", "No.")


def check_kind(config: Any, path: str, *, trust_remote_code: bool) -> None:
    """Raise `ModelError` for a configuration that is of no family here and of no image model of transformers."""
    kind = config.model_type
    if kind not in FAMILIES and not trust_remote_code and type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        raise ModelError(f'model.path: family "{kind}" of "{path}" is not supported; {nearest(kind, FAMILIES)}')


def family_class(model: Any, processor: Any) -> type[Family]:
    """The family of a model: its own, or the generic one.

    Raises `ModelError` naming the first of transformers' conventions that a model without one does not follow.
    """
    if model.config.model_type in FAMILIES:
        return FAMILIES[model.config.model_type]
    if (missing := next(_missing(model, processor), None)) is not None:
        raise refusal(model, missing)
    return Family


def refusal(model: Any, missing: str) -> ModelError:
    """The message for a model that cannot be trained as it is."""
    kind = model.config.model_type
    return ModelError(
        f'model.path: "{kind}" has no family of its own, and the generic one cannot run it: {missing}; '
        "vlm-r1 docs add-a-model shows how to add a family"
    )


def _missing(model: Any, processor: Any) -> Iterator[str]:
    config = model.config
    core: Any = getattr(model, "model", None)
    if getattr(config, "is_encoder_decoder", False):
        yield "its language model is an encoder and a decoder"
    if not hasattr(core, "get_image_features"):
        yield "`model.model` has no `get_image_features`"
        return
    if "mm_encoder_outputs" not in inspect.signature(core.forward).parameters:
        yield "its forward takes no `mm_encoder_outputs`"
    for name in ("image_token_id", "text_config"):
        if getattr(config, name, None) is None:
            yield f"its configuration has no `{name}`"
    if core.get_encoder(modality="image") is core or core.get_decoder() is core:
        yield "`get_encoder` and `get_decoder` find no vision tower or no language model in it"
    if model.get_output_embeddings() is None:
        yield "it has no output embeddings"
    for name in ("tokenizer", "image_processor", "image_token", "chat_template"):
        if getattr(processor, name, None) is None:
            yield f"its processor has no `{name}`"
    if getattr(type(processor), "replace_image_token", None) in (None, ProcessorMixin.replace_image_token):
        yield "its processor has no `replace_image_token`"
    kinds = set(getattr(config.get_text_config(), "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if kinds:
        yield f"its language model has layers of the kind {', '.join(sorted(kinds))}"


def check_forward(policy: Policy, family: Family) -> None:
    """Compare a packed row of two small images and two answers each with the model's own forward.

    Prints what is assumed and how large the difference is. Raises `ModelError` where it is more than rounding.
    """
    model = policy.model
    policy.suppressed = policy.suppressed.to(model.device)  # quantised weights are on their device from the start
    try:
        prompts = [family.encode(_sample(*size)) for size in SIZES]
        answers = [family.tokenizer(text, add_special_tokens=False)["input_ids"] for text in ANSWERS]
        ours = _packed(policy, prompts, answers)
        theirs = _plain(policy, family, prompts, answers)
    except ModelError as error:
        raise refusal(model, str(error)) from None
    except Exception as error:  # whatever goes wrong in a model that nobody looked at
        reason = (str(error).strip().splitlines() or [""])[0].rstrip(".")
        raise refusal(model, f"its check ended with {type(error).__name__}: {reason}") from error
    difference = float((ours - theirs).norm() / theirs.norm())
    if not difference <= torch.finfo(model.dtype).eps ** 0.5:
        raise refusal(
            model,
            f"log-probs of a packed row differ from those of its own forward by {difference:.2g} of their size "
            "(other positions, attention that is not causal, or logits that are not the head's output)",
        )
    print(
        f'model.path: "{model.config.model_type}" has no family of its own. Assumed: boxes are 0-1000 of the image '
        "(prompt.coordinates says otherwise), every token sees what is before it and nothing else, each image is "
        "processed by itself. A packed row was compared with the model's own forward: log-probs differ by "
        f"{difference:.1g} of their size.",
        file=sys.stderr,
        flush=True,
    )


def _sample(width: int, height: int) -> Sample:
    rng = np.random.default_rng(width)
    noise = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    return Sample(id="check", question="Where is the red circle?", images=(SampleImage(image=noise),), truth=Truth())


class _Watch:
    """A layout that notes what each layer's attention was told."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.rules: dict[int, Rule] = {}

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
        self.rules[layer] = rule
        return shared_prefix.attend_packed(self.layout, query, key, value, rule)


@torch.no_grad()
def _packed(policy: Policy, prompts: list[Prompt], answers: list[list[int]]) -> Tensor:
    """Log-probs `(S,)` of the answers' tokens in one packed row."""
    row = pack([make_prefix_group([prompt] * len(answers), answers) for prompt in prompts]).to(policy.suppressed.device)
    watch = _Watch(row.layout)
    logprobs, _ = policy(replace(row, layout=watch))  # type: ignore[arg-type]
    text = policy.model.config.get_text_config()
    if unreached := [layer for layer in range(text.num_hidden_layers) if layer not in watch.rules]:
        raise ModelError(f"the attention of layers {unreached} does not go through transformers' interface")
    kinds = getattr(text, "layer_types", None) or ()
    for layer, kind in enumerate(kinds):
        if kind == "sliding_attention" and watch.rules[layer].window is None:
            raise ModelError(f"the attention of layer {layer} is sliding and is not told its window")
    return logprobs.float()


@torch.no_grad()
def _plain(policy: Policy, family: Family, prompts: list[Prompt], answers: list[list[int]]) -> Tensor:
    """The same log-probs by the model's own forward: its own attention, the processor's inputs, one answer a row."""
    model, device = policy.model, policy.suppressed.device
    capped = getattr(model.config.get_text_config(), "attn_logit_softcapping", None)  # which SDPA leaves out
    ours = model.config.get_text_config()._attn_implementation
    own = "sdpa" if model.model.get_decoder()._supports_sdpa and not capped else "eager"
    model.set_attn_implementation({"text_config": own})
    parts = []
    for prompt in prompts:
        sample = prompt.sample
        messages = chat_messages(sample, family.settings.template)
        text = family.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        images = [[image.open() for image in sample.images]]
        inputs = family.processor(text=[text], images=images, return_tensors="pt", add_special_tokens=False).to(device)
        if tuple(inputs["input_ids"][0].tolist()) != prompt.token_ids:
            raise ModelError("its processor makes other tokens of a prompt than its parts do")
        for ids in answers:
            answer = torch.tensor([ids], device=device)
            per_token = {n: v for n, v in inputs.items() if v.shape == inputs["input_ids"].shape and n != "input_ids"}
            row = dict(inputs) | {"input_ids": torch.cat([inputs["input_ids"], answer], 1)}
            for name, value in per_token.items():  # masks are 1 over an answer, kinds of tokens 0 (text)
                fill = torch.full_like(answer, int(name == "attention_mask"))
                row[name] = torch.cat([value, fill.to(value.dtype)], 1)
            logits = model(**row, use_cache=False).logits[0, -len(ids) - 1 : -1]
            parts.append(masked_logprobs(logits, policy.suppressed, 1.0).gather(-1, answer[0][:, None])[:, 0])
    model.set_attn_implementation({"text_config": ours})
    return torch.cat(parts)
