"""What Gemma 3 and PaliGemma do in their own ways; that their numbers are right is `test_zoo`'s."""

import pytest
import torch
import zoo
from support import noise_image, sample

from vlm_r1.config import ModelConfig, PromptConfig
from vlm_r1.errors import ConfigError, DataError
from vlm_r1.models.layout import WHOLE
from vlm_r1.models.load import load_policy
from vlm_r1.prompts.parse import read_answer
from vlm_r1.records import LabelledBox, Truth
from vlm_r1.sft.batch import make_prefix_groups
from vlm_r1.sft.targets import target_ids

CAT = LabelledBox(box=(25.0, 30.0, 75.0, 60.0), label="cat")
DOG = LabelledBox(box=(0.0, 0.0, 200.0, 120.0), label="dog")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root, entries = tmp_path_factory.mktemp("gemma"), zoo.zoo()
    for name in ("gemma3", "paligemma"):
        (root / name).mkdir()
        entries[name].build(root / name)
    return root


@pytest.fixture(scope="module")
def paligemma(folders):
    return zoo.load(folders / "paligemma")


def test_every_image_of_gemma3_is_a_block(folders):
    family = zoo.load(folders / "gemma3").family
    prompt = family.encode(sample("both", noise_image(20, 20), noise_image(30, 10, 1)))
    shown = torch.tensor(prompt.token_ids) == family.model.config.image_token_id
    assert prompt.blocks[shown].tolist() == [0] * 16 + [1] * 16
    assert (prompt.blocks[~shown] == -1).all()
    assert family.encode(sample("none")).blocks is None


def test_a_prompt_of_paligemma_is_images_then_question_and_sees_itself(paligemma):
    prompt = paligemma.family.encode(sample("the cat", noise_image(20, 20)))
    assert paligemma.tokenizer.decode(prompt.token_ids) == "<image>" * 16 + "<bos>the cat\n"
    assert prompt.positions[0].tolist() == [*range(1, len(prompt.token_ids) + 1)]
    assert prompt.next_position == len(prompt.token_ids) + 1
    assert set(prompt.blocks.tolist()) == {WHOLE}


def test_the_question_stands_in_the_recipes_template(folders):
    template = PromptConfig(template="detect {question}")
    loaded = load_policy(ModelConfig(path=str(folders / "paligemma")), template)
    prompt = loaded.family.encode(sample("cat ; dog", noise_image(20, 20)))
    assert loaded.tokenizer.decode(prompt.token_ids).endswith("<bos>detect cat ; dog\n")


def test_paligemma_wants_a_image_and_takes_no_limits(folders, paligemma):
    with pytest.raises(DataError, match="sample s: has no image, and PaliGemma takes none without"):
        paligemma.family.encode(sample("how many?"))
    with pytest.raises(DataError, match="image placeholder"):
        paligemma.family.encode(sample("what is <image>?", noise_image(20, 20)))
    with pytest.raises(ConfigError, match=r"model\.max_pixels: paligemma resizes every image"):
        zoo.load(folders / "paligemma", max_pixels=1000)


@pytest.mark.parametrize("task", ["rec", "ovd"])
def test_boxes_are_taught_as_location_tokens_and_read_back(paligemma, task):
    asked = sample("cat", noise_image(200, 120), truth=Truth(boxes=(CAT, DOG)), task=task)
    prompt = paligemma.family.encode(asked)
    ids = target_ids(prompt, paligemma.family)
    text = paligemma.tokenizer.decode(ids, skip_special_tokens=True)
    both = "<loc0256><loc0128><loc0512><loc0384> cat ; <loc0000><loc0000><loc1023><loc1023> dog"
    assert text == f"<think></think><answer>{both if task == 'ovd' else both.partition(' ;')[0]}</answer>"
    location = paligemma.tokenizer.convert_tokens_to_ids("<loc0256>")
    assert ids.count(location) == 1  # a token of its own
    answer = read_answer(text, asked, prompt.box_map)
    assert [b.label for b in answer.value] == (["cat", "dog"] if task == "ovd" else ["cat"])
    for found, true in zip(answer.value, (CAT, DOG), strict=False):
        assert found.box == pytest.approx(true.box, abs=200 / 1024)


def test_a_recipe_may_ask_paligemma_for_json(folders):
    thousandths = PromptConfig(template="plain", coordinates="relative_1000")
    loaded = load_policy(ModelConfig(path=str(folders / "paligemma")), thousandths)
    prompt = loaded.family.encode(sample("cat", noise_image(200, 120), truth=Truth(boxes=(CAT,))))
    text = loaded.tokenizer.decode(target_ids(prompt, loaded.family), skip_special_tokens=True)
    assert text == "<think></think><answer>[125, 250, 375, 500]</answer>"


def test_questions_to_paligemma_do_not_share_a_image(folders, paligemma):
    shown = noise_image(48, 32)
    asked = [sample("the cat", shown), sample("the dog", shown)]
    groups = make_prefix_groups(asked, paligemma.family)
    assert [group.token_ids.tolist() for group in groups] == [
        list(paligemma.family.encode(one).token_ids) for one in asked
    ]
    assert [completion.context for group in groups for completion in group.completions] == [0, 0]
    assert len(make_prefix_groups(asked, zoo.load(folders / "gemma3").family)) == 1


def test_gemma_3_is_taught_to_end_its_turn_as_its_template_does(folders):
    loaded = zoo.load(folders / "gemma3")
    turn = loaded.tokenizer.convert_tokens_to_ids("<end_of_turn>")
    loaded.policy.model.generation_config.eos_token_id = [1, turn]
    prompt = loaded.family.encode(sample("how many?", truth=Truth(number=3.0), task="count"))
    assert target_ids(prompt, loaded.family)[-1] == turn
    other = zoo.load(folders / "gemma3")
    other.policy.model.generation_config.eos_token_id = 1  # rollouts would not stop at the end of a turn
    assert other.family.end_token_id == other.tokenizer.eos_token_id


def test_paligemma_has_no_turns_and_ends_with_end_of_text(paligemma):
    assert paligemma.family.end_token_id == paligemma.tokenizer.eos_token_id
