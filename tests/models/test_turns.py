"""Answers that tools wrote into: packed rows equal the plain forward of each whole exchange, images in the middle."""

import dataclasses

import pytest
import torch
import zoo
from support import assert_same_gradients, attending, gradients, made_up, noise_image

from vlm_r1.config import TrainConfig
from vlm_r1.errors import ModelError
from vlm_r1.models.freeze import freeze, frozen_features
from vlm_r1.models.packing import cut_by_budget, pack
from vlm_r1.models.vision_cache import VisionCache
from vlm_r1.records import RolloutGroup
from vlm_r1.rl.batch import as_prefix_group

WITHOUT = ("gemma3", "paligemma", "llava_onevision")
"""Families that see images both ways, and one whose processor makes other tiles of an image that has others beside it,
so that it makes no whole exchange to compare with."""
ZOO = {name: entry for name, entry in zoo.zoo().items() if entry.multi_image and not name.startswith(WITHOUT)}
TEMPERATURE = 0.8
CROPS = {"a": noise_image(32, 48, 7), "b": noise_image(64, 32, 8), "c": noise_image(40, 40, 9)}
EXCHANGES = [
    # What each answer of a group is: written tokens, what a tool showed (or said), written tokens ... The numbers are
    # seeds of the tokens: equal seeds are equal tokens.
    [(4, 1), "a", (3, 2), "b", (5, 3)],
    [(4, 1), "a", (3, 2), "", (1, 4)],
    [(4, 1), "a", (6, 5)],
    [(5, 6)],
    [(2, 7), "ca", (3, 8), "b", (2, 9), "a", (4, 10)],
    [(2, 7), "ca", (3, 8), "b", (2, 9), "a", (4, 11)],
]


def exchanges(loaded, one, which=EXCHANGES, number: int = 0) -> RolloutGroup:
    """A group of these exchanges about a sample."""
    prompt, family = loaded.family.encode(one), loaded.family
    rollouts = []
    for exchange in which:
        ids, turns, position = [], [], prompt.next_position
        for part in exchange:
            if isinstance(part, tuple):
                length, seed = part
                own = made_up(loaded, prompt, [length], 100 * number + seed).rollouts[0].token_ids
                ids, position = [*ids, *own], position + length
            else:
                turn = family.tool_turn(one, [CROPS[c] for c in part], f"shown {part}", position=position)
                turns.append(dataclasses.replace(turn, at=len(ids)))
                position = turn.next_position
        [rollout] = made_up(loaded, prompt, [len(ids)]).rollouts
        rollouts.append(dataclasses.replace(rollout, token_ids=tuple(ids), turns=tuple(turns)))
    return RolloutGroup(prompt=prompt, rollouts=tuple(rollouts))


def groups_of(loaded, entry) -> list[RolloutGroup]:
    first, *_, last = zoo.samples(entry)
    return [exchanges(loaded, first), exchanges(loaded, last, EXCHANGES[3:], 1)]


def plain_logprobs(model, loaded, groups) -> torch.Tensor:
    """Log-probs `(S,)` of what the model wrote: each exchange in a row of its own, its images as one list."""
    parts, suppressed = [], loaded.policy.suppressed.cpu()
    for group in groups:
        for rollout in group.rollouts:
            one = group.prompt.sample
            shown = (*one.images, *(image for turn in rollout.turns for image in turn.call.images))
            inputs = zoo.processor_inputs(loaded, dataclasses.replace(one, images=shown))
            ids, written, done = list(group.prompt.token_ids), [], 0
            for at, context in [*((turn.at, turn.token_ids) for turn in rollout.turns), (len(rollout.token_ids), ())]:
                written += range(len(ids), len(ids) + at - done)
                ids, done = [*ids, *rollout.token_ids[done:at], *context], at
            row = {name: value for name, value in inputs.items() if name not in ("attention_mask", "labels")}
            row["input_ids"] = torch.tensor([ids])
            for name in ("mm_token_type_ids", "token_type_ids"):
                if name in row:
                    row[name] = (row["input_ids"] == model.config.image_token_id).to(row[name].dtype)
            row = {name: zoo._as_input(model, value) for name, value in row.items()}
            logits = model(**row).logits[0].float().cpu().index_fill(-1, suppressed, -torch.inf)
            logprobs = torch.log_softmax(logits / TEMPERATURE, -1)
            parts.append(torch.stack([logprobs[t - 1, ids[t]] for t in written]))
    return torch.cat(parts)


def weights(count: int) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module", params=ZOO)
def made(request, tmp_path_factory):
    """A family's folder, its entry, and log-probs and gradients by the plain forward."""
    folder = zoo.built(request.param, tmp_path_factory.mktemp("turns"))
    entry = ZOO[request.param]
    loaded, model = zoo.load(folder), zoo.plain(folder, entry)
    expected = plain_logprobs(model, loaded, groups_of(loaded, entry))
    (expected * weights(len(expected))).sum().backward()
    return folder, entry, expected.detach(), gradients(model)


def packed(loaded, groups, budget: int, device="cpu") -> tuple[torch.Tensor, dict, int]:
    parts, start = [], 0
    total = sum(len(r.token_ids) for g in groups for r in g.rollouts)
    rows = cut_by_budget([as_prefix_group(g) for g in groups], budget)
    for row in rows:
        logprobs = loaded.policy(pack(row).to(device), TEMPERATURE)[0].cpu()
        (logprobs * weights(total)[start : start + len(logprobs)]).sum().backward()
        start += len(logprobs)
        parts.append(logprobs.detach())
    return torch.cat(parts), gradients(loaded.policy), len(rows)


@pytest.mark.parametrize(
    ("budget", "backend", "checkpointing"),
    [
        (100_000, "sdpa", False),
        (100_000, "flash", False),
        (100_000, "flash", True),
        (150, "flash", False),
        (1, "sdpa", True),
    ],
    ids=["one-row", "flash", "checkpointing", "cut", "alone"],
)
def test_the_packed_update_equals_the_plain_one(device, made, budget, backend, checkpointing):
    folder, entry, expected, expected_gradients = made
    loaded = attending(zoo.load(folder, device), backend)
    if checkpointing:
        loaded.policy.model.gradient_checkpointing_enable({"use_reentrant": False})
        loaded.policy.train()
    logprobs, found, _ = packed(loaded, groups_of(loaded, entry), budget, device)
    torch.testing.assert_close(logprobs, expected, atol=2e-5, rtol=0)
    assert_same_gradients(found, expected_gradients)


def test_prompts_shared_turns_and_distinct_images_are_computed_once(made):
    folder, entry, *_ = made
    loaded = zoo.load(folder)
    group = as_prefix_group(exchanges(loaded, zoo.samples(entry)[0]))
    row = pack([group])
    encoded, before = [], loaded.policy.encode_images
    loaded.policy.encode_images = lambda images: encoded.extend(images) or before(images)
    loaded.policy(row)
    assert len({image.key for image in encoded}) == 1 + len(CROPS)
    if len(encoded) > 1 + len(CROPS):  # this output does not say what is whose: each once more, by itself
        assert len(encoded) == 2 * (1 + len(CROPS))
    # The turns: 4+a, then 3+b and 3+"" under it, and 2+ca, 3+b, 2+a, each once though two answers or three have them.
    lengths = [len(turn.token_ids) for turn in group.turns]
    ends = [5 - 1, 1 - 1, 6 - 1, 5 - 1, 4 - 1, 4 - 1]
    assert len(lengths) == 6 and len(row.token_ids) == len(group.token_ids) + sum(lengths) + sum(ends)
    assert group.n_tokens == len(row.token_ids)
    assert len(row.completion_of_target) == sum(b.n_scored for b in group.completions)
    assert len(row.targets) == len(row.completion_of_target) - 2 * 4 - (2 + 3 + 2)


def test_a_tool_turn_is_what_the_processor_makes_of_it(made):
    folder, entry, *_ = made
    loaded = zoo.load(folder)
    one = zoo.samples(entry)[0]
    turn = loaded.family.tool_turn(one, [CROPS["a"]], "look", position=11)
    said = [("user", "hi"), ("assistant", "*text*")]
    messages = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in said]
    messages.append({"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "look"}]})
    text = loaded.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    behind = text[text.index("*text*") + len("*text*") :]
    expected = loaded.processor(text=[behind], images=[[CROPS["a"].open()]], add_special_tokens=False)
    assert list(turn.token_ids) == list(expected["input_ids"][0])
    assert int(turn.positions.min()) == 11 and turn.next_position == int(turn.positions.max()) + 1


def test_a_frozen_tower_encodes_a_crop_once_in_the_training(made):
    folder, entry, *_ = made
    loaded = zoo.load(folder)
    freeze(loaded.family, TrainConfig(vision="frozen", connector="frozen"))
    loaded.policy.cache_features(VisionCache(1 << 30), *frozen_features(loaded.family))
    row = pack([as_prefix_group(exchanges(loaded, zoo.samples(entry)[0]))])
    first = loaded.policy(row)[0]
    assert loaded.policy.vision_cache.misses == 1 + len(CROPS)
    torch.testing.assert_close(loaded.policy(row)[0], first)
    assert loaded.policy.vision_cache.misses == 1 + len(CROPS)


def test_models_without_a_place_for_tools_say_so(tmp_path):
    for name, said in (("paligemma", "no chat template"), ("gemma3", "both ways")):
        with pytest.raises(ModelError, match=said):
            zoo.load(zoo.built(name, tmp_path)).family.check_turns()
