from rich.console import Console

from vlm_r1.report.table import before_after_markdown, before_after_rows, before_after_table

EVAL = {
    "before": {"in_domain": {"n": 200, "mean_iou": 0.25}, "odd|[b]": {"n": 3, "acc@0.5": 0.5}},
    "after": {"in_domain": {"n": 200, "mean_iou": 0.5, "extra": 1}, "odd|[b]": {"n": 3, "acc@0.5": 0.25}},
}


def test_markdown_has_the_hand_computed_cells():
    assert before_after_markdown(EVAL).splitlines() == [
        "| split | metric | questions | before | after | difference |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
        "| In-domain | mean IoU | 200 | 0.250 | 0.500 | +0.250 |",
        "| In-domain | extra | 200 |  | 1.000 |  |",
        "| odd\\|[b] | Acc@0.5 | 3 | 0.500 | 0.250 | \N{MINUS SIGN}0.250 |",
    ]


def test_terminal_table_shows_names_as_they_are():
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(before_after_table(EVAL))
    text = console.export_text()
    assert "odd|[b]" in text and "+0.250" in text and "held-out questions" in text


def test_lone_evaluation_stands_under_after():
    (row,) = before_after_rows({"eval": {"val": {"n": 2, "acc@0.5": 1.0, "note": None}}})
    assert row.cells == ("val", "Acc@0.5", "2", "", "1.000", "")
    assert before_after_rows({}) == []


def test_a_kind_of_failure_that_vanished_counts_as_zero():
    before = {"val": {"n": 4, "failures/no_box": 0.25}}
    (row,) = before_after_rows({"before": before, "after": {"val": {"n": 4}}})
    assert row.cells == ("val", "failures/no_box", "4", "0.250", "0.000", "\N{MINUS SIGN}0.250")


def test_bounds_of_intervals_are_no_rows_of_their_own():
    values = {"n": 4, "mean_iou": 0.25, "mean_iou/low": 0.2, "mean_iou/high": 0.3}
    (row,) = before_after_rows({"before": {"val": values}, "after": {"val": values}})
    assert row.metric == "mean_iou"
