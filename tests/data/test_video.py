"""Videos as rows: clips and frames, what is wrong with them, and prompts whose frames carry their times."""

import json

import numpy as np
import pytest
import torch
import zoo
from PIL import Image
from support import assert_same_gradients, gradients, noise_image, sample

from vlm_r1.boxes import BoxMap
from vlm_r1.config import DataSource, ScenesSource
from vlm_r1.data.check import inspect_file
from vlm_r1.data.scenes import FRAME_S, load_scenes
from vlm_r1.data.source import load_source
from vlm_r1.errors import ConfigError, DataError
from vlm_r1.models.packing import pack
from vlm_r1.prompts.parse import read_answer
from vlm_r1.rewards.text import tiou
from vlm_r1.rl.batch import as_prefix_group

LEVELS = [20 * i for i in range(10)]
FRAMES = [Image.new("RGB", (64, 48), (level, 0, 255 - level)) for level in LEVELS]


def clip(path):
    """Ten frames at five a second, redder from one to the next."""
    if path.suffix == ".mp4":
        av = pytest.importorskip("av")
        with av.open(str(path), "w") as container:
            stream = container.add_stream("mpeg4", rate=5)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for image in FRAMES:
                container.mux(stream.encode(av.VideoFrame.from_image(image)))
            container.mux(stream.encode())
    else:
        FRAMES[0].save(path, save_all=True, append_images=FRAMES[1:], duration=200, lossless=True)
    return path


def rows(folder, *found):
    lines = [{"problem": "the object turns", "solution": [0.5, 1.0], "task": "when"} | row for row in found]
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return DataSource(path=str(folder / "rows.jsonl"), max_frames=4)


@pytest.mark.parametrize("name", ["c.gif", "c.webp", "c.mp4"])
def test_a_clip_gives_frames_spread_from_the_first_to_the_last(tmp_path, name):
    clip(tmp_path / name)
    [one] = load_source(rows(tmp_path, {"video": name}))
    assert one.times == pytest.approx((0.0, 0.6, 1.2, 1.8)) and one.truth.text == "[0.5, 1.0]"
    shown = [image.open() for image in one.images]
    assert [image.size for image in shown] == [(64, 48)] * 4 == [image.size for image in one.images]
    assert [np.array(image)[20, 20, 0] for image in shown] == pytest.approx([0, 60, 120, 180], abs=6)
    assert len({image.key for image in one.images}) == 4 and one.images[1].read().startswith(b"\x89PNG")


def test_frames_have_times_or_a_rate(tmp_path):
    for number, image in enumerate(FRAMES[:3]):
        image.save(tmp_path / f"{number}.png")
    video = [f"{number}.png" for number in range(3)]
    first, second = load_source(rows(tmp_path, {"video": video, "times": [0, 1.5, 2]}, {"video": video, "fps": 4}))
    assert first.times == (0.0, 1.5, 2.0) and second.times == (0.0, 0.25, 0.5)
    assert first.columns == {} and len(first.images) == 3


@pytest.mark.parametrize(
    ("row", "kind", "told"),
    [
        ({"video": "there.mp4"}, "image_missing", "does not exist"),
        ({"video": "../c.gif"}, "image_outside_root", "leaves the image root"),
        ({"video": "broken.mp4"}, "image_unreadable", "cannot be read"),
        ({"video": "broken.gif"}, "image_unreadable", "cannot be read"),
        ({"video": []}, "video", "empty list"),
        ({"video": ["a.png"], "times": [0, 1]}, "video", "for 1 frames"),
        ({"video": ["a.png", "a.png"], "times": [2, 1]}, "video", "for 2 frames"),
        ({"video": ["a.png"]}, "video", "for 1 frames"),
        ({"video": "c.gif", "image": "a.png"}, "video", "a video and 1 images"),
        ({"video": "c.gif", "solution": "soon"}, "solution_type", "interval"),
    ],
)
def test_what_is_wrong_with_a_video_is_named(tmp_path, row, kind, told):
    clip(tmp_path / "c.gif")
    FRAMES[0].save(tmp_path / "a.png")
    for name in ("broken.mp4", "broken.gif"):
        (tmp_path / name).write_bytes(b"not a clip")
    source = rows(tmp_path, row)
    with pytest.raises(DataError, match=told):
        load_source(source)
    assert kind in {fault.kind for _, fault in _faults(tmp_path)}


def _faults(folder):
    found = inspect_file(folder / "rows.jsonl")
    return [(number, fault) for number, fault in found.faults]


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("[0.5, 1.0]", 1.0),
        ("from 0.5 s to 1.5 s", 0.5),
        ("0.75 - 1.25 seconds", 1 / 3),
        ("[2, 3]", 0.0),
        ("[1.0, 0.5]", 0.0),
        ("1.0", 0.0),
        ("[0, 1] or [2, 3]", 0.0),
        ("soon", 0.0),
    ],
)
def test_temporal_iou(tmp_path, answer, value):
    clip(tmp_path / "c.gif")
    [one] = load_source(rows(tmp_path, {"video": "c.gif"}))
    read = read_answer(f"<think></think><answer>{answer}</answer>", one, BoxMap())
    assert tiou(one, read).total == pytest.approx(value)


def test_generated_videos_show_the_object_in_its_interval_alone():
    for one in load_scenes(ScenesSource(n=6, frames=6, questions={"when": 1.0})):
        start, stop = json.loads(one.truth.text)
        assert len(one.images) == 6 and one.times[1] == FRAME_S
        there = {one.images[i].key for i, seconds in enumerate(one.times) if start <= seconds <= stop}
        gone = {one.images[i].key for i, seconds in enumerate(one.times) if not start <= seconds <= stop}
        assert len(there) == 1 and len(gone) <= 1 and not there & gone
    for source in ({"questions": {"when": 1.0}}, {"frames": 6}):
        with pytest.raises(ConfigError, match="when is asked about videos"):
            load_scenes(ScenesSource(n=1, **source))


@pytest.mark.parametrize("name", ["qwen3_vl", "qwen2_5_vl", "internvl"])
def test_a_video_trains_as_the_plain_forward_of_its_frames_and_times(name, tmp_path):
    entry, folder = zoo.zoo()[name], zoo.built(name, tmp_path)
    loaded, model = zoo.load(folder), zoo.plain(folder, entry)
    frames = [noise_image(48, 32, n) for n in (0, 1, 0)]
    one = sample("when is it there", *frames, task="when", times=(0.0, 0.5, 1.0))
    assert "<0.5 seconds>" in loaded.family.text(one)
    group = zoo.made_up(loaded, loaded.family.encode(one), [4, 6])
    encoded, encode = [], loaded.policy.encode_images
    loaded.policy.encode_images = lambda images: encoded.append(len(images)) or encode(images)
    logprobs, _ = loaded.policy(pack([as_prefix_group(group)]))
    assert encoded[0] == 2  # equal frames once
    expected = zoo.plain_logprobs(model, loaded, [group])
    torch.testing.assert_close(logprobs, expected, atol=2e-5, rtol=0)
    logprobs.sum().backward()
    expected.sum().backward()
    assert_same_gradients(gradients(loaded.policy), gradients(model))
