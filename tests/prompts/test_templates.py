import pytest

from vlm_r1.errors import ConfigError, DataError
from vlm_r1.prompts.templates import TASKS, TEMPLATES, build_question, chat_messages, template_text, word_question
from vlm_r1.records import Sample, SampleImage, Truth


def sample(question="the red circle", task="rec", n_images=1):
    images = tuple(SampleImage(data=bytes([i])) for i in range(n_images))
    return Sample(id="7", question=question, truth=Truth(), task=task, images=images)


def test_the_paper_s_words_follow_the_question():
    text = build_question(sample("Where is it?"), "r1")
    assert text == (
        "Where is it? Output the thinking process in <think> </think> and final answer in <answer> </answer> tags."
    )


def test_the_released_checkpoints_words_end_with_json():
    assert build_question(sample("Where?"), "qwen_rec") == (
        "Where? First output the thinking process in <think> </think> tags and then output the final answer in "
        "<answer> </answer> tags. Output the final answer in JSON format."
    )


def test_plain_is_exactly_the_question():
    assert build_question(sample("a {question} {hint}  "), "plain") == "a {question} {hint}  "


def test_braces_in_a_question_are_left_alone():
    text = build_question(sample(r"\frac{1}{2} {hint} {x}"), "Q: {question} ({hint})")
    assert text == r"Q: \frac{1}{2} {hint} {x} (" + TASKS["rec"].hint + ")"


def test_the_instruction_words_a_bare_expression():
    assert word_question("rec", "the dog") == (
        "Please provide the bounding box coordinates of the region this sentence describes: the dog."
    )
    assert build_question(sample("the dog"), "{instruction}") == word_question("rec", "the dog")
    assert word_question("ovd", "cat, dog").startswith(
        "Please carefully check the image and detect the following objects: cat, dog."
    )


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(ConfigError, match=r'prompt.template: "qwen_rc".*did you mean "qwen_rec"'):
        template_text("qwen_rc")
    with pytest.raises(DataError, match=r'sample 7: unknown task "recc".*did you mean "rec"'):
        build_question(sample(task="recc"), "r1")
    with pytest.raises(DataError, match=r'unknown task "ovdd"'):
        word_question("ovdd", "x")


@pytest.mark.parametrize("n", [0, 1, 3])
def test_images_come_first_and_text_alone_where_there_are_none(n):
    messages = chat_messages(sample("Q", n_images=n), "plain")
    assert messages == [{"role": "user", "content": [{"type": "image"}] * n + [{"type": "text", "text": "Q"}]}]


@pytest.mark.parametrize("task", sorted(TASKS))
@pytest.mark.parametrize("template", sorted(TEMPLATES))
def test_every_task_can_be_put_in_every_template(task, template):
    text = build_question(sample("XYZ", task=task), template, "Tools: none.")
    assert "XYZ" in text
    assert "{" not in text.replace(TASKS[task].hint, "")


def test_task_names_are_their_keys():
    assert all(name == task.name for name, task in TASKS.items())
