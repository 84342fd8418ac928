"""Scenes: exact boxes, questions with one right answer, splits that share nothing."""

import re
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_r1.config import ScenesSource
from vlm_r1.data import scenes
from vlm_r1.data.scene_questions import KINDS, arrangement_for, ask
from vlm_r1.data.scene_things import COLOURS, SHAPES, SIZE, Scene, Thing, loosened, make_scene, shape_mask
from vlm_r1.data.scenes import SPLIT_SEEDS, load_scenes
from vlm_r1.errors import ConfigError

REFERRING = ("attribute", "relation", "superlative", "odd_one_out", "counting")
PLAIN = [kind for kind in KINDS if kind not in ("mark", "when")]  # those need larger images, and videos
SPLITS = tuple(SPLIT_SEEDS)


def centre(thing: Thing) -> tuple[float, float]:
    x1, y1, x2, y2 = thing.box
    return (x1 + x2) / 2, (y1 + y2) / 2


def is_a(thing: Thing, words: str) -> bool:
    """Whether "red circle", "red object", "circle", "object" fits a thing."""
    return all(word in (thing.colour, thing.shape, "object") for word in words.split())


def meant(question: str, things) -> list[Thing]:
    """Every thing that a referring expression fits, by the meaning of its English words alone."""
    text = question.removeprefix("the ")
    if text == "object that differs from all the others":
        return [t for t in things if sum(t.name == o.name for o in things) == 1]
    if text == "object whose color appears only once":
        return [t for t in things if sum(t.colour == o.colour for o in things) == 1]
    if match := re.fullmatch(r"(.+) (left of|right of|above|below) the (.+)", text):
        noun, words, other = match.groups()
        (anchor,) = [t for t in things if is_a(t, other)]
        (ax, ay) = centre(anchor)
        holds = {
            "left of": lambda x, y: x < ax,
            "right of": lambda x, y: x > ax,
            "above": lambda x, y: y < ay,
            "below": lambda x, y: y > ay,
        }[words]
        return [t for t in things if t is not anchor and is_a(t, noun) and holds(*centre(t))]
    word, _, noun = text.partition(" ")
    group = [t for t in things if is_a(t, noun)] if noun else []
    best = {
        "largest": lambda t: t.box[2] - t.box[0],
        "smallest": lambda t: t.box[0] - t.box[2],
        "leftmost": lambda t: -centre(t)[0],
        "rightmost": lambda t: centre(t)[0],
        "topmost": lambda t: -centre(t)[1],
        "lowest": lambda t: centre(t)[1],
    }
    if word in best:
        assert len(group) > 1
        return [t for t in group if best[word](t) == max(map(best[word], group))]
    if word in ("small", "large"):
        middle = 25  # nothing between the two sizes exists where a size is named
        return [t for t in group if (t.side < middle) == (word == "small") and not 22 < t.side < 28]
    return [t for t in things if is_a(t, text)]


@pytest.mark.parametrize("kind", REFERRING)
def test_every_referring_expression_fits_exactly_its_object(kind):
    asked = 0
    for seed in range(700):
        scene = make_scene(seed, arrangement_for(kind))
        found = ask(kind, scene.things, np.random.default_rng(seed))
        if found is None:
            continue
        asked += 1
        (true,) = found.truth.boxes
        fits = meant(found.question, scene.things)
        assert [t.box for t in fits] == [true.box], f"seed {seed}: {found.question}: {scene.things}"
        assert true.label == fits[0].name and true.label in found.think
        assert found.kind == kind and found.task == "rec"
    assert asked > 400


def test_relations_and_superlatives_hold_by_a_margin():
    for seed in range(300):
        things = make_scene(seed).things
        for kind in ("relation", "superlative"):
            found = ask(kind, things, np.random.default_rng(seed))
            if found is None or re.search("largest|smallest", found.question):
                continue
            words = re.search("left of|right of|above|below|leftmost|rightmost|topmost|lowest", found.question)[0]
            axis = 0 if re.match("left|right", words) else 1
            if kind == "relation":
                (anchor,) = [t for t in things if is_a(t, found.question.split(f"{words} the ")[1])]
                noun = re.fullmatch(f"the (.+) {words} .*", found.question)[1]
                gaps = [abs(centre(t)[axis] - centre(anchor)[axis]) for t in things if t != anchor and is_a(t, noun)]
                assert min(gaps) >= 6
            else:
                group = sorted(centre(t)[axis] for t in things if is_a(t, found.question.split(f"{words} ")[1]))
                ends = group[:2] if words in ("leftmost", "topmost") else group[-2:]
                assert ends[1] - ends[0] >= 6


def test_whole_scene_questions_are_complete():
    seen = set()
    for seed in range(300):
        things = make_scene(seed).things
        rng = np.random.default_rng(seed)
        everything = ask("list", things, rng)
        assert sorted((b.box, b.label) for b in everything.truth.boxes) == sorted((t.box, t.name) for t in things)
        assert [b.box[1] for b in everything.truth.boxes] == sorted(t.box[1] for t in things)
        detect = ask("detect", things, rng)
        names = detect.question.removeprefix("detect ").split(", ")
        assert len(names) == len(set(names))
        assert any(not any(t.name == n for t in things) for n in names)
        here = [(t.box, t.name) for t in things if t.name in names]
        assert sorted((b.box, b.label) for b in detect.truth.boxes) == sorted(here)
        count = ask("count", things, rng)
        noun = count.question.removeprefix("how many ").removesuffix("s").replace("crosse", "cross")
        assert count.truth.number == sum(is_a(t, noun) for t in things), count.question
        seen.add(count.truth.number)
    assert {0.0, 1.0, 2.0} <= seen


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("side", range(14, 41))
def test_a_shape_touches_all_four_sides_of_its_box(shape, side):
    mask = shape_mask(shape, side)
    assert mask.shape == (side, side)
    assert mask[0].any() and mask[-1].any() and mask[:, 0].any() and mask[:, -1].any()
    assert mask.all() == (shape == "square")


def test_boxes_are_the_extent_of_the_pixels_that_a_thing_paints():
    checked = 0
    for seed in range(150):
        scene = make_scene(seed)
        for number, thing in enumerate(scene.things):
            if any(meet(thing, other) for other in scene.things if other is not thing):
                continue
            # The same image with this thing in another colour differs where the thing is seen.
            other = Thing(colour="black" if thing.colour != "black" else "yellow", shape=thing.shape, box=thing.box)
            repainted = (*scene.things[:number], other, *scene.things[number + 1 :])
            images = [np.asarray(scene.draw()), np.asarray(Scene(seed=seed, things=repainted).draw())]
            shown = np.any(images[0] != images[1], axis=-1)
            columns, rows = shown.any(0).nonzero()[0], shown.any(1).nonzero()[0]
            assert thing.box == (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1), f"seed {seed}: {thing}"
            checked += 1
    assert checked > 300


def meet(a: Thing, b: Thing) -> bool:
    return a.box[0] < b.box[2] and b.box[0] < a.box[2] and a.box[1] < b.box[3] and b.box[1] < a.box[3]


def test_things_are_inside_the_image_and_hardly_overlap():
    for seed in range(300):
        things = make_scene(seed).things
        assert 2 <= len(things) <= 6
        for i, a in enumerate(things):
            assert 0 <= a.box[0] < a.box[2] <= SIZE and 0 <= a.box[1] < a.box[3] <= SIZE
            assert a.side == a.box[3] - a.box[1] and a.colour in COLOURS and a.shape in SHAPES
            for b in things[i + 1 :]:
                wide = max(0, min(a.box[2], b.box[2]) - max(a.box[0], b.box[0]))
                high = max(0, min(a.box[3], b.box[3]) - max(a.box[1], b.box[1]))
                assert wide * high < 0.12 * min(a.side, b.side) ** 2


def everything(split: str, n: int, per_image: int = 2):
    return load_scenes(ScenesSource(split=split, n=n, per_image=per_image, questions=dict.fromkeys(PLAIN, 1.0)))


def test_no_image_repeats_within_or_across_splits():
    keys, pairs = [], []
    for split in SPLITS:
        samples = everything(split, 500)
        for i, s in enumerate(samples):
            if i % 2 == 0:
                key = s.images[0].key
                keys.append(key)
            pairs.append((split, key, s.question))
    assert len(keys) == len(set(keys)) == 500 * len(SPLITS)
    across = {}
    for split, key, question in pairs:
        assert across.setdefault((key, question), split) == split


def test_splits_own_ranges_of_seeds_that_do_not_meet(monkeypatch):
    starts = sorted(SPLIT_SEEDS.values())
    assert all(b - a == 1 << 32 for a, b in pairwise(starts))
    made = []
    monkeypatch.setattr(scenes, "make_scene", lambda seed, *how: made.append(seed) or make_scene(seed, *how))
    for split in SPLITS:
        source = load_scenes(ScenesSource(split=split, n=1 << 32))
        assert len(source) == 1 << 32
        _ = source[0], source[len(source) - 1], source[-1]
    ends = [seed for split in SPLITS for seed in (SPLIT_SEEDS[split], SPLIT_SEEDS[split] + (1 << 32) - 1)]
    assert sorted(set(made)) == sorted(ends)


def test_more_images_than_a_split_owns_would_be_another_splits():
    with pytest.raises(ValueError, match="less than or equal to 4294967296"):
        ScenesSource(split="train", n=(1 << 32) + 1)


def test_samples_depend_on_their_place_alone():
    source = ScenesSource(split="train", n=30, per_image=3, questions=dict.fromkeys(PLAIN, 1.0), loosen=0.3)
    first, second = load_scenes(source), load_scenes(source)
    backwards = [second[i] for i in reversed(range(90))][::-1]
    longer = load_scenes(source.model_copy(update={"n": 31}))
    for i in range(90):
        a, b = first[i], backwards[i]
        for other in (b, longer[i]):
            for name in ("id", "question", "truth", "think", "task", "source"):
                assert getattr(a, name) == getattr(other, name)
            assert a.images[0].key == other.images[0].key
    assert len({s.id for s in backwards}) == 90


def test_questions_follow_their_weights():
    source = ScenesSource(split="train", n=600, questions={"attribute": 3.0, "count": 1.0})
    kinds = [s.source for s in load_scenes(source)]
    assert set(kinds) == {"scenes/attribute", "scenes/count"}
    assert 0.6 < kinds.count("scenes/attribute") / 600 < 0.9


def test_loosened_boxes_hold_the_true_ones_and_stay_inside():
    options = {"split": "train", "n": 200, "per_image": 2, "questions": {"attribute": 1.0, "list": 1.0}}
    exact, loose = (load_scenes(ScenesSource(**options, loosen=share)) for share in (0.0, 0.3))
    grown = 0
    for a, b in zip(exact, loose, strict=True):
        if a.question != b.question:
            continue
        for true, wide in zip(a.truth.boxes, b.truth.boxes, strict=True):
            t, w, limit = true.box, wide.box, 0.3 * (true.box[2] - true.box[0])
            assert 0 <= w[0] <= t[0] and 0 <= w[1] <= t[1] and t[2] <= w[2] <= SIZE and t[3] <= w[3] <= SIZE
            assert max(t[0] - w[0], t[1] - w[1], w[2] - t[2], w[3] - t[3]) <= limit
            assert true.label == wide.label
            grown += t != w
    assert grown > 200


@settings(max_examples=60, deadline=None)
@given(st.tuples(*[st.integers(0, SIZE // 2 - 1)] * 2, *[st.integers(SIZE // 2, SIZE)] * 2), st.floats(0, 1))
def test_loosening_keeps_any_box_inside_the_image(box, share):
    wide = loosened(tuple(map(float, box)), share, np.random.default_rng(0))
    assert 0 <= wide[0] <= box[0] and 0 <= wide[1] <= box[1] and box[2] <= wide[2] <= SIZE and box[3] <= wide[3] <= SIZE


def test_easy_scenes_are_few_large_and_distinct_and_hard_ones_crowded_small_and_alike():
    for seed in range(200):
        easy = make_scene(seed, difficulty="easy").things
        assert len(easy) <= 3 and all(28 <= t.side <= 40 for t in easy)
        assert len({t.colour for t in easy}) == len({t.shape for t in easy}) == len(easy)
        hard = make_scene(seed, difficulty="hard").things
        assert 6 <= len(hard) <= 8 and all(12 <= t.side <= 20 for t in hard)
        assert len({t.colour for t in hard}) <= 3 and len({t.shape for t in hard}) <= 2


@pytest.mark.parametrize("difficulty", ["easy", "hard"])
def test_questions_can_be_asked_about_scenes_of_any_difficulty(difficulty):
    for kind in ("attribute", "relation", "superlative", "list", "detect", "count"):
        samples = load_scenes(ScenesSource(n=20, difficulty=difficulty, questions={kind: 1.0}))
        assert {s.source for s in samples} == {f"scenes/{kind}"}


def test_detect_without_absent_kinds_names_what_is_there_alone():
    samples = load_scenes(ScenesSource(n=200, questions={"detect": 1.0}, absent=0.0))
    for s in samples:
        names = s.question.removeprefix("detect ").split(", ")
        assert set(names) == {b.label for b in s.truth.boxes} and 1 <= len(names) <= 3
    half = load_scenes(ScenesSource(n=400, questions={"detect": 1.0}, absent=0.5))
    with_absent = [set(s.question.removeprefix("detect ").split(", ")) > {b.label for b in s.truth.boxes} for s in half]
    assert 0.4 < np.mean(with_absent) < 0.6


def test_boxes_and_thought_of_detect_follow_the_order_of_its_names():
    several = 0
    for s in load_scenes(ScenesSource(n=200, questions={"detect": 1.0})):
        names = s.question.removeprefix("detect ").split(", ")
        places = [names.index(b.label) for b in s.truth.boxes]
        assert places == sorted(places)
        thought = s.think.removeprefix("present: ")
        assert [part.split(",")[0] for part in thought.split("; ")] == ([b.label for b in s.truth.boxes] or ["none"])
        several += len(set(places)) > 1
    assert several > 50


def test_label_noise_puts_a_share_of_boxes_around_other_objects_and_changes_nothing_else():
    options = {"n": 400, "questions": {"attribute": 1.0, "detect": 1.0}, "per_image": 2}
    clean, noisy = (load_scenes(ScenesSource(**options, label_noise=share)) for share in (0.0, 0.3))
    moved = []
    for number, (a, b) in enumerate(zip(clean, noisy, strict=True)):
        assert (a.question, a.think, a.images[0].key) == (b.question, b.think, b.images[0].key)
        things = clean.of_image(number // 2)
        assert [x.label for x in a.truth.boxes] == [x.label for x in b.truth.boxes]
        moved += [x.box != y.box for x, y in zip(a.truth.boxes, b.truth.boxes, strict=True)]
        assert things[0].images[0].key == a.images[0].key
    assert 0.25 < np.mean(moved) < 0.35
    everything = load_scenes(ScenesSource(n=50, questions={"list": 1.0}, label_noise=1.0))
    exact = load_scenes(ScenesSource(n=50, questions={"list": 1.0}))
    for a, b in zip(exact, everything, strict=True):
        known = {x.box for x in a.truth.boxes}
        assert all(y.box in known and x.box != y.box for x, y in zip(a.truth.boxes, b.truth.boxes, strict=True))


def test_a_start_shows_later_images_of_the_same_split():
    options = {"questions": {"attribute": 1.0, "detect": 1.0}, "split": "tune"}
    later = load_scenes(ScenesSource(n=10, start=5, **options))
    whole = load_scenes(ScenesSource(n=15, **options))
    assert [(s.id, s.question) for s in later] == [(s.id, s.question) for s in whole][5:]
    with pytest.raises(ValueError, match=r"beyond the 2\*\*32 images"):
        ScenesSource(n=2, start=(1 << 32) - 1)


def test_an_unknown_kind_of_question_is_named():
    with pytest.raises(ConfigError, match='unknown kind "atribute"; did you mean "attribute"'):
        load_scenes(ScenesSource(questions={"atribute": 1.0}))


def test_places_outside_are_index_errors():
    source = load_scenes(ScenesSource(n=3))
    assert source[-1].id == source[2].id and [s.id for s in source[1:]] == [source[1].id, source[2].id]
    for index in (3, -4):
        with pytest.raises(IndexError):
            source[index]
