"""Tiny random checkpoints of every family, in the folder layout of the published ones; and their plain forward.

An entry builds its folder with the family's real configuration and processor classes and a small tokenizer. The plain
forward is transformers' own: one unpadded row an answer, the processor's own inputs, no code of packed rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from support import PLAIN, made_up, noise_image, sample
from transformers import AutoModelForImageTextToText

from vlm_r1.config import ModelConfig
from vlm_r1.models.load import LoadedPolicy, load_policy
from vlm_r1.prompts.templates import chat_messages
from vlm_r1.records import RolloutGroup


@dataclass(frozen=True)
class Entry:
    """One family: `build(folder)` writes a checkpoint of it; `attention` is what transformers can run it with."""

    build: Callable[[Path], None]
    attention: str = "sdpa"
    multi_image: bool = True
    without_image: bool = True


def zoo() -> dict[str, Entry]:
    """Name -> entry."""
    from zoo import gemma, generic, glm, idefics, internvl, llava, llava_next, qwen, qwen_more

    return {
        **gemma.ENTRIES,
        **generic.ENTRIES,
        **idefics.ENTRIES,
        **internvl.ENTRIES,
        **llava.ENTRIES,
        **llava_next.ENTRIES,
        **glm.ENTRIES,
        **qwen.ENTRIES,
        **qwen_more.ENTRIES,
    }


def built(name: str, parent: Path) -> Path:
    """A folder in `parent` with the checkpoint of an entry."""
    folder = parent / name
    folder.mkdir()
    zoo()[name].build(folder)
    return folder


def samples(entry: Entry):
    """Questions with one image, none and two where the family takes them; images differ in size and shape."""
    found = [sample("the red circle", noise_image(48, 32))]
    if entry.without_image:
        found.append(sample("how many?"))
    if entry.multi_image:
        found.append(sample("the largest blue square of both", noise_image(32, 64, 1), noise_image(90, 40, 2)))
    found.append(sample("the small triangle left of it", noise_image(120, 33, 3)))
    return found


def load(folder: Path, device: torch.device | str = "cpu", **model) -> LoadedPolicy:
    """The entry's checkpoint as a policy on a device, in float32 unless `model` says otherwise."""
    loaded = load_policy(ModelConfig(path=str(folder), **({"precision": "float32"} | model)), PLAIN)
    loaded.policy.to(device)
    return loaded


def groups(loaded: LoadedPolicy, entry: Entry) -> list[RolloutGroup]:
    """Made-up answers of different lengths to the samples."""
    lengths = [(1, 5, 3), (4, 1, 7), (2, 9, 6), (8, 3, 3)]
    prompts = [loaded.family.encode(s) for s in samples(entry)]
    return [made_up(loaded, p, n, i) for i, (p, n) in enumerate(zip(prompts, lengths, strict=False))]


def plain(folder: Path, entry: Entry, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32):
    """The checkpoint in an unmodified transformers model on a device."""
    model = AutoModelForImageTextToText.from_pretrained(folder, attn_implementation=entry.attention, dtype=dtype)
    return model.eval().to(device)


def processor_inputs(loaded: LoadedPolicy, one) -> dict[str, torch.Tensor]:
    """What the family's processor makes of a sample by itself, its images nested as its chat template nests them."""
    if loaded.processor.chat_template is None:  # PaliGemma: its processor lays the prompt out
        text = loaded.processor.image_token * len(one.images) + one.question
    else:
        messages = chat_messages(one, PLAIN.template)
        text = loaded.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    images = [[p.open() for p in one.images]] if one.images else None
    return dict(loaded.processor(text=[text], images=images, return_tensors="pt", add_special_tokens=False))


def behind(model, inputs: dict[str, torch.Tensor], answers: torch.Tensor) -> dict[str, torch.Tensor]:
    """A prompt's inputs, repeated for answers `(G, T)` that stand behind it."""
    kept = {name: value for name, value in inputs.items() if name not in ("attention_mask", "labels")}
    rows = {name: value.repeat(len(answers), *[1] * (value.ndim - 1)) for name, value in kept.items()}
    rows["input_ids"] = torch.cat([rows["input_ids"], answers], 1)
    suffix = int(model.config.model_type == "paligemma")  # there 0 marks what sees itself both ways
    for name, value in (("mm_token_type_ids", 0), ("token_type_ids", suffix)):
        if name in rows:
            rows[name] = torch.cat([rows[name], torch.full_like(answers, value)], 1)
    return rows


def _as_input(model, value: torch.Tensor) -> torch.Tensor:
    return value.to(model.device, model.dtype if value.is_floating_point() else value.dtype)


def plain_logprobs(
    model, loaded: LoadedPolicy, answered: Sequence[RolloutGroup], temperature: float = 1.0
) -> torch.Tensor:
    """Log-probs `(S,)` of all answers' tokens, on the CPU: each answer behind its prompt in a forward of its own."""
    parts = []
    suppressed = loaded.policy.suppressed.cpu()
    for group in answered:
        inputs = processor_inputs(loaded, group.prompt.sample)
        for rollout in group.rollouts:
            answer = torch.tensor([rollout.token_ids])
            row = {name: _as_input(model, value) for name, value in behind(model, inputs, answer).items()}
            logits = model(**row).logits[0, -answer.shape[1] - 1 : -1].float().cpu()
            logits = logits.index_fill(-1, suppressed, -torch.inf)
            parts.append(torch.log_softmax(logits / temperature, -1).gather(-1, answer[0][:, None])[:, 0])
    return torch.cat(parts)
