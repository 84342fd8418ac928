"""What is trained: counted by hand from the modules, for each part; and what is frozen does not move."""

import pytest
import torch
from support import recipe, save_tiny, tiny

from vlm_r1.config import TrainConfig
from vlm_r1.errors import ConfigError
from vlm_r1.models.freeze import blocks_of, freeze, learning_rate_scales
from vlm_r1.rl import loop


def size(*modules) -> int:
    return sum(p.numel() for p in {id(p): p for m in modules for p in m.parameters()}.values())


def parts(model):
    """(tower without mergers, mergers, language model with head) of a Qwen model, by hand."""
    tower, mergers = model.model.visual, [model.model.visual.merger]
    mergers += list(getattr(tower, "deepstack_merger_list", []))
    return size(tower) - size(*mergers), size(*mergers), size(model.model.language_model, model.lm_head)


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl"])
def test_everything_is_trained_by_default(family):
    loaded = tiny(family)
    vision, connector, language = parts(loaded.policy.model)
    counts = freeze(family_of(loaded), TrainConfig())
    assert counts == {"vision": vision, "connector": connector, "language": language}
    assert all(p.requires_grad for p in loaded.policy.parameters())


def family_of(loaded):
    """The family of this very copy of the model."""
    found = object.__new__(type(loaded.family))
    found.__dict__.update(loaded.family.__dict__ | {"model": loaded.policy.model})
    return found


@pytest.mark.parametrize("frozen", [("vision",), ("connector",), ("language",), ("vision", "connector")])
def test_frozen_parts_are_found_by_module(frozen):
    loaded = tiny()
    expected = dict(zip(("vision", "connector", "language"), parts(loaded.policy.model), strict=True))
    counts = freeze(family_of(loaded), TrainConfig(**dict.fromkeys(frozen, "frozen")))
    assert counts == {part: 0 if part in frozen else n for part, n in expected.items()}
    merger = loaded.policy.model.model.visual.merger
    assert all(p.requires_grad == ("connector" not in frozen) for p in merger.parameters())


def test_the_last_blocks_of_tower_and_language_model():
    loaded = tiny()
    model = loaded.policy.model.model
    counts = freeze(family_of(loaded), TrainConfig(vision="last_1", connector="frozen", language="last_1"))
    tower, language = model.visual.blocks[-1], model.language_model.layers[-1]
    assert counts == {"vision": size(tower), "connector": 0, "language": size(language)}
    assert all(p.requires_grad for p in [*tower.parameters(), *language.parameters()])
    assert blocks_of(family_of(loaded), "vision") == list(model.visual.blocks)
    with pytest.raises(ConfigError, match=r"train\.vision: last_3, but there are 2 blocks"):
        freeze(family_of(loaded), TrainConfig(vision="last_3"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vision": "frozen", "connector": "frozen", "language": "frozen"}, "every part is frozen"),
        ({"language": "lora", "connector": "full"}, "beside a part with lora"),
        ({"connector": "last_1"}, "the connector has no blocks"),
        ({"vision": "forzen"}, r'"forzen" is not a way to train a part; did you mean "frozen"'),
        ({"vision": "last_0"}, '"last_0" is not a way'),
    ],
)
def test_contradictions_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**settings)


def test_beside_lora_the_other_parts_are_frozen():
    assert TrainConfig(language="lora").how() == {"vision": "frozen", "connector": "frozen", "language": "lora"}


@pytest.mark.parametrize("method", ["grpo", "sft"])
def test_frozen_parts_do_not_move_and_the_others_do(tmp_path, method):
    from safetensors.torch import load_file

    from vlm_r1.sft.train import train as sft

    folder = save_tiny(tmp_path / "model")
    reward = tmp_path / "reward.py"
    reward.write_text("def varied(completions, **columns):\n    return [float(len(set(c)) % 3) for c in completions]\n")
    settings = recipe(
        folder,
        tmp_path / "run",
        method,
        train={"vision": "frozen", "language": "last_1"},
        rewards={"parts": {f"{reward}:varied": 1.0}},
        optim={"lr": 1e-3},
    )
    (loop.train if method == "grpo" else sft)(settings)
    before, after = (load_file(f / "model.safetensors") for f in (folder, tmp_path / "run" / "final"))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and all("merger" in name or "language_model.layers.1." in name for name in moved)
    assert any("merger" in name for name in moved) and any("layers.1." in name for name in moved)


def test_learning_rates_of_parts():
    loaded = tiny()
    family = family_of(loaded)
    scales = learning_rate_scales(family, {"vision": 1e-7, "connector": None}, 1e-6)
    found = family.parameters()
    assert {id(p) for p in found["vision"].values()} == set(scales)
    assert list(scales.values()) == pytest.approx([0.1] * len(scales))
