"""From logits to tokens: temperature, top-k, top-p, min-p, and where an answer ends."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from vlm_r1.records import Prompt, SamplingParams

END_OF_ANSWER = "</answer>"
BYTE = re.compile("<0x([0-9A-F]{2})>")
"""How vocabularies spell a byte that is not part of a longer token."""


def uniforms(prompts: Sequence[Prompt], first: int, count: int, sampling: SamplingParams) -> Tensor | None:
    """The random numbers in [0, 1) of answers `first` to `first + count - 1` of each prompt, `(B, max_new_tokens)`.

    None for greedy decoding. A row depends on the seed, the prompt's number and the answer's number alone: neither on
    what else is sampled nor on the process or the device that samples it.
    """
    if sampling.seed is None:
        return None
    rows = []
    for prompt in prompts:
        for answer in range(first, first + count):
            name = repr((*sampling.seed, prompt.number, answer)).encode()
            seed = int.from_bytes(hashlib.sha256(name).digest()[:8], "big", signed=True)
            generator = torch.Generator().manual_seed(seed)
            rows.append(torch.rand(sampling.max_new_tokens, generator=generator, dtype=torch.double))
    return torch.stack(rows) if rows else torch.zeros(0, sampling.max_new_tokens, dtype=torch.double)


def choose(logprobs_BV: Tensor, settings: SamplingParams, u_B: Tensor | None) -> Tensor:
    """One token per row `(B,)`, from log-probs at the sampling temperature and one uniform number per row; without
    these the likeliest.

    Filters apply in the order top-k, top-p, min-p, as in the common samplers; the log-prob that a rollout records is
    the unfiltered one, which is what the update computes.
    """
    if u_B is None:
        return logprobs_BV.argmax(-1)
    # The inverse of the cumulative distribution: an order of magnitude faster than torch.multinomial on a CPU. "right"
    # takes the first token whose cumulative probability is above u, so never one of probability 0.
    cumulative = filtered(logprobs_BV, settings).exp().cumsum(-1, dtype=torch.double)
    u = u_B[:, None] * (1 - 2**-50) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, u, right=True)[:, 0].clamp_max(logprobs_BV.shape[-1] - 1)  # NaN finds none


def filtered(logprobs_BV: Tensor, settings: SamplingParams) -> Tensor:
    """Log-probs with the tokens that top-k, top-p and min-p leave out at minus infinity; the likeliest always stays."""
    kept = logprobs_BV
    if 0 < settings.top_k < kept.shape[-1]:
        smallest = kept.topk(settings.top_k, -1).values[..., -1:]
        kept = kept.masked_fill(kept < smallest, -torch.inf)
    if settings.top_p < 1:
        ordered, order = kept.sort(-1, descending=True)
        mass = torch.softmax(ordered, -1).cumsum(-1)
        beyond = torch.cat([torch.zeros_like(mass[..., :1]), mass[..., :-1]], -1) >= settings.top_p
        kept = kept.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), -torch.inf)
    if settings.min_p > 0:
        floor = kept.amax(-1, keepdim=True) + torch.log(torch.tensor(settings.min_p))
        kept = kept.masked_fill(kept < floor, -torch.inf)
    return kept


class StoppingCriteria:
    """When an answer is finished: the end-of-text token, or the text `</answer>`, however it is cut into tokens.

    `table` `(states + 1, V)` says which state follows a state and a token; a state counts the characters of the text
    that stand at the end of what is written, and the last one, `done`, is final. So it runs on the device, for all rows
    at once, and nothing is decoded.
    """

    def __init__(self, tokenizer: Any, eos_token_ids: Sequence[int], stop_at_answer: bool, vocabulary: int) -> None:
        ending = END_OF_ANSWER if stop_at_answer else ""
        self.done = max(1, len(ending))
        table = torch.zeros(self.done + 1, vocabulary, dtype=torch.uint8)
        if ending:
            found = dict(_strings(tokenizer, ending))
            follows = [_follows(ending, text) for text in found.values()]
            table[: self.done, list(found)] = torch.tensor(follows, dtype=torch.uint8).t()
        table[:, list(eos_token_ids)] = self.done
        table[self.done] = self.done
        self.table = table

    def to(self, device: torch.device) -> StoppingCriteria:
        """The same on a device, in place."""
        self.table = self.table.to(device)
        return self

    def follow(self, states_R: Tensor, tokens_R: Tensor) -> Tensor:
        """The states `(R,)` uint8 after one more token of each row."""
        return self.table[states_R.long(), tokens_R]


def _strings(tokenizer: Any, ending: str) -> Iterator[tuple[int, str]]:
    """Tokens that can hold a part of a text of ASCII characters, as they are spelled.

    Tokenizers spell these characters as themselves, in byte-level vocabularies too; only a byte that stands for itself
    (`<0x3C>`) is spelled otherwise.
    """
    inside = {ending[i:j] for i in range(len(ending)) for j in range(i + 1, len(ending) + 1)}
    first, last = ending[0], ending[-1]
    spell = tokenizer.backend_tokenizer.id_to_token if tokenizer.is_fast else tokenizer.convert_ids_to_tokens
    for token, spelled in enumerate(map(spell, range(len(tokenizer)))):
        if spelled and (first in spelled or last in spelled or spelled in inside):
            byte = BYTE.fullmatch(spelled)
            yield token, chr(int(byte[1], 16)) if byte else spelled


def _follows(ending: str, text: str) -> list[int]:
    """How much of `ending` stands at the end after `text`, where its first 0, 1, 2 ... characters stood before.

    Its first character comes only once in it, so that a part that does not go on begins anew within `text`.
    """
    start = text.rfind(ending[0])
    begun = len(text) - start if start >= 0 and ending.startswith(text[start:]) else 0
    found = [len(ending) if ending in text else begun] * len(ending)
    for state, character in enumerate(ending):
        if character == text[0]:
            rest = ending[state:]
            if text.startswith(rest):
                found[state] = len(ending)
            elif rest.startswith(text):
                found[state] = state + len(text)
    return found
