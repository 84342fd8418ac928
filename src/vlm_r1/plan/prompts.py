"""The questions of a step: the first of the recipe's training data, or one that is made up where there is none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice

from PIL import Image
from torch._subclasses.fake_tensor import FakeTensorMode

from vlm_r1.config import DataSource, Recipe
from vlm_r1.data.source import load_source
from vlm_r1.distributed.processes import owners
from vlm_r1.errors import DataError
from vlm_r1.models.family import Family
from vlm_r1.models.packing import PrefixGroup
from vlm_r1.plan.trace import fake_floats
from vlm_r1.records import LabelledBox, Prompt, Rollout, RolloutGroup, Sample, SampleImage, Truth
from vlm_r1.rl.batch import as_prefix_group
from vlm_r1.sft.batch import ByImage, make_prefix_groups

MAX_READ = 16
"""Questions (with `method: sft`, images) that are read from the data; a step with more of them repeats these."""
ASSUMED_SIZE = (640, 480)
"""An image's size where neither data nor `model.max_pixels` say one: the usual one of COCO, which RefCOCO is about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Questions:
    """Samples of a step, in groups that show the same images, and where they are from."""

    groups: list[tuple[Sample, ...]]
    source: str

    def take(self, n: int) -> list[tuple[Sample, ...]]:
        """`n` groups; the first come again where there are fewer."""
        return list(islice(cycle(self.groups), n))


def find_questions(recipe: Recipe) -> Questions:
    """The first questions of each of the recipe's sources; a made-up one where no source can be read.

    Data sets on the hub are not read: that would download them.
    """
    sources = [source for source in recipe.data.train if source.hub is None]
    each = math.ceil(MAX_READ / max(1, len(sources)))
    groups: list[tuple[Sample, ...]] = []
    try:
        for source in sources:
            groups += _first(source, each, recipe)
    except DataError as error:
        return _made_up(recipe, f"data.train cannot be read ({error})")
    if not groups:
        return _made_up(recipe, "data.train names no files" if recipe.data.train else "data.train is empty")
    return Questions(groups=groups, source=f"the first {len(groups)} of data.train")


def _first(source: DataSource, count: int, recipe: Recipe) -> list[tuple[Sample, ...]]:
    if source.scenes is None and source.sampling == "all":
        source = source.model_copy(update={"sampling": f"first:{8 * count}"})
    samples = load_source(source, seed=recipe.run.seed)
    if recipe.method == "sft":
        return ByImage(samples)[:count]
    return [(samples[i],) for i in range(min(count, len(samples)))]


def _made_up(recipe: Recipe, why: str) -> Questions:
    side = math.isqrt(recipe.model.max_pixels or 0)
    size = (side, side) if side else ASSUMED_SIZE
    sample = Sample(
        id="plan",
        question="the person in the red coat on the left side of the image",
        images=(SampleImage(image=Image.new("RGB", size)),),
        truth=Truth(boxes=(LabelledBox(box=(0, 0, *size)),)),
    )
    return Questions(groups=[(sample,)], source=f"{why}: one image of {size[0]} x {size[1]} pixels is assumed")


def shares(groups: Sequence[tuple[Sample, ...]], family: Family, processes: int) -> list[list[tuple[Sample, ...]]]:
    """The groups of a step as they are dealt to the processes, without those that get none."""
    costs = [sum(family.expected_tokens(sample) for sample in group) for group in groups]
    dealt: list[list[tuple[Sample, ...]]] = [[] for _ in range(processes)]
    for group, owner in zip(groups, owners(costs, processes), strict=True):
        dealt[owner].append(group)
    return [share for share in dealt if share]


def encode(family: Family, groups: Sequence[tuple[Sample, ...]], fake: FakeTensorMode) -> list[Prompt]:
    """The prompts of the groups' first samples, their images without values."""
    prompts = {id(group): group for group in groups}
    encoded = {key: family.encode(group[0]) for key, group in prompts.items()}
    faked = {key: replace(p, images=_faked(p.images, fake)) for key, p in encoded.items()}
    return [faked[id(group)] for group in groups]


def answer_trees(prompts: Sequence[Prompt], group_size: int, length: int) -> list[PrefixGroup]:
    """Each prompt with answers of this length, as an update gets them."""
    answer = Rollout(token_ids=(0,) * length, logprobs=(0.0,) * length, text="", finish="length")
    return [as_prefix_group(RolloutGroup(prompt=prompt, rollouts=(answer,) * group_size)) for prompt in prompts]


def taught_trees(family: Family, groups: Sequence[tuple[Sample, ...]], fake: FakeTensorMode) -> list[PrefixGroup]:
    """The prefix groups of groups of samples in a step of supervised fine-tuning."""
    made = {id(group): make_prefix_groups(group, family) for group in groups}
    prefix_groups = [prefix_group for group in groups for prefix_group in made[id(group)]]
    return [replace(prefix_group, images=_faked(prefix_group.images, fake)) for prefix_group in prefix_groups]


def _faked(images: tuple, fake: FakeTensorMode) -> tuple:  # type: ignore[type-arg]
    return tuple(replace(p, tensors=fake_floats(fake, dict(p.tensors))) for p in images)
