"""An image with many questions as one prefix group equals each question in its own padded row."""

import pytest
import torch
from support import FAMILIES, assert_same_gradients, gradients, noise_image, plain_logprobs, plain_model, sample, tiny

from vlm_r1.config import ScenesSource
from vlm_r1.data.scenes import load_scenes
from vlm_r1.models.packing import cut_by_budget, pack
from vlm_r1.records import Rollout, RolloutGroup, Truth
from vlm_r1.sft.batch import ByImage, image_group
from vlm_r1.sft.targets import target_ids

KINDS = {"attribute": 1.0, "list": 1.0, "count": 1.0}


def images() -> list[tuple]:
    shown = noise_image(48, 32)
    two = (noise_image(32, 32, 1), noise_image(48, 48, 2))
    number = Truth(number=12.0)
    return [
        (
            sample("the red circle", shown, think="there"),
            sample("how many circles", shown, truth=number, task="count"),
            sample("the", shown),
        ),
        (sample("how many?", truth=number, task="count"),),
        (sample("both", *two), sample("both of them", *two, truth=Truth(text="yes"), task="text")),
        tuple(load_scenes(ScenesSource(n=1, per_image=4, questions=KINDS))),
    ]


def per_question(loaded) -> list[RolloutGroup]:
    """Every question by itself, its target as its only answer."""
    groups = []
    for shown in images():
        for one in shown:
            prompt = loaded.family.encode(one)
            ids = tuple(target_ids(prompt, loaded.family))
            answer = Rollout(token_ids=ids, logprobs=(0.0,) * len(ids), text="", finish="stop")
            groups.append(RolloutGroup(prompt=prompt, rollouts=(answer,)))
    return groups


@pytest.mark.parametrize("budget", [100_000, 60], ids=["one-row", "split"])
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradient_equal_the_padded_ones_of_each_question(family, budget):
    loaded = tiny(family)
    prefix_groups = [image_group(shown, loaded.family) for shown in images()]
    ours = []
    for row in cut_by_budget(prefix_groups, budget):
        logprobs, _ = loaded.policy(pack(row))
        (-logprobs.sum()).backward()
        ours.append(logprobs.detach())
    model = plain_model(loaded)
    expected = plain_logprobs(model, per_question(loaded), loaded.policy.suppressed, 1.0)
    (-expected.sum()).backward()
    torch.testing.assert_close(torch.cat(ours), expected.detach(), atol=2e-5, rtol=0)
    assert_same_gradients(gradients(loaded.policy), gradients(model))


def test_a_tree_holds_the_image_once_and_scores_answers_alone():
    loaded = tiny()
    shown = images()[0]
    prefix_group = image_group(shown, loaded.family)
    prompts = [loaded.family.encode(one) for one in shown]
    image = loaded.policy.model.config.image_token_id
    assert prefix_group.token_ids.tolist().count(image) == 6 == prompts[0].token_ids.count(image)
    assert [p.tensors["image_grid_thw"].shape for p in prefix_group.images] == [(1, 3)]
    for completion, prompt in zip(prefix_group.completions, prompts, strict=True):
        ids = [*prefix_group.token_ids.tolist(), *completion.token_ids.tolist()]
        scored = completion.token_ids[completion.context :].tolist()
        assert ids == [*prompt.token_ids, *target_ids(prompt, loaded.family)]
        assert scored == target_ids(prompt, loaded.family) and completion.context >= 1
        assert completion.positions.shape == (3, len(completion.token_ids))


def test_equal_questions_leave_each_branch_a_token_of_its_own():
    loaded = tiny()
    shown = noise_image(48, 32)
    prefix_group = image_group([sample("the circle", shown), sample("the circle", shown)], loaded.family)
    assert [completion.context for completion in prefix_group.completions] == [1, 1]


def ids(groups) -> list[list[str]]:
    return [[s.id for s in group] for group in groups]


def test_neighbours_with_the_same_image_go_together(tmp_path):
    a, b = noise_image(8, 8, 1), noise_image(8, 8, 2)
    samples = [
        sample("q", *shown, id=str(i)) for i, shown in enumerate([(a,), (a,), (b,), (b, a), (b, a), (), (), (a,)])
    ]
    grouped = ByImage(samples)
    expected = [["0", "1"], ["2"], ["3", "4"], ["5"], ["6"], ["7"]]
    assert len(grouped) == 6 and ids(grouped) == expected and ids(grouped[1:3]) == expected[1:3]
    with pytest.raises(IndexError):
        grouped[6]


def test_scenes_are_grouped_without_being_made():
    source = load_scenes(ScenesSource(n=1_000_000, per_image=3, questions=KINDS))
    grouped = ByImage(source)
    assert len(grouped) == 1_000_000
    assert [s.id for s in grouped[999_999]] == [f"train-999999-{i}" for i in range(3)]
