"""The one-file example: it stands alone, it runs, and its packed rows are exact beside the plain padded forward."""

import ast
import importlib.util
import json
import sys

import numpy as np
import pytest
import torch
from support import PLAIN, assert_same_gradients, gradients, plain_logprobs, plain_model

from vlm_r1.config import ModelConfig
from vlm_r1.models.load import load_policy
from vlm_r1.records import LabelledBox, Rollout, RolloutGroup, Sample, SampleImage, Truth

ALLOWED = {"torch", "transformers", "PIL", "numpy"} | set(sys.stdlib_module_names)


@pytest.fixture(scope="module")
def file(root):
    return root / "examples" / "grpo_one_file.py"


@pytest.fixture(scope="module")
def example(file):
    spec = importlib.util.spec_from_file_location("grpo_one_file", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def played(example):
    """Three scenes with four answers each, cut to different lengths; the package's prompts of the same scenes."""
    torch.manual_seed(0)
    policy = example.Policy(example.MODEL)
    rng = np.random.default_rng(5)
    scenes = [example.make_scene(rng) for _ in range(3)]
    prompts = policy.prompts(scenes)
    tokens, logprobs, real, _ = example.rollout(policy, prompts, 4)
    lengths = torch.tensor([[1, 40, 3, 9], [40, 2, 17, 40], [5, 6, 40, 1]])
    real = real & (torch.arange(tokens.shape[2]) < lengths[..., None])
    loaded = load_policy(ModelConfig(path="tiny"), PLAIN)
    groups = []
    for p, scene in enumerate(scenes):
        truth = Truth(boxes=(LabelledBox(box=tuple(map(float, scene.box))),))
        sample = Sample(id=str(p), images=(SampleImage(image=scene.image),), question=scene.question, truth=truth)
        answers = [tuple(tokens[p, g][real[p, g]].tolist()) for g in range(4)]
        rollouts = tuple(Rollout(token_ids=a, logprobs=(0.0,) * len(a), text="", finish="length") for a in answers)
        groups.append(RolloutGroup(prompt=loaded.family.encode(sample), rollouts=rollouts))
    return policy, prompts, tokens, logprobs, real, loaded, groups


def test_it_stands_alone_and_is_short(file):
    text = file.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 320
    for node in ast.walk(ast.parse(text)):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        modules += [node.module] if isinstance(node, ast.ImportFrom) else []
        assert {module.partition(".")[0] for module in modules} <= ALLOWED


def test_two_steps_run_and_are_written_down(example, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(example, "HELD_OUT", 6)
    monkeypatch.setattr(example, "PROMPTS", 2)
    monkeypatch.setattr(example, "GROUP", 4)
    out = tmp_path / "made" / "result.json"
    monkeypatch.setattr(sys, "argv", ["grpo_one_file.py", "--steps", "2", "--seed", "3", "4", "--out", str(out)])
    example.main()
    printed = capsys.readouterr().out
    assert printed.count("step ") == 4 and "held-out mean IoU" in printed
    result = json.loads(out.read_text())
    assert [run["seed"] for run in result["runs"]] == [3, 4]
    for run in result["runs"]:
        assert run["before"] == result["runs"][0]["before"], "every seed has the same held-out questions"
        assert run["gain"] == pytest.approx(run["after"]["mean_iou"] - run["before"]["mean_iou"])
        assert 0 < run["logprob_gap"] < 1e-3


def test_a_folder_without_a_fitting_model_is_refused(example, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["grpo_one_file.py", "--model", str(tmp_path)])
    with pytest.raises(SystemExit) as stopped:
        example.main()
    assert stopped.value.code == 2 and "is not the folder of a Qwen3-VL model" in capsys.readouterr().err


def test_packed_and_sampled_logprobs_equal_the_padded_forward(example, played):
    policy, prompts, tokens, sampled, real, loaded, groups = played
    assert len({len(group.prompt.token_ids) for group in groups}) > 1, "some prompt is padded"
    with torch.no_grad():
        packed = example.packed_logprobs(policy, prompts, tokens, real)
        padded = plain_logprobs(plain_model(loaded), groups, policy.suppressed, 1.0)
    torch.testing.assert_close(packed[real], padded, atol=1e-5, rtol=0)
    torch.testing.assert_close(sampled[real], padded, atol=1e-5, rtol=0)


def test_packed_gradient_equals_the_padded_one(example, played):
    policy, prompts, tokens, sampled, real, loaded, groups = played
    advantages = torch.tensor([[1.0, -0.5, 0.25, -0.75], [0.5, 0.5, -1.5, 0.5], [-1.0, 0.0, 2.0, -1.0]])
    example.grpo_loss(example.packed_logprobs(policy, prompts, tokens, real), sampled, advantages, real).backward()
    ours = gradients(policy.model)
    model = plain_model(loaded)
    padded = plain_logprobs(model, groups, policy.suppressed, 1.0)
    lengths = [len(rollout.token_ids) for group in groups for rollout in group.rollouts]
    means = torch.stack([part.mean() for part in padded.split(lengths)])
    (-(advantages.flatten() * means).mean()).backward()  # at ratio 1 the surrogate has the gradient of A log pi
    assert_same_gradients(ours, gradients(model), 1e-4)


def test_answers_never_hold_placeholders(example, played):
    policy, prompts = played[:2]
    logprobs = policy.logprobs(policy.hidden(prompts.ids_PL, prompts.owner_PL, prompts.positions_3PL, **prompts.images))
    assert policy.tokenizer.convert_ids_to_tokens(policy.suppressed.tolist()) == ["<|image_pad|>", "<|video_pad|>"]
    assert (logprobs[..., policy.suppressed] == -torch.inf).all()
    torch.testing.assert_close(logprobs.exp().sum(-1), torch.ones(logprobs.shape[:-1]))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>red circle</think><answer>[0, 0, 500, 500]</answer>", 1.2),
        ("<think>x</think>\n<answer>[250,0,750,500]</answer>\n", 0.2 + 1 / 3),
        ("<think></think><answer>[500, 500, 1000, 1000]</answer>", 0.2),
        ("<think>x</think><answer>[500, 500, 0, 0]</answer>", 0.2),
        ("<think>x</think><answer>none</answer>", 0.2),
        ("<answer>[0, 0, 500, 500]</answer>", 0.0),
        ("<think>x</think><answer>[0, 0, 500, 500]</answer> so", 0.0),
        ("<think>x</think><answer>[0, 0, 1, 1]</answer><answer>[0, 0, 500, 500]</answer>", 0.0),
        ("", 0.0),
    ],
)
def test_reward_by_hand(example, text, expected):
    # 500 thousandths of 96 pixels are 48. Boxes half a side apart share 1 part of 3.
    assert example.reward(text, (0, 0, 48, 48)) == pytest.approx(expected)


def test_advantages_and_loss_by_hand(example):
    advantages = example.advantages(torch.tensor([[0.0, 1.0, 2.0], [0.7, 0.7, 0.7]]))
    torch.testing.assert_close(advantages, torch.tensor([[-1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]), atol=2e-4, rtol=0)
    old = torch.zeros(1, 2, 2)
    new = torch.tensor([[[np.log(1.5), np.log(1.1)], [np.log(0.5), 500.0]]], dtype=torch.float32, requires_grad=True)
    real = torch.tensor([[[True, True], [True, False]]])
    loss = example.grpo_loss(new, old, torch.tensor([[1.0, -1.0]]), real)
    # Answer 1: min(1.5, 1.2) and 1.1. Answer 2: -max(0.5, 0.8); what lies behind its end does not count.
    assert loss.item() == pytest.approx(-((1.2 + 1.1) / 2 - 0.8) / 2, abs=1e-6)
    loss.backward()
    torch.testing.assert_close(new.grad, torch.tensor([[[0.0, -1.1 / 4], [0.0, 0.0]]]))


def test_a_place_sees_the_prompt_and_its_own_answer(example):
    # A padded prompt of one token, answers of two tokens and of one (padded).
    owner = torch.tensor([[-1, 0, 1, 1, 2, -1]])
    seen = example.visible(owner, 5)[0].int().tolist()
    assert seen == [[0, 1, 0, 0, 0, 0], [0, 1, 1, 0, 0, 0], [0, 1, 1, 1, 0, 0], [0, 1, 0, 0, 1, 0], [1, 1, 0, 0, 0, 1]]


def test_scenes_ask_for_one_shape_inside_its_box(example):
    rng = np.random.default_rng(0)
    for _ in range(100):
        scene = example.make_scene(rng)
        pixels = np.array(scene.image).astype(int)
        x1, y1, x2, y2 = scene.box
        painted = (pixels[y1:y2, x1:x2] != pixels[0, 0]).any(-1)  # shapes keep a pixel from the image's corner
        assert painted[0].any() and painted[-1].any() and painted[:, 0].any() and painted[:, -1].any()
        assert x1 >= 1 and 14 <= x2 - x1 == y2 - y1 <= 40 and x2 < example.SIZE and y2 < example.SIZE


def test_the_kept_results_are_of_this_file(example, root):
    kept = json.loads((root / "docs" / "results" / "grpo_one_file.json").read_text())
    names = {"steps": "STEPS", "prompts": "PROMPTS", "group": "GROUP", "lr": "LEARNING_RATE", "held_out": "HELD_OUT"}
    assert kept["settings"] == {key: getattr(example, name) for key, name in names.items()}
    assert len(kept["runs"]) == 3 and kept["smallest_gain"] >= 0.05
