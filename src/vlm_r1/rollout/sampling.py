"""From logits to tokens: temperature, top-k, top-p, min-p, and where an answer ends."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from vlm_r1.prompts.parse import END_OF_ANSWER, END_OF_CALL
from vlm_r1.records import Prompt, SamplingParams

BYTE = re.compile("<0x([0-9A-F]{2})>")
"""How vocabularies spell a byte that is not part of a longer token."""


def endings(sampling: SamplingParams) -> list[str]:
    """The texts that end what a model writes: its answer, and a call where it may make one."""
    return [END_OF_ANSWER] * sampling.stop_at_answer + [END_OF_CALL] * bool(sampling.max_calls)


def uniforms(
    prompts: Sequence[Prompt], first: int, count: int, sampling: SamplingParams, calls: int = 0
) -> Tensor | None:
    """The random numbers in [0, 1) of answers `first` to `first + count - 1` of each prompt, `(B, max_new_tokens)`.

    None for greedy decoding. A row depends on the seed, the prompt's number, the answer's number and how many calls it
    has made alone: neither on what else is sampled nor on the process or the device that samples it.
    """
    if sampling.seed is None:
        return None
    rows = []
    for prompt in prompts:
        for answer in range(first, first + count):
            name = repr((*sampling.seed, prompt.number, answer, *([calls] if calls else []))).encode()
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
    """When an answer is finished: the end-of-text token, or one of the texts `endings`, however cut into tokens.

    `table` `(states + 1, V)` says which state follows a state and a token; a state is a beginning of an ending that
    stands at the end of what is written, and the last one, `done`, is final. So it runs on the device, for all rows at
    once, and nothing is decoded.
    """

    def __init__(self, tokenizer: Any, eos_token_ids: Sequence[int], endings: Sequence[str], vocabulary: int) -> None:
        begun = list(dict.fromkeys(["", *(ending[:i] for ending in endings for i in range(len(ending)))]))
        self.done = len(begun)
        table = torch.zeros(self.done + 1, vocabulary, dtype=torch.uint8)
        if endings:
            found = dict(_strings(tokenizer, endings))
            follows = [[_follows(endings, begun, state, text) for state in begun] for text in found.values()]
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


def _strings(tokenizer: Any, endings: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Tokens that can hold a part of texts of ASCII characters, as they are spelled.

    Tokenizers spell these characters as themselves, in byte-level vocabularies too; only a byte that stands for itself
    (`<0x3C>`) is spelled otherwise.
    """
    inside = {end[i:j] for end in endings for i in range(len(end)) for j in range(i + 1, len(end) + 1)}
    edges = {end[i] for end in endings for i in (0, -1)}
    spell = tokenizer.backend_tokenizer.id_to_token if tokenizer.is_fast else tokenizer.convert_ids_to_tokens
    for token, spelled in enumerate(map(spell, range(len(tokenizer)))):
        if spelled and (not edges.isdisjoint(spelled) or spelled in inside):
            byte = BYTE.fullmatch(spelled)
            yield token, chr(int(byte[1], 16)) if byte else spelled


def _follows(endings: Sequence[str], begun: list[str], state: str, text: str) -> int:
    """The number of the state after a text.

    The first character of an ending comes only once in it, so that a part which does not go on begins anew.
    """
    for character in text:
        grown = state + character
        if grown in endings:
            return len(begun)
        state = grown if grown in begun else character if character in begun else ""
    return begun.index(state)
