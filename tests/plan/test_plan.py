"""Plans against real steps (torch's profiler sees every allocation), against models that are loaded, and by hand."""

import sys
from functools import cache
from pathlib import Path

import pytest
import torch
import zoo
from support import PLAIN, recipe, save_tiny, scratch

from vlm_r1.config import ModelConfig, Recipe
from vlm_r1.errors import ConfigError, ModelError
from vlm_r1.models.adapters import adapt
from vlm_r1.models.freeze import freeze
from vlm_r1.models.load import load_policy
from vlm_r1.plan import skeleton
from vlm_r1.plan.machine import Machine
from vlm_r1.plan.make import OPTIMIZER, REFERENCE, WEIGHTS, make_plan, static_bytes
from vlm_r1.plan.phases import gradient_bytes
from vlm_r1.plan.prompts import find_questions
from vlm_r1.plan.skeleton import build_skeleton
from vlm_r1.plan.trace import GRADIENTS
from vlm_r1.runtime.model_folder import save_model

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from _memory import measure

TOLERANCE = 0.05
LAYERS = 6
EVALUATED = {"eval": {"held": {"scenes": {"split": "in_domain", "n": 8}}}}
EVALUATION = {"batch_size": 8, "max_new_tokens": 12}
CHECKPOINTING = {"gradient_checkpointing": True}


def larger(family: str) -> dict:
    """`model.scratch` of a model of six layers a part, of which the plan runs three."""
    made = scratch(family)
    made["text_config"] |= {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": LAYERS}
    made["vision_config"] |= {"hidden_size": 64, "intermediate_size": 96, "out_hidden_size": 64, "depth": LAYERS}
    if family == "qwen2_5_vl":
        made["text_config"] |= {"num_attention_heads": 4, "num_key_value_heads": 2}
        made["vision_config"] |= {"fullatt_block_indexes": [1, 4]}
    else:
        made["vision_config"] |= {"deepstack_visual_indexes": [0, 2, 3]}
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """`folder(family)`: where a model of that size is saved."""

    @cache
    def _folder(family: str) -> Path:
        loaded = load_policy(ModelConfig(init="scratch", scratch=larger(family)), PLAIN)
        found = tmp_path_factory.mktemp("plan") / family
        found.mkdir()
        save_model(found, loaded.policy.model, loaded.processor, PLAIN)
        return found

    return _folder


@pytest.fixture
def planned(folder, tmp_path):
    """`planned(family, method, **sections)`: a recipe of a step of more than a thousand tokens."""

    def _planned(family: str = "qwen3_vl", method: str = "grpo", **sections) -> Recipe:
        scenes = {"split": "train", "n": 12, "per_image": 2 if method == "sft" else 1}
        base = {
            "data": {"train": [{"scenes": scenes}]},
            "rollout": {"max_new_tokens": 40},
            "rl": {"group_size": 6, "prompts_per_step": 4, "token_budget": 800},
            "sft": {"images_per_step": 12, "token_budget": 800},
        }
        merged = {name: base.get(name, {}) | sections.get(name, {}) for name in {*base, *sections}}
        path = sections.get("model", {}).get("path") or folder(family)
        merged["model"] = {"path": str(path), "precision": "float32"} | sections.get("model", {})
        return recipe(path, tmp_path / "run", method, **merged)

    return _planned


def assert_planned(run: Recipe, tolerance: float = TOLERANCE, processes: int = 1) -> None:
    plan, measured = make_plan(run, machine=Machine(processes=processes)), measure(run, processes)
    states = plan.phases["optimizer step"].total() - plan.phases["optimizer step"][GRADIENTS]
    planned = {name: plan.phases[name].total() if name in plan.phases else states for name in measured}
    found = {name: planned[name] / size for name, size in measured.items()}
    assert found == pytest.approx(dict.fromkeys(measured, 1.0), abs=tolerance)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("family", "method", "sections"),
    [
        ("qwen3_vl", "grpo", {"rl": {"token_budget": 10_000}, "model": {"precision": "bfloat16"}}),
        ("qwen2_5_vl", "grpo", {"rl": {"beta": 0.1}, "model": {"gradient_checkpointing": True}}),
        ("qwen3_vl", "sft", {"train": {"vision": "last_2", "connector": "frozen", "language": "last_3"}}),
        pytest.param("qwen3_vl", "grpo", {"data": EVALUATED, "eval": EVALUATION}, marks=SLOW),
        pytest.param("qwen2_5_vl", "grpo", {"train": {"vision": "frozen", "connector": "frozen"}}, marks=SLOW),
        pytest.param(
            "qwen3_vl", "sft", {"train": {"vision": "frozen"}, "model": {"precision": "bfloat16"}}, marks=SLOW
        ),
        ("qwen3_vl", "sft", {"model": {"precision": "bfloat16", **CHECKPOINTING}}),
    ],
    ids=[
        "bf16",
        "reference-checkpointing",
        "sft-last-blocks",
        "evaluation",
        "frozen-tower",
        "sft-frozen-tower-bf16",
        "sft-bf16-checkpointing",
    ],
)
def test_the_planned_peaks_are_those_of_a_real_step(planned, family, method, sections):
    assert_planned(planned(family, method, **sections))


def test_answers_are_decoded_in_the_pieces_that_the_recipe_allows(planned):
    run = planned(rollout={"max_new_tokens": 40, "max_sequences": 12})
    assert make_plan(run).sequences == 12
    assert_planned(run)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_planned_peaks_are_those_of_two_processes(planned, precision):
    """What gloo needs on a CPU is not planned: some buffers of its own."""
    run = planned(model={"precision": precision}, rl={"beta": 0.1}, prompt=PLAIN.model_dump())
    assert_planned(run, tolerance=0.15, processes=2)


def test_plain_positions_with_lora_are_planned_as_they_run(planned, tmp_path):
    zoo.zoo()["internvl"].build(tmp_path)
    assert_planned(planned(model={"path": str(tmp_path)}, train={"language": "lora"}))


@pytest.mark.slow
@pytest.mark.parametrize("sections", [{}, {"train": {"language": "lora"}}, {"model": {"gradient_checkpointing": True}}])
@pytest.mark.parametrize("name", zoo.zoo())
def test_every_family_is_planned_as_it_runs(planned, tmp_path, name, sections):
    """Two layers a part and a vocabulary of hundreds: small constants count for more than in a model of use."""
    zoo.zoo()[name].build(tmp_path)
    model = {"path": str(tmp_path)} | sections.get("model", {})
    assert_planned(planned(**sections | {"model": model}), tolerance=0.08)


def test_one_block_stands_for_those_like_it(planned, monkeypatch):
    """A plan that runs every block finds the same memory; blocks that are trained differ from frozen ones."""
    run = planned(method="sft", train={"vision": "full", "connector": "full", "language": "last_4"})
    few = make_plan(run).phases
    ran = []
    monkeypatch.setattr(skeleton, "repeats_of", lambda blocks: ran.append(len(blocks)) or [1] * len(blocks))
    every = make_plan(run).phases
    assert ran == [LAYERS, LAYERS]
    for name, phase in every.items():
        assert few[name].total() == pytest.approx(phase.total(), rel=0.002)


@pytest.mark.parametrize(
    "sections",
    [{}, {"train": {"vision": "last_2", "connector": "frozen"}}, {"train": {"vision": "lora", "language": "lora"}}],
    ids=["full", "last-blocks", "lora"],
)
def test_parameters_are_those_of_the_model_when_it_is_loaded(tmp_path, sections):
    run = recipe(save_tiny(tmp_path / "model"), tmp_path / "run", **sections)
    family = load_policy(run.model).family
    freeze(family, run.train)
    adapt(family, run.train, run.lora, 0)
    (tmp_path / "model" / "model.safetensors").unlink()  # a plan reads no weights
    plan = make_plan(run)
    for part, parameters in family.parameters().items():
        assert plan.parameters[part] == sum(p.numel() for p in parameters.values())
        assert plan.trained[part] == sum(p.numel() for p in parameters.values() if p.requires_grad)


def fixed(run: Recipe, processes: int = 1):
    built = build_skeleton(run, Machine(processes=processes))
    return built.totals, static_bytes(run, built) + gradient_bytes(built)


def test_fixed_memory_by_hand(planned):
    """Bytes a parameter: weight, reference, AdamW's two moments, gradient."""
    bfloat16 = {"model": {"precision": "bfloat16"}, "rl": {"beta": 0.1}}
    offload = {"model": {"precision": "bfloat16"}, "rl": {"beta": 0.1, "reference_offload": True}}
    cases = [
        ({"rl": {"beta": 0.1}}, 1, (4, 4, 8, 4)),
        ({"rl": {"beta": 0.1, "reference_offload": True}}, 1, (4, 0, 8, 4)),
        (bfloat16, 1, (4, 2, 8, 4)),
        (bfloat16, 2, (2, 1, 4, 2)),
        (offload, 4, (1, 0, 2, 1)),
    ]
    for sections, processes, sizes in cases:
        totals, found = fixed(planned(**sections), processes)
        held = [found[name] / sum(totals.values()) for name in (WEIGHTS, REFERENCE, OPTIMIZER, GRADIENTS)]
        assert held == pytest.approx(sizes, rel=0.002)  # beside the weights are a few buffers


def test_copies_of_the_weights_on_some_of_the_processes(planned):
    run = planned(run={"shard_size": 2})
    totals, found = fixed(run, 8)
    assert found[OPTIMIZER] / sum(totals.values()) == pytest.approx(8 / 2, rel=0.002)
    with pytest.raises(ConfigError, match="8 processes cannot be divided into groups of 3"):
        make_plan(planned(run={"shard_size": 3}), machine=Machine(processes=8))


def test_a_frozen_tower_is_whole_on_every_process(planned):
    frozen = {"vision": "frozen", "connector": "frozen"}
    totals, found = fixed(planned(train=frozen, model={"precision": "bfloat16"}), 2)
    tower = totals["vision"] + totals["connector"]
    assert found[WEIGHTS] == pytest.approx(2 * tower + 4 * totals["language"] / 2, rel=0.002)


def test_automatic_precision_is_that_of_a_gpu(planned):
    plan = make_plan(planned(model={"precision": "auto"}))
    assert plan.precision == "bfloat16" and plan.shard_size == 1
    assert make_plan(planned()).shard_size == 0


def test_8_bit_moments_by_hand(planned):
    """Matrices have two values of a byte and, for 256 of them, a scale of 4 bytes; small vectors stay float32."""
    made = larger("qwen3_vl")
    made["text_config"] |= {"hidden_size": 1024, "intermediate_size": 4096}
    made["vision_config"] |= {"out_hidden_size": 1024}
    run = planned(model={"init": "scratch", "scratch": made}, optim={"name": "adamw_8bit"})
    totals, found = fixed(run)
    assert found[OPTIMIZER] / sum(totals.values()) == pytest.approx(2 + 8 / 256, rel=0.02)
    with pytest.raises(ConfigError, match="cannot step on sharded weights"):
        make_plan(run, machine=Machine(processes=2))


def test_4_bit_weights_by_hand(tmp_path):
    folder = save_tiny(tmp_path / "model")
    sections = {"train": {"language": "lora"}, "lora": {"layers": ["down_proj"]}}
    model = {"path": str(folder), "precision": "float32"}
    _, whole = fixed(recipe(folder, tmp_path / "run", **sections, model=model))
    _, packed = fixed(recipe(folder, tmp_path / "run", **sections, model=model | {"quantize": "nf4"}))
    linear = 2 * (32 * 64 + 2 * 32 * 32 + 64 * 32 + 3 * 32 * 48)  # two layers: q, k and v, o, and three of the MLP
    assert whole[WEIGHTS] - packed[WEIGHTS] == pytest.approx(linear * (4 - 4.127 / 8), rel=1e-3)


def test_the_step_is_the_recipes_own(planned):
    plan = make_plan(planned())
    assert len(plan.prompts) == 4 and plan.questions == "the first 12 of data.train"
    assert sum(plan.rows) == sum(plan.prompts) + 4 * 6 * 39 and max(plan.rows) <= 800
    assert set(plan.images) == {36}  # 96 x 96 pixels in patches of 8, merged 2 x 2


def test_without_data_an_image_is_made_up(planned):
    plan = make_plan(planned(data={"train": []}, model={"max_pixels": 6400}))
    assert plan.questions == "data.train is empty: one image of 80 x 80 pixels is assumed"
    assert plan.images == [25] * 4
    assert "nowhere" in find_questions(planned(data={"train": [{"path": "nowhere/train.jsonl"}]})).source


def test_a_model_whose_code_asks_for_values_is_refused(planned, monkeypatch):
    def refuse(*_):
        raise torch._subclasses.fake_tensor.DataDependentOutputException("aten.item")

    monkeypatch.setattr("vlm_r1.plan.make._plan", refuse)
    with pytest.raises(ModelError, match=r'"qwen3_vl" asks for values \(aten.item\)'):
        make_plan(planned())
