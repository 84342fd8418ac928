"""Recurrent layers: packed rows equal the plain forward, run the prompt once, and leave ordinary calls alone."""

import pytest
import torch
import zoo
from support import assert_same_gradients, gradients, plain_inputs

from vlm_r1.models.packing import Completion, PrefixGroup, pack
from vlm_r1.models.recurrent import State
from vlm_r1.rl.batch import as_prefix_group

ENTRY = zoo.zoo()["qwen3_5"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("qwen3_5")
    ENTRY.build(found)
    return found


def recurrent_layers(model) -> list[torch.nn.Module]:
    return [layer.linear_attn for layer in model.model.language_model.layers if hasattr(layer, "linear_attn")]


def prefix_group(generator, prefix: int, *answers: int) -> PrefixGroup:
    """A text prompt of `prefix` tokens and answers of these lengths."""

    def tokens(count, start):
        ids = torch.randint(20, 400, (count,), generator=generator)
        return ids, torch.arange(start, start + count).expand(3, -1)

    completions = [Completion(token_ids=i, positions=p) for i, p in (tokens(n, prefix) for n in answers)]
    ids, positions = tokens(prefix, 0)
    return PrefixGroup(token_ids=ids, positions=positions, images=(), completions=tuple(completions))


@pytest.mark.parametrize(
    "lengths",
    [[(1, 1)], [(1, 2, 1)], [(1, 1, 2), (2, 1)], [(3, 2, 70), (66, 1, 5), (4, 3)], [(130, 1), (5, 9)]],
    ids=["one-token-each", "one-in-the-row", "shorter-than-the-kernel", "mixed", "over-two-chunks"],
)
def test_any_length_of_prompt_and_answer_is_exact(folder, lengths):
    loaded, model = zoo.load(folder), zoo.plain(folder, ENTRY)
    generator = torch.Generator().manual_seed(4)
    prefix_groups = [prefix_group(generator, *counts) for counts in lengths]
    logprobs, _ = loaded.policy(pack(prefix_groups), 1.0)
    expected = []
    for one in prefix_groups:
        for completion in one.completions:
            count = len(completion.token_ids)
            logits = model(input_ids=torch.cat([one.token_ids, completion.token_ids])[None]).logits[0, -count - 1 : -1]
            logits = logits.index_fill(-1, loaded.policy.suppressed, -torch.inf)
            expected.append(torch.log_softmax(logits, -1).gather(-1, completion.token_ids[:, None])[:, 0])
    torch.testing.assert_close(logprobs, torch.cat(expected), atol=2e-5, rtol=0)
    weights = torch.randn(len(logprobs), generator=generator)
    (logprobs * weights).sum().backward()
    (torch.cat(expected) * weights).sum().backward()
    assert_same_gradients(gradients(loaded.policy), gradients(model))


@pytest.mark.parametrize("name", ["qwen3_5", "qwen3_5_moe"])
def test_gradient_checkpointing_is_exact(tmp_path, name):
    entry = zoo.zoo()[name]
    entry.build(tmp_path)
    loaded, model = zoo.load(tmp_path, gradient_checkpointing=True), zoo.plain(tmp_path, entry)
    loaded.policy.train()
    runs = []
    recurrent_layers(loaded.policy.model)[0].out_proj.register_forward_hook(lambda *_: runs.append(1))
    answered = zoo.groups(loaded, entry)
    logprobs, _ = loaded.policy(pack([as_prefix_group(g) for g in answered]), 1.0)
    expected = zoo.plain_logprobs(model, loaded, answered)
    weights = torch.randn(len(expected), generator=torch.Generator().manual_seed(5))
    (logprobs * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(logprobs, expected, atol=2e-5, rtol=0)
    assert_same_gradients(gradients(loaded.policy), gradients(model))
    assert len(runs) == 2 + 2  # prompts and answers, once forward and once again in the backward pass


def test_each_layer_runs_a_prompt_once_for_all_its_answers(folder):
    loaded = zoo.load(folder)
    group = zoo.groups(loaded, ENTRY)[0]
    shapes: dict[int, list[tuple[int, int]]] = {}
    layers = recurrent_layers(loaded.policy.model)
    for number, layer in enumerate(layers):
        kept = shapes.setdefault(number, [])
        layer.in_proj_qkv.register_forward_hook(lambda _, args, out, kept=kept: kept.append(tuple(out.shape[:2])))
    loaded.policy(pack([as_prefix_group(group)]))
    behind = [len(r.token_ids) - 1 for r in group.rollouts if len(r.token_ids) > 1]
    answers = len(behind), max(behind)
    assert len(layers) == 3
    assert all(seen == [(1, len(group.prompt.token_ids)), answers] for seen in shapes.values())


def test_ordinary_calls_and_generation_are_unchanged(folder):
    loaded, model = zoo.load(folder), zoo.plain(folder, ENTRY)
    prompts = [loaded.family.encode(s) for s in zoo.samples(ENTRY)]
    inputs = plain_inputs(model, prompts, [(30, 40), (50,), (60,), (70, 80, 90)], pad=0)
    ours = loaded.policy.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(ours(**inputs).logits, model(**inputs).logits, atol=2e-5, rtol=0)
        inputs = plain_inputs(model, prompts[:1], [()], pad=0)
        found, expected = (m.generate(**inputs, do_sample=False, max_new_tokens=6) for m in (ours, model))
    assert torch.equal(found, expected)


def test_a_state_is_replaced_and_never_written_in_place():
    state = State(torch.zeros(2, 3, 4), torch.zeros(2, 1, 2, 2))
    picked = state.take(torch.tensor([1, 1, 0]))
    before = picked.conv
    full = picked.update_conv_state(torch.ones(3, 3, 2), 0, conv_kernel_size=4)
    assert full.shape == (3, 3, 6)
    assert picked.conv.tolist() == [[[0, 0, 1, 1]] * 3] * 3
    assert not before.any() and not state.conv.any()
    first = State()
    assert first.update_conv_state(torch.ones(1, 1, 2), 0, conv_kernel_size=4).shape == (1, 1, 2)
    assert first.conv.tolist() == [[[0, 0, 1, 1]]]
