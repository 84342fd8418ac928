import json

import pytest

from vlm_r1.errors import ConfigError, DataError
from vlm_r1.rewards.score_file import score_file

THINK = "<think>t</think>"


def put(tmp_path, *rows):
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return file


def answered(text, solution, **more):
    return {"completion": f"{THINK}<answer>{text}</answer>", "solution": solution, **more}


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_come_back_with_their_scores(tmp_path):
    rows = [
        answered("[0, 0, 10, 5]", [0, 0, 10, 10], extra={"kept": 1}),
        {"completion": "no tags", "solution": "[0, 0, 10, 10]"},
        answered("[0, 0, 10, 10]", [0, 0, 40, 20], image_size=[40, 20], model_size=[10, 10]),
    ]
    out = tmp_path / "deep" / "out.jsonl"
    summary = score_file(put(tmp_path, *rows), ["iou", "format"], out)
    got = read(out)
    assert [row["scores"] for row in got] == [
        {"iou": 0.5, "format": 1.0},
        {"iou": 0.0, "format": 0.0},
        {"iou": 1.0, "format": 1.0},
    ]
    assert {key: got[0][key] for key in rows[0]} == rows[0]
    assert got[0]["parts"] == {"iou": {"iou": 0.5}, "format": {"format": 1.0}}
    assert got[0]["notes"] == []
    assert got[1]["notes"] == [
        "iou: no_answer: there is no <answer> tag",
        "format: there is no <answer> tag",
    ]
    assert (summary.rows, summary.means) == (3, {"iou": 0.5, "format": pytest.approx(2 / 3)})
    assert [path.name for path in out.parent.iterdir()] == ["out.jsonl"]


def test_each_reward_reads_the_answers_it_is_for(tmp_path):
    cat = {"bbox_2d": [0, 0, 9, 9], "label": "cat"}
    table = {
        "od_map": (json.dumps([cat]), [cat], 1),
        "od_length": (json.dumps([cat, cat]), [cat], 0.5),
        "od_ap50": ("None", None, 1),
        "weighted_detection": ("None", "None", 1),
        "choice": ("(B) cat", "B", 1),
        "yes_no": ("I know, yes", "yes", 1),
        "number": ("1,234 cm", 1234, 1),
        "math": (r"\frac{1}{2}", "0.5", 1),
        "exact_text": ("Red.", "red", 1),
        "edit_similarity": ("abcd", "abcx", 0.75),
        "count": ("3", 3, 1),
        "point_in_box": ("[5, 5]", [0, 0, 9, 9], 1),
        "giou": ("[0, 0, 9, 9]", "[0, 0, 9, 9]", 1),
        "iou_threshold": ("[0, 0, 9, 9]", [0, 0, 9, 9], 1),
    }
    for name, (text, solution, value) in table.items():
        out = tmp_path / "out.jsonl"
        score_file(put(tmp_path, answered(text, solution)), [name], out)
        assert read(out)[0]["scores"] == {name: pytest.approx(value)}, name


def test_an_unnamed_task_is_the_one_that_training_infers(tmp_path):
    # The right letter, explained, is a correct choice and no equal text. c = (1 + cos(pi / 2)) / 2, so 0.75 in all.
    row = answered("B, the dog", "B", problem="Which? (A) cat (B) dog", tokens=512)
    out = tmp_path / "out.jsonl"
    score_file(put(tmp_path, row), ["length_cosine"], out)
    assert read(out)[0]["scores"] == {"length_cosine": pytest.approx(0.75)}


def test_brackets_are_text_where_a_text_is_asked_for(tmp_path):
    out = tmp_path / "out.jsonl"
    score_file(put(tmp_path, answered("[0, 1]", "[0, 1]")), ["math", "exact_text"], out)
    assert read(out)[0]["scores"] == {"math": 1.0, "exact_text": 1.0}
    with pytest.raises(DataError, match="is not four numbers"):
        score_file(put(tmp_path, answered("[0, 1]", "[0, 1]")), ["iou"], out)


def test_counting_boxes_counts_their_list(tmp_path):
    cats = [{"bbox": [0, 0, 9, 9], "label": "cat"}] * 2
    out = tmp_path / "out.jsonl"
    score_file(put(tmp_path, answered(json.dumps(cats), cats), answered("2", cats, task="count")), ["count"], out)
    assert [row["scores"]["count"] for row in read(out)] == [1, 1]


def test_the_task_of_a_row_and_its_tokens_count(tmp_path):
    rows = [answered("B", "B", task="choice", tokens=512), answered("B", "B", task="choice")]
    out = tmp_path / "out.jsonl"
    summary = score_file(put(tmp_path, *rows), ["length_cosine", "exact_text"], out)
    assert [row["scores"]["length_cosine"] for row in read(out)] == [pytest.approx(0.75), None]
    assert summary.scorable == {"length_cosine": 1, "exact_text": 2}


def test_a_chat_completion_and_blank_lines(tmp_path):
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "<answer>4</answer>"}]
    out = tmp_path / "out.jsonl"
    score_file(put(tmp_path, "", {"completion": chat, "solution": 4}, "  "), ["number"], out)
    assert [row["scores"]["number"] for row in read(out)] == [1]


def test_options_and_rewards_of_one_s_own(tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text("def short(completions, solution, **kwargs):\n    return [1 / len(c) for c in completions]\n")
    file = put(tmp_path, {"completion": "<answer>104</answer>", "solution": 100})
    out = tmp_path / "out.jsonl"
    score_file(file, ["number", f"{mine}:short"], out, {"number": {"relative": 0.05}})
    assert list(read(out)[0]["scores"].values()) == [1, 1 / 20]


def test_standard_output(tmp_path, capsys):
    score_file(put(tmp_path, answered("4", 4)), ["number"])
    assert json.loads(capsys.readouterr().out)["scores"] == {"number": 1.0}


GOOD = answered("4", 4)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{oops", r"rows\.jsonl:2: not JSON"),
        ("[1]", r"rows\.jsonl:2: a row must be an object, not list"),
        ({"completion": "x"}, r'rows\.jsonl:2: the row has no "solution" \(it has: completion\)'),
        ({"solution": 4}, r'rows\.jsonl:2: "completion" must be a string, not null'),
        ({**GOOD, "task": "nummber"}, r'rows\.jsonl:2: unknown task "nummber": did you mean "number"'),
        ({**GOOD, "tokens": -1}, r'rows\.jsonl:2: "tokens" is -1'),
        ({**GOOD, "model_size": [1, 1]}, r'rows\.jsonl:2: "model_size" needs "image_size"'),
        ({**GOOD, "model_size": [0, 1]}, r'rows\.jsonl:2: "model_size" is \[0, 1\]; give \[width, height\]'),
        ({**GOOD, "solution": [4, 3, 2, 1]}, r"rows\.jsonl:2: solution: box \[4, 3, 2, 1\] is reversed"),
    ],
)
def test_a_bad_row_is_named_and_nothing_is_left_behind(tmp_path, row, message):
    out = tmp_path / "out.jsonl"
    with pytest.raises(DataError, match=message):
        score_file(put(tmp_path, GOOD, row), ["number"], out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.jsonl"]


def test_a_bad_file_or_name_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.jsonl: cannot be read"):
        score_file(tmp_path / "none.jsonl", ["iou"], tmp_path / "out")
    with pytest.raises(DataError, match="holds no rows"):
        score_file(put(tmp_path, ""), ["iou"], tmp_path / "out")
    binary = tmp_path / "binary.jsonl"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not UTF-8"):
        score_file(binary, ["iou"], tmp_path / "out")
    with pytest.raises(ConfigError, match=r'unknown reward "iuo": did you mean "iou"'):
        score_file(put(tmp_path, GOOD), ["iuo"], tmp_path / "out")
    with pytest.raises(ConfigError, match="name at least one reward"):
        score_file(put(tmp_path, GOOD), [], tmp_path / "out")
    with pytest.raises(ConfigError, match='options for reward "iou", which is not scored'):
        score_file(put(tmp_path, GOOD), ["number"], tmp_path / "out", {"iou": {}})
