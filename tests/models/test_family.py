"""What a family states, against the processor's own call and the published meaning of its coordinates."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support import FAMILIES, PLAIN, noise_image, plain_model, sample, tiny

from vlm_r1.boxes import BoxMap
from vlm_r1.config import PromptConfig
from vlm_r1.errors import DataError
from vlm_r1.models import family as family_module
from vlm_r1.models.families import FAMILIES as REGISTRY
from vlm_r1.models.policy import merge_images
from vlm_r1.prompts.templates import chat_messages
from vlm_r1.records import SampleImage, VisionInput


def vision(prompt):
    """The tensors of a prompt's images."""
    return merge_images(prompt.images)


def cases():
    return [
        sample("the red circle", noise_image(48, 32)),
        sample("how many?"),
        sample("both of them", noise_image(33, 70, 1), noise_image(101, 47, 2)),
        sample("one <think> and a tag", noise_image(200, 20, 3)),
    ]


def another(loaded, **options):
    """The family with other settings."""
    settings = PromptConfig(**{"template": "plain", **options.pop("prompt", {})})
    limits = {"min_pixels": None, "max_pixels": None, **options}
    return type(loaded.family)(loaded.policy.model, loaded.processor, settings, **limits)


@pytest.mark.parametrize("case", range(4), ids=["one", "none", "two", "wide"])
@pytest.mark.parametrize("name", FAMILIES)
def test_encoding_equals_the_processors_own_call(name, case):
    loaded, one = tiny(name), cases()[case]
    prompt = loaded.family.encode(one)
    text = loaded.processor.apply_chat_template(
        chat_messages(one, PLAIN.template), tokenize=False, add_generation_prompt=True
    )
    images = [p.open() for p in one.images] or None
    expected = loaded.processor(text=[text], images=images, return_tensors="pt", add_special_tokens=False)
    assert list(prompt.token_ids) == expected["input_ids"][0].tolist()
    assert vision(prompt).keys() == expected.keys() & {"pixel_values", "image_grid_thw"}
    for key, value in vision(prompt).items():
        assert torch.equal(value, expected[key])
    model = plain_model(loaded)
    kinds = (expected["input_ids"] == model.config.image_token_id).int()
    positions, delta = model.model.get_rope_index(
        expected["input_ids"], kinds, image_grid_thw=expected.get("image_grid_thw")
    )
    assert torch.equal(prompt.positions, positions[:, 0])
    assert prompt.next_position == int(delta) + len(prompt.token_ids)  # where transformers' generation goes on


def test_positions_of_a_image_by_hand():
    loaded = tiny()
    prompt = loaded.family.encode(sample("q", noise_image(48, 32)))
    at = [i for i, t in enumerate(prompt.token_ids) if t == loaded.policy.model.config.image_token_id]
    start = at[0]
    assert len(at) == 6 and prompt.positions[:, :start].tolist() == [list(range(start))] * 3
    time, rows, columns = (prompt.positions[axis, at].tolist() for axis in range(3))
    assert time == [start] * 6
    assert rows == [start, start, start, start + 1, start + 1, start + 1]
    assert columns == [start, start + 1, start + 2] * 2
    assert prompt.positions[:, at[-1] + 1].tolist() == [start + 3] * 3  # after the larger of the two sides


def test_qwen3_writes_thousandths_of_the_image():
    prompt = tiny("qwen3_vl").family.encode(sample("q", noise_image(640, 480)))
    assert prompt.box_map.to_pixels((0, 0, 1000, 1000)) == pytest.approx((0, 0, 640, 480))
    assert prompt.box_map.to_pixels((500, 250, 750, 500)) == pytest.approx((320, 120, 480, 240))


def test_qwen25_writes_pixels_of_the_image_it_saw():
    loaded = tiny("qwen2_5_vl")
    prompt = loaded.family.encode(sample("q", noise_image(100, 70)))
    # Sides are rounded to multiples of 16: 100 -> 96, 70 -> 64.
    assert vision(prompt)["image_grid_thw"].tolist() == [[1, 8, 12]]
    assert prompt.box_map.to_pixels((0, 0, 96, 64)) == pytest.approx((0, 0, 100, 70))
    assert prompt.box_map.to_pixels((48, 16, 96, 32)) == pytest.approx((50, 17.5, 100, 35))


@pytest.mark.parametrize(
    ("coordinates", "expected"),
    [("original_pixels", (10, 20, 30, 40)), ("relative_1000", (2, 2, 6, 4))],
)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_recipe_may_choose_the_coordinates(name, coordinates, expected):
    family = another(tiny(name), prompt={"coordinates": coordinates})
    box_map = family.encode(sample("q", noise_image(200, 100))).box_map
    assert box_map.to_pixels((10, 20, 30, 40)) == pytest.approx(expected)


def test_boxes_are_about_the_first_image_and_none_needs_no_map():
    family = tiny("qwen3_vl").family
    two = family.encode(sample("q", noise_image(64, 32), noise_image(320, 320)))
    assert two.box_map.to_pixels((0, 0, 1000, 1000)) == pytest.approx((0, 0, 64, 32))
    assert family.encode(sample("q")).box_map == BoxMap()


@given(st.integers(16, 400), st.integers(16, 400), st.tuples(*[st.floats(0, 1)] * 4))
def test_box_maps_go_there_and_back(width, height, shares):
    box = (shares[0] * width, shares[1] * height, shares[2] * width, shares[3] * height)
    grid = torch.tensor([[1, 2 * round(height / 16) or 2, 2 * round(width / 16) or 2]])
    seen = VisionInput(key="k", tensors={"image_grid_thw": grid})
    for name in FAMILIES:
        box_map = tiny_family(name).box_map((width, height), seen)
        assert box_map.to_pixels(box_map.to_model(box)) == pytest.approx(box, abs=1e-6)


def tiny_family(name, found={}):  # noqa: B006  (hypothesis asks many times)
    if name not in found:
        found[name] = tiny(name).family
    return found[name]


def test_limits_change_what_the_model_is_shown():
    loaded = tiny()
    large = noise_image(256, 256)
    small = another(loaded, max_pixels=64 * 64).encode(sample("q", large))
    assert vision(small)["image_grid_thw"].tolist() == [[1, 8, 8]]
    assert vision(loaded.family.encode(sample("q", large)))["image_grid_thw"].tolist() == [[1, 32, 32]]
    grown = another(loaded, min_pixels=64 * 64).encode(sample("q", noise_image(16, 16)))
    assert vision(grown)["image_grid_thw"].tolist() == [[1, 8, 8]]


def test_placeholders_are_banned_by_both_families():
    for name in FAMILIES:
        loaded = tiny(name)
        words = [loaded.tokenizer.convert_ids_to_tokens(i) for i in loaded.policy.suppressed.tolist()]
        assert words == ["<|image_pad|>", "<|video_pad|>"]


def test_a_placeholder_in_the_question_is_named_with_its_sample():
    with pytest.raises(DataError, match=r"sample s9: the text holds an image placeholder \(<\|image_pad\|>\); remove"):
        tiny().family.encode(sample("what is <|image_pad|>?", noise_image(32, 32), id="s9"))


def test_a_image_that_cannot_be_read_is_named_with_its_sample(tmp_path):
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    for name in ("missing.png", "cut.png"):
        with pytest.raises(DataError, match=f"sample s4: .*{name}"):
            tiny().family.encode(sample("q", SampleImage(path=tmp_path / name), id="s4"))


def test_an_image_that_the_model_does_not_take_is_named_with_its_sample():
    with pytest.raises(DataError, match=r"sample s4: image of 2000x5 pixels: the model's image processor refuses it"):
        tiny().family.encode(sample("q", noise_image(2000, 5), id="s4"))


def test_half_a_character_is_named_with_its_sample():
    with pytest.raises(DataError, match=r"sample s4: half a character \(a lone surrogate\) in .*ud83d"):
        tiny().family.encode(sample("the \ud83d", id="s4"))


def test_a_image_is_processed_once_while_it_is_cached(monkeypatch, tmp_path):
    monkeypatch.setattr(family_module, "CACHED_IMAGES", 2)
    family = another(tiny())
    opened = []
    open_image = SampleImage.open
    monkeypatch.setattr(SampleImage, "open", lambda self: opened.append(self.path) or open_image(self))
    paths = [tmp_path / f"{n}.png" for n in range(3)]
    for n, path in enumerate(paths):
        noise_image(32, 32, n).image.save(path)
    for n in (0, 0, 1, 0, 2, 0, 1):  # 2 pushes out 1, which was not used for the longest
        family.encode(sample("q", SampleImage(path=paths[n])))
    assert [p.name for p in opened] == ["0.png", "1.png", "2.png", "1.png"]


def test_images_in_memory_are_told_apart():
    family = another(tiny())
    one, two = (family.encode(sample("q", SampleImage(image=Image.new("RGB", (32, 32), c)))) for c in ("red", "blue"))
    assert not torch.equal(vision(one)["pixel_values"], vision(two)["pixel_values"])


def test_grey_and_transparent_images_become_rgb():
    for mode in ("L", "RGBA", "P", "1"):
        prompt = tiny().family.encode(sample("q", SampleImage(image=Image.new(mode, (32, 32)))))
        assert vision(prompt)["pixel_values"].shape == (16, 3 * 2 * 8 * 8)


def test_the_registry_names_both_families():
    assert set(FAMILIES) <= set(REGISTRY)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_staged_images_give_the_same_features(precision):
    policy, family = tiny().policy.to(precision), tiny().family
    policy.compute_dtype = precision
    prompt = family.encode(cases()[2])
    staged = policy.stage(prompt)
    for before, after in zip(prompt.images, staged.images, strict=True):
        assert after.key == before.key and before.tensors["pixel_values"].dtype == torch.float32
        assert after.tensors["pixel_values"].dtype == precision
        assert torch.equal(after.tensors["image_grid_thw"], before.tensors["image_grid_thw"])
    with torch.no_grad():
        expected, found = (policy.encode_images(p.images).pooler_output for p in (prompt, staged))
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


@pytest.mark.gpu
def test_staged_images_are_pinned_and_give_the_same_features_on_a_gpu():
    policy, family = tiny().policy.cuda(), tiny().family
    prompt = family.encode(cases()[2])
    staged = policy.stage(prompt)
    assert all(tensor.is_pinned() for image in staged.images for tensor in image.tensors.values())
    with torch.no_grad():
        expected, found = (policy.encode_images(p.images).pooler_output for p in (prompt, staged))
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_two_threads_may_encode():
    family = another(tiny())
    samples = [sample(f"number {n}", noise_image(32 + 8 * n, 40, n)) for n in range(6)]
    expected = [family.encode(s).token_ids for s in samples]
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(lambda s: family.encode(s).token_ids, samples * 20))
    assert found == expected * 20
