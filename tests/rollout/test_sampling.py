"""Filters against distributions worked out by hand, and where an answer ends."""

from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import bytes_tokenizer, tiny
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from vlm_r1.models.logprobs import masked_logprobs
from vlm_r1.prompts.parse import END_OF_ANSWER
from vlm_r1.records import SamplingParams
from vlm_r1.rollout.sampling import StoppingCriteria, choose, filtered

PROBS = torch.tensor([[0.05, 0.40, 0.25, 0.20, 0.10]])


def settings(**options) -> SamplingParams:
    return SamplingParams(max_new_tokens=8, **options)


def uniform(n: int) -> torch.Tensor:
    return torch.rand(n, generator=torch.Generator().manual_seed(0), dtype=torch.double)


def kept(**options) -> list[int]:
    result = filtered(PROBS.log(), settings(**options))[0]
    assert torch.equal(result[result.isfinite()], PROBS.log()[0][result.isfinite()])
    return result.isfinite().nonzero()[:, 0].tolist()


@pytest.mark.parametrize(
    ("options", "tokens"),
    [
        ({}, [0, 1, 2, 3, 4]),
        ({"top_k": 1}, [1]),
        ({"top_k": 3}, [1, 2, 3]),
        ({"top_k": 99}, [0, 1, 2, 3, 4]),
        ({"top_p": 0.01}, [1]),
        ({"top_p": 0.39}, [1]),
        ({"top_p": 0.41}, [1, 2]),  # 0.40 is not enough, 0.65 is
        ({"top_p": 0.84}, [1, 2, 3]),
        ({"top_p": 0.86}, [1, 2, 3, 4]),
        ({"min_p": 0.3}, [1, 2, 3]),  # at least 0.3 x 0.40 = 0.12
        ({"min_p": 0.6}, [1, 2]),
        ({"min_p": 1.0}, [1]),
        ({"top_k": 3, "top_p": 0.5}, [1, 2]),  # of 0.85: 0.47 is not enough, 0.76 is
        ({"top_k": 2, "min_p": 0.7}, [1]),
        ({"top_p": 0.9, "min_p": 0.4}, [1, 2, 3]),
    ],
    ids=str,
)
def test_filters_keep_the_tokens_worked_out_by_hand(options, tokens):
    assert kept(**options) == tokens


def test_rows_are_filtered_each_by_itself():
    rows = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.2, 0.7]]).log()
    result = filtered(rows, settings(top_k=1)).isfinite()
    assert result.tolist() == [[True, False, False], [False, False, True]]


def test_samples_follow_the_filtered_distribution():
    drawn = choose(PROBS.log().expand(20_000, -1), settings(top_k=3), uniform(20_000))
    shares = torch.bincount(drawn, minlength=5) / 20_000
    torch.testing.assert_close(shares, torch.tensor([0, 0.40, 0.25, 0.20, 0]) / 0.85, atol=0.015, rtol=0)


def test_without_random_numbers_the_likeliest_is_taken():
    assert choose(PROBS.log(), settings(), None).tolist() == [1]


def test_a_random_number_names_the_token_whose_share_of_the_unit_it_lies_in():
    # shares end at 0.05, 0.45, 0.70, 0.90, 1; with top_k=2 at 0.40 / 0.65 for token 1, then token 2
    u = torch.tensor([0.0, 0.049, 0.051, 0.449, 0.451, 0.699, 0.701, 0.899, 0.901, 1 - 2**-53], dtype=torch.double)
    assert choose(PROBS.log().expand(10, -1), settings(), u).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    u = torch.tensor([0.0, 0.61, 0.62, 1 - 2**-53], dtype=torch.double)
    assert choose(PROBS.log().expand(4, -1), settings(top_k=2), u).tolist() == [1, 1, 2, 2]


def test_temperature_divides_logits_and_banned_tokens_have_probability_zero():
    logits = torch.tensor([[2.0, 1.0, 1e6, 0.0]])
    logprobs = masked_logprobs(logits, torch.tensor([2]), 2.0)
    expected = torch.tensor([2.0, 1.0, 0.0]).div(2).exp()
    torch.testing.assert_close(logprobs.exp()[0, [0, 1, 3]], expected / expected.sum())
    assert logprobs.exp()[0, 2] == 0
    drawn = choose(logprobs.expand(1000, -1), settings(), uniform(1000))
    assert 2 not in drawn.tolist()


def criteria(tokenizer, *endings: str) -> StoppingCriteria:
    return StoppingCriteria(tokenizer, [tokenizer.eos_token_id], endings, len(tokenizer) + 3)


def ends_after(stop: StoppingCriteria, ids: list[int]) -> int | None:
    """How many tokens are written before the criteria say stop."""
    state = torch.zeros(1, dtype=torch.uint8)
    for n, token in enumerate(ids, start=1):
        state = stop.follow(state, torch.tensor([token]))
        if state.item() == stop.done:
            return n
    return None


def test_the_closing_tag_as_one_token_ends_an_answer():
    tokenizer = tiny().tokenizer
    ids = tokenizer("<answer>5</answer> more", add_special_tokens=False)["input_ids"]
    tag = tokenizer.convert_tokens_to_ids("</answer>")
    assert ends_after(criteria(tokenizer, END_OF_ANSWER), ids) == ids.index(tag) + 1
    assert ends_after(criteria(tokenizer), ids) is None


@pytest.mark.parametrize("end", [">", ">\n"], ids=["own-token", "merged"])
def test_the_closing_tag_as_several_tokens_ends_an_answer(end):
    tokenizer = bytes_tokenizer()
    written = tokenizer("<think>a>b</think><answer>5</answer" + end, add_special_tokens=False)["input_ids"]
    assert len(written) > 20
    more = tokenizer("more>", add_special_tokens=False)["input_ids"]
    assert ends_after(criteria(tokenizer, END_OF_ANSWER), [*written, *more]) == len(written)
    assert ends_after(criteria(tokenizer), written) is None


def test_the_closing_tag_may_follow_letters_of_other_scripts():
    tokenizer = bytes_tokenizer()
    written = tokenizer("<answer>猫が</answer>", add_special_tokens=False)["input_ids"]
    assert ends_after(criteria(tokenizer, END_OF_ANSWER), written) == len(written)


PIECES = [
    "<",
    "</",
    "</a",
    "answer",
    "swer",
    "er>",
    ">",
    ">\n",
    "/answer>",
    "x<",
    "x</answer>y",
    "</answer",
    "a",
    " ",
    "<<",
]


@cache
def merging_tokenizer() -> PreTrainedTokenizerFast:
    """A vocabulary in which parts of the closing tag are tokens, in all the ways that they can be cut."""
    words = {piece: i for i, piece in enumerate(["<eos>", *PIECES, "<0x3C>"])}
    built = Tokenizer(models.WordLevel(words, unk_token="<eos>"))
    built.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=built, eos_token="<eos>")


@given(st.lists(st.integers(1, len(PIECES) + 1), max_size=12))
def test_an_answer_ends_where_the_decoded_text_first_holds_the_closing_tag(ids):
    tokenizer = merging_tokenizer()
    texts = [tokenizer.decode(ids[:n]) for n in range(1, len(ids) + 1)]
    expected = next((n for n, text in enumerate(texts, start=1) if END_OF_ANSWER in text), None)
    assert ends_after(criteria(tokenizer, END_OF_ANSWER), ids) == expected


def test_end_of_text_ends_an_answer_in_its_own_row_only_and_for_good():
    tokenizer = bytes_tokenizer()
    stop = criteria(tokenizer, END_OF_ANSWER)
    states = stop.follow(torch.zeros(3, dtype=torch.uint8), torch.tensor([2, tokenizer.eos_token_id, 5]))
    assert (states == stop.done).tolist() == [False, True, False]
    assert (stop.follow(states, torch.tensor([4, 4, 4])) == stop.done).tolist() == [False, True, False]


def test_stopping_criteria_decode_nothing(monkeypatch):
    tokenizer = bytes_tokenizer()
    monkeypatch.setattr(type(tokenizer), "decode", None)
    monkeypatch.setattr(type(tokenizer), "batch_decode", None)
    stop = criteria(tokenizer, END_OF_ANSWER)
    assert stop.table.shape == (10, len(tokenizer) + 3)
