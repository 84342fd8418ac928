"""FLOPs by counting weights, against torch's counter of what ran."""

import pytest
import torch
import zoo
from hypothesis import given
from hypothesis import strategies as st
from support import FAMILIES, made_up, noise_image, plain_model, sample, tiny
from torch.utils.flop_counter import FlopCounterMode

from vlm_r1.config import Recipe
from vlm_r1.models import cpu_layers, logprobs
from vlm_r1.models.flops import Arithmetic, Work, causal_pairs
from vlm_r1.models.packing import pack
from vlm_r1.rl.batch import as_prefix_group
from vlm_r1.runtime.session import choose_trained

PRODUCTS = ("mm", "addmm", "convolution", "convolution_backward")
ATTENTION = ("bmm", "baddbmm")
EXACT = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v", "gemma3", "paligemma", "smolvlm", "aya_vision")
NEARLY = {"llava": 0.002, "internvl": 0.004, "llava_onevision": 0.004, "llava_next": 0.005}
"""Families with a class token, which the patch embedding does not see, or whose connector takes other patches than the
language model: by which share they differ."""


@pytest.fixture(autouse=True)
def _seen_by_the_counter(monkeypatch):
    """torch's counter knows neither oneDNN's products nor a module that is called inside a function of autograd."""
    monkeypatch.setattr(cpu_layers, "FEW", 1 << 60)
    monkeypatch.setattr(logprobs, "is_plain", lambda head: False)


def counted(call) -> dict[str, int]:
    """FLOPs of what ran, by kind of operator."""
    with FlopCounterMode(display=False) as counter:
        call()
    found = {str(name).split(".")[-1]: flops for name, flops in counter.get_flop_counts()["Global"].items()}
    assert set(found) <= {*PRODUCTS, *ATTENTION}, found
    return {
        "products": sum(found.get(name, 0) for name in PRODUCTS),
        "attention": sum(found.get(name, 0) for name in ATTENTION),
    }


def forward_and_backward(loaded, group) -> tuple[int, int]:
    """FLOPs of the products in a packed row of one group, whose attention torch's counter does not see."""
    row, scored = pack([as_prefix_group(group)]), []
    forward = counted(lambda: scored.append(loaded.policy(row)[0]))
    return forward["products"], counted(lambda: scored[0].sum().backward())["products"]


def without_attention(family) -> Arithmetic:
    arithmetic = Arithmetic(family)
    arithmetic._channels = arithmetic._vision_channels = 0
    return arithmetic


def products(family, group) -> Work:
    """The same by counting."""
    prompt, lengths = group.prompt, [len(rollout.token_ids) for rollout in group.rollouts]
    return without_attention(family).shared(prompt.token_ids, prompt.images, lengths)


@pytest.mark.parametrize("name", [*EXACT, *NEARLY])
def test_products_are_those_that_run(tmp_path, name):
    entry = zoo.zoo()[name]
    entry.build(tmp_path)
    loaded = zoo.load(tmp_path)
    for group in zoo.groups(loaded, entry):
        forward, backward = forward_and_backward(loaded, group)
        work = products(loaded.family, group)
        assert work.forward == pytest.approx(forward, rel=NEARLY.get(name, 1e-12))
        if name in EXACT or name in ("internvl", "llava_onevision"):  # the LLaVA towers' last block teaches nothing
            assert work.backward == pytest.approx(backward, rel=NEARLY.get(name, 1e-12))


FROZEN = {"vision": "frozen", "connector": "frozen"}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "train",
    [
        FROZEN,
        {"vision": "frozen"},
        {"vision": "last_1"},
        FROZEN | {"language": "last_1"},
        FROZEN | {"language": "lora"},
        {"vision": "lora", "connector": "frozen", "language": "lora"},
    ],
    ids=lambda train: "-".join(f"{part[0]}_{how}" for part, how in train.items()),
)
def test_gradients_are_those_of_what_is_trained(family, train):
    loaded = tiny(family)
    model = loaded.policy.model
    own = type(loaded.family)(model, loaded.processor, loaded.family.settings, None, None)
    choose_trained(own, Recipe(train=train, lora={"rank": 3} if "lora" in train.values() else None))
    group = made_up(loaded, own.encode(sample("the red circle", noise_image(48, 32))), (3, 5))
    forward, backward = forward_and_backward(loaded, group)
    work = products(own, group)
    assert work.forward == forward
    # With adapters, the first of these two blocks' keys and values need no gradient of their input, which is counted.
    assert work.backward == pytest.approx(backward, rel=0.1 if "lora" in train.values() else 1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_is_counted_by_pairs(family):
    """Eager attention multiplies over all pairs, seen or not: per pair both counts are the same."""
    loaded = tiny(family)
    model = plain_model(loaded)
    model.set_attn_implementation("eager")
    prompt = loaded.family.encode(sample("the red circle", noise_image(96, 64)))
    N, arithmetic, bare = len(prompt.token_ids), Arithmetic(loaded.family), without_attention(loaded.family)
    [image] = prompt.images
    tower = counted(lambda: model.model.get_image_features(**image.tensors))
    assert tower["products"] == bare.tower(image).forward + prompt.token_ids.count(model.config.image_token_id) * (
        bare._connector.forward
    )
    assert tower["attention"] == arithmetic.tower(image).forward - bare.tower(image).forward
    embedded = torch.randn(1, N, model.config.text_config.hidden_size)
    out = []
    decoder = model.model.language_model
    ran = counted(lambda: out.append(decoder(inputs_embeds=embedded, use_cache=False).last_hidden_state))
    back = counted(lambda: out[0].sum().backward())
    both = arithmetic.tokens(0, N)
    attention = Work(both.forward - bare.tokens(0, N).forward, both.backward - bare.tokens(0, N).backward)
    assert attention.forward / causal_pairs(0, N) == ran["attention"] / N**2
    assert attention.backward / causal_pairs(0, N) == back["attention"] / N**2


@given(st.integers(0, 30), st.integers(0, 30), st.one_of(st.none(), st.integers(1, 40)))
def test_pairs_are_those_of_the_causal_mask(start, length, window):
    seen = 0
    for place in range(start, start + length):
        seen += len([other for other in range(place + 1) if window is None or other > place - window])
    assert causal_pairs(start, start + length, window) == seen


def test_work_that_is_shared_and_work_of_padded_rows_by_hand():
    """One group: a prompt of L tokens with an image, and three completions of 2, 5 and 3 tokens."""
    family = tiny().family
    prompt = family.encode(sample("the red circle", noise_image(48, 32)))
    arithmetic, L = Arithmetic(family), len(prompt.token_ids)
    tower, connector = arithmetic.tower(prompt.images[0]), prompt.token_ids.count(family.model.config.image_token_id)
    seen = tower + connector * arithmetic._connector
    token, head, pair = arithmetic._language.forward, arithmetic._head.forward, 2 * 4 * 4 * 16  # layers, heads of 16
    ran = L + (1 + 4 + 2)
    pairs = L * (L + 1) / 2 + sum(L + i for n in (2, 5, 3) for i in range(1, n))
    shared = arithmetic.shared(prompt.token_ids, prompt.images, [2, 5, 3])
    assert shared.forward == seen.forward + ran * token + pairs * pair + 10 * head
    kept = arithmetic.shared(prompt.token_ids, prompt.images, [2, 5, 3], encoded=0.25)
    assert shared.forward - kept.forward == 0.75 * seen.forward
    row = seen.forward + (L + 5) * token + (L + 5) * (L + 6) / 2 * pair + 5 * head
    assert arithmetic.padded(prompt.token_ids, prompt.images, [2, 5, 3]).forward == 3 * row
    context = arithmetic.shared(prompt.token_ids, prompt.images, [5], [2])
    whole = arithmetic.shared(prompt.token_ids, prompt.images, [5])
    assert whole.forward - context.forward == 2 * head


def test_a_mixture_of_experts_counts_the_chosen_ones(tmp_path):
    zoo.zoo()["qwen3_vl_moe"].build(tmp_path)
    loaded = zoo.load(tmp_path)
    text, arithmetic = loaded.family.model.config.text_config, without_attention(loaded.family)
    D, heads, kv, d = text.hidden_size, text.num_attention_heads, text.num_key_value_heads, text.head_dim
    attention = 2 * D * heads * d + 2 * D * kv * d
    experts = D * text.num_experts + text.num_experts_per_tok * 3 * D * text.moe_intermediate_size
    assert text.num_experts_per_tok < text.num_experts and text.mlp_only_layers == [0] and text.num_hidden_layers == 2
    dense = 3 * D * text.intermediate_size
    assert arithmetic.tokens(0, 1).forward == 2 * (2 * attention + dense + experts)


def test_sliding_windows_bound_the_pairs(tmp_path):
    zoo.zoo()["gemma3"].build(tmp_path)
    family = zoo.load(tmp_path).family
    text, N = family.model.config.text_config, 200
    sliding = sum(kind == "sliding_attention" for kind in text.layer_types)
    assert 0 < sliding < text.num_hidden_layers and text.sliding_window < N
    found = Arithmetic(family).tokens(0, N).forward - without_attention(family).tokens(0, N).forward
    full = text.num_hidden_layers - sliding
    pairs = sliding * causal_pairs(0, N, text.sliding_window) + full * causal_pairs(0, N)
    assert found == 4 * text.num_attention_heads * text.head_dim * pairs
