import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vlm_r1.config import DataSource, ScenesSource
from vlm_r1.data.source import load_source
from vlm_r1.errors import ConfigError, DataError

ROW = {"image": "a.png", "problem": "the cat", "solution": [1, 2, 30, 40]}


def rows(n):
    return [{**ROW, "problem": f"q{i}"} for i in range(n)]


def questions(path, sampling, seed=0):
    samples = load_source(DataSource(path=str(path), sampling=sampling), seed=seed)
    return [int(sample.question[1:]) for sample in samples]


def test_sampling(write):
    path = write(*rows(10))
    assert questions(path, "all") == list(range(10))
    assert questions(path, "first:3") == [0, 1, 2]
    assert questions(path, "end:3") == [7, 8, 9]
    assert questions(path, "first:25%") == [0, 1, 2]  # 2.5 rounded up
    assert questions(path, "end:10%") == [9]
    assert questions(path, "first:99") == list(range(10))


def test_random_sampling_depends_on_the_seed_alone(write):
    path = write(*rows(30))
    first = questions(path, "random:8", seed=1)
    assert len(set(first)) == 8
    assert first == sorted(first)
    assert first == questions(path, "random:8", seed=1)
    assert first != questions(path, "random:8", seed=2)
    assert len(questions(path, "20%")) == len(questions(path, "random:20%")) == 6


@pytest.mark.parametrize("sampling", ["half", "first", "7", "first:1.5", "random:200%", "last:3", "first:0", "0%"])
def test_a_wrong_sampling_is_a_config_error(write, sampling):
    with pytest.raises(ConfigError, match="sampling"):
        load_source(DataSource(path=str(write(*rows(3))), sampling=sampling))


def test_relative_paths_start_from_base(folder, write):
    write(ROW)
    (folder / "sub").mkdir()
    (folder / "sub" / "data.jsonl").write_text(json.dumps(ROW), encoding="utf-8")
    assert load_source(DataSource(path="data.jsonl"), base=folder)[0].images[0].path == folder / "a.png"
    source = DataSource(path="sub/data.jsonl", image_root=".")
    assert load_source(source, base=folder)[0].images[0].open().size == (64, 48)


def test_blank_lines_byte_order_mark_and_windows_ends_are_read(folder):
    path = folder / "data.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(ROW).encode() + b"\r\n\r\n" + json.dumps(ROW).encode() + b"\r\n")
    assert [sample.id for sample in load_source(DataSource(path=str(path)))] == ["data.jsonl:1", "data.jsonl:3"]


def test_json_lists(folder):
    path = folder / "data.json"
    path.write_text(json.dumps(rows(2)), encoding="utf-8")
    assert [sample.question for sample in load_source(DataSource(path=str(path)))] == ["q0", "q1"]
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(DataError, match="not a list"):
        load_source(DataSource(path=str(path)))
    path.write_text("[", encoding="utf-8")
    with pytest.raises(DataError, match="not JSON"):
        load_source(DataSource(path=str(path)))


def png(width, height):
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


def test_parquet_with_embedded_images_is_read_lazily(folder):
    path = folder / "data.parquet"
    table = pa.table(
        {
            "images": [[{"bytes": png(20 + i, 10), "path": None}] for i in range(5)],
            "problem": [f"<image>q{i}" for i in range(5)],
            "answer": [f"[0, 0, {10 + i}, 10]" for i in range(5)],
        }
    )
    pq.write_table(table, path, row_group_size=2)
    samples = load_source(DataSource(path=str(path), sampling="end:3"))
    assert len(samples) == 3
    assert [sample.question for sample in samples] == ["q2", "q3", "q4"]
    assert samples[1].images[0].open().size == (23, 10)
    assert samples[-1].truth.boxes[0].box == (0.0, 0.0, 14.0, 10.0)
    assert [sample.id for sample in samples[0:2]] == ["data.parquet:3", "data.parquet:4"]


def test_faults_of_a_parquet_file_are_found_before_the_first_row_is_used(folder):
    path = folder / "data.parquet"
    table = pa.table(
        {"image": [{"bytes": png(9, 9)}] * 2, "problem": ["a", "b"], "solution": ["[0,0,5,5]", "[5,0,1,5]"]}
    )
    pq.write_table(table, path)
    with pytest.raises(DataError, match=r"data\.parquet row 2: box \[5, 0, 1, 5\] is reversed"):
        load_source(DataSource(path=str(path)))
    path.write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match="not a Parquet file"):
        load_source(DataSource(path=str(path)))


def test_a_box_outside_an_embedded_image_is_found_when_used(folder):
    path = folder / "data.parquet"
    pq.write_table(pa.table({"image": [{"bytes": png(9, 9)}], "problem": ["a"], "solution": ["[0,0,50,5]"]}), path)
    with pytest.raises(DataError, match=r"data\.parquet row 1: box .* reaches out of its image of 9x9"):
        load_source(DataSource(path=str(path)))[0]


def test_a_data_set_on_the_hub_through_datasets(folder, monkeypatch):
    # A local folder stands for the hub: `datasets` reads both in the same way.
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(folder / "cache"))
    data = folder / "hub"
    data.mkdir()
    features = datasets.Features(
        {"image": datasets.Image(), "problem": datasets.Value("string"), "solution": datasets.Value("string")}
    )
    content = {
        "image": [Image.new("RGB", (30 + i, 20)) for i in range(3)],
        "problem": ["q0", "q1", "q2"],
        "solution": ["<answer> 0 </answer>", "<answer> 1 </answer>", "<answer> 2 </answer>"],
    }
    datasets.Dataset.from_dict(content, features=features).to_parquet(str(data / "train.parquet"))
    samples = load_source(DataSource(hub=str(data), sampling="end:2"))
    assert [sample.truth.number for sample in samples] == [1.0, 2.0]
    assert [sample.images[0].open().size for sample in samples] == [(31, 20), (32, 20)]
    with pytest.raises(DataError, match='split "nope" cannot be loaded'):
        load_source(DataSource(hub=str(data), hub_split="nope"))


def test_a_hub_that_cannot_be_reached_is_said(monkeypatch):
    with pytest.raises(DataError, match="no/such-data-set"):
        load_source(DataSource(hub="no/such-data-set"))


def test_scenes_are_dispatched():
    samples = load_source(DataSource(scenes=ScenesSource(n=4), sampling="end:1"))
    assert [sample.id for sample in samples] == ["train-3-0"]
    with pytest.raises(ConfigError, match="negatives"):
        load_source(DataSource(scenes=ScenesSource(n=4), negatives=1))


def test_the_first_fault_is_named_with_its_line_and_the_others_counted(write):
    path = write(ROW, {**ROW, "image": "nope.png"}, ROW, {**ROW, "solution": [5, 5, 1, 9]}, "{")
    with pytest.raises(DataError) as caught:
        load_source(DataSource(path=str(path)))
    text = str(caught.value)
    assert text.startswith(f'{path}:2: image "nope.png" does not exist (looked in {path.parent}/)')
    assert "Set image_root" in text
    assert "2 more with faults" in text
    assert f"vlm-r1 data check {path}" in text


def test_only_sampled_rows_are_checked(write):
    path = write(ROW, "{")
    assert len(load_source(DataSource(path=str(path), sampling="first:1"))) == 1


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nope.jsonl", "does not exist"),
        ("data.csv", "must be one of .jsonl, .json, .parquet"),
        ("empty.jsonl", "is empty"),
    ],
)
def test_files_that_cannot_be_used(folder, name, words):
    (folder / "data.csv").write_text("a,b\n", encoding="utf-8")
    (folder / "empty.jsonl").write_text("\n \n", encoding="utf-8")
    with pytest.raises(DataError, match=words):
        load_source(DataSource(path=str(folder / name)))


def test_an_image_root_that_is_no_folder(write):
    with pytest.raises(DataError, match="image_root"):
        load_source(DataSource(path=str(write(ROW)), image_root="/no/such/folder"))
