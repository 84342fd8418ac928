"""Images of groups: boxes in the colour of their reward, answers in words."""

from dataclasses import replace

import pytest
from PIL import Image, ImageColor
from support import sample

from vlm_r1.data.draw import TRUE_COLOR
from vlm_r1.records import Answer, LabelledBox, ParseFailure, Prompt, RolloutGroup, SampleImage, Score, Truth
from vlm_r1.rl.experience import Experience
from vlm_r1.rl.images import HIGH, LOW, MIDDLE, UNSCORED, draw_group, reward_colors, rollout_images

LINE, MARGIN = 20, 8
BOX = (10.0, 10.0, 30.0, 30.0)


def group(size=(100, 80), box=BOX, question="the red circle"):
    images = [SampleImage(image=Image.new("RGB", size, "white"))] if size else []
    truth = Truth(boxes=(LabelledBox(box=box),)) if box else Truth(number=3.0)
    prompt = Prompt(
        sample=sample(question, *images, truth=truth),
        token_ids=(),
        positions=None,
        next_position=0,
        images=(),
        box_map=None,
    )
    return RolloutGroup(prompt=prompt, rollouts=())


def boxed(*box):
    return Answer(raw=f"<answer>{box}</answer>", text=str(box), value=(LabelledBox(box=box),))


def scores(*totals):
    return [Score(total=total) for total in totals]


def colors(image):
    return {color for _, color in image.getcolors(maxcolors=1 << 24)}


def rgb(name):
    return ImageColor.getrgb(name)


def test_boxes_have_the_color_of_their_reward():
    answers = [boxed(40, 10, 60, 30), boxed(70, 40, 90, 60), boxed(10, 45, 30, 65)]
    drawn = draw_group(group(), answers, scores(0.25, 0.5, 0.75))
    # 100 pixels grow by the whole factor 4; below are the question, the truth and three answers.
    assert drawn.size == (400, 320 + 5 * LINE + 2 * MARGIN)
    assert drawn.getpixel((40, 40)) == rgb(TRUE_COLOR)
    assert [drawn.getpixel(at) for at in ((160, 40), (280, 160), (40, 180))] == [rgb(LOW), rgb(MIDDLE), rgb(HIGH)]


def test_the_caption_lists_answers_from_the_best_to_the_worst():
    answers = [boxed(40, 10, 60, 30), Answer(raw="eh", failure=ParseFailure(kind="no_answer")), boxed(1, 1, 9, 9)]
    drawn = draw_group(group(), answers, scores(0.0, None, 1.0))
    swatches = [drawn.getpixel((MARGIN + 6, 320 + MARGIN + line * LINE + 9)) for line in range(1, 5)]
    assert swatches == [rgb(color) for color in (TRUE_COLOR, HIGH, LOW, UNSCORED)]


def test_of_many_answers_the_best_and_the_worst_are_shown():
    answers = [boxed(1 + i, 1, 50 + i, 40) for i in range(16)]
    totals = [i / 15 for i in range(16)]
    drawn = draw_group(group(), answers, scores(*totals))
    assert drawn.size == (400, 320 + (2 + 8 + 1) * LINE + 2 * MARGIN)
    shown = reward_colors(scores(*totals))
    assert {rgb(c) for c in shown[:4] + shown[-4:]} <= colors(drawn)
    assert not {rgb(c) for c in shown[4:-4]} & colors(drawn)


def test_large_images_shrink_and_small_captions_keep_their_width():
    assert draw_group(group((1280, 320)), [boxed(1, 1, 9, 9)], scores(1.0)).size == (640, 160 + 3 * LINE + 2 * MARGIN)
    assert draw_group(group((10, 400)), [boxed(1, 1, 9, 9)], scores(1.0)).size == (320, 400 + 3 * LINE + 2 * MARGIN)


def test_long_texts_and_answers_without_boxes_fit():
    answers = [Answer(raw="3", text="3", value=3.0), Answer(raw="word " * 500), Answer(raw="", text="", value="")]
    drawn = draw_group(group(box=None, question="how many? " * 200), answers, scores(1.0, 0.0, 0.0))
    assert drawn.size == (400, 320 + (3 + 1 + 3) * LINE + 2 * MARGIN)


def test_colors_follow_the_place_in_the_group():
    assert reward_colors(scores(-2.0, 0.0, 2.0, None)) == [LOW, MIDDLE, HIGH, UNSCORED]
    assert reward_colors(scores(0.5, 0.5)) == [MIDDLE, MIDDLE]
    assert reward_colors(scores(None, None)) == [UNSCORED, UNSCORED]
    low, high = rgb(LOW), rgb(MIDDLE)
    assert rgb(reward_colors(scores(0.0, 1.0, 4.0))[1]) == pytest.approx(
        [(a + b) / 2 for a, b in zip(low, high, strict=True)], abs=0.5
    )


def test_the_first_groups_with_a_image_are_drawn():
    groups = [group(None), *(group((100 + i, 80)) for i in range(6))]
    groups = [replace(g, prompt=replace(g.prompt, number=10 + n)) for n, g in enumerate(groups)]
    experience = Experience(
        groups=groups,
        answers=[[boxed(1, 1, 9, 9)]] * 7,
        scores=[scores(1.0)] * 7,
        rewards_PG=None,
        advantages_PG=None,
    )
    assert [(number, drawn.width) for number, drawn in rollout_images(experience)] == [
        (11, 400),
        (12, 404),
        (13, 408),
        (14, 412),
    ]
