"""Grids and tables: exact numbers, marks for chance and for what is missing, and files that read back."""

import csv
import io
import json

import pytest
from toy_scores import make_cell, make_scores

from lm2.eval.babilong import Comparison, Estimate, Scores
from lm2.eval.grids import (
    average_grid,
    check_labels,
    common_lengths,
    grids_of_reference,
    grids_of_scores,
    groups_to_average,
    select,
)
from lm2.eval.reference import load_reference, reference_names
from lm2.eval.tables import TableSet, to_csv_of_averages, to_csv_of_cells, to_json, to_markdown

FIVE = [f"qa{number}" for number in range(1, 6)]
TEN = [f"qa{number}" for number in range(1, 11)]


def table_set(*scores: Scores, references: str = "", metric: str = "exact", comparisons=()) -> TableSet:
    loaded = tuple(load_reference(name) for name in references.split())
    grids = [*grids_of_scores(scores, metric), *(grid for each in loaded for grid in grids_of_reference(each))]
    return TableSet(tuple(grids), metric, tuple(comparisons), loaded)


def markdown_rows(text: str, heading: str) -> list[list[str]]:
    """The rows of the first table below a heading, without the rule."""
    lines = text.split(f"# {heading}\n", 1)[1].splitlines()
    start = next(place for place, line in enumerate(lines) if line.startswith("|"))
    table = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        table.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return [table[0], *table[2:]]


def csv_rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


# qa1 falls to chance (20%) at 8k, qa2 has no 8k.
SMALL = {("qa1", "0k"): 90, ("qa1", "8k"): 25, ("qa2", "0k"): 50}


def test_markdown_of_a_model():
    rows = markdown_rows(to_markdown(table_set(make_scores(SMALL))), "ours")
    assert rows == [
        ["task", "0k", "8k", "mean", "n", "majority", "random"],
        ["qa1", "90.0 (82.6-94.5)", "25.0* (17.5-34.3)", "57.5", "100", "20.0", "10.0"],
        ["qa2", "50.0 (40.4-59.6)", "-", "50.0 (1 of 2)", "100", "20.0", "10.0"],
        ["mean all 2 tasks", "70.0", "25.0 (1 of 2)", "55.0 (3 of 4)", "", "", ""],
    ]


def test_the_metric_is_the_one_asked_for_and_said():
    for metric, percent in (("exact", "90.0"), ("official", "89.0"), ("substring", "91.0")):
        text = to_markdown(table_set(make_scores(SMALL), metric=metric))
        assert markdown_rows(text, "ours")[1][1].startswith(percent)
        assert f"Metric of our models: **{metric}**" in text
        assert f"Metric: {metric}." in text
        assert markdown_rows(text, "Mean over all 2 tasks, by length")[1][:2] == ["ours", metric]


def test_n_and_baselines_that_differ_are_given_as_ranges():
    scores = Scores((make_cell("qa1", "0k", 90), make_cell("qa1", "8k", 25, n=50)))
    assert markdown_rows(to_markdown(table_set(scores)), "ours")[1][4] == "50-100"


def test_groups_of_tasks_with_and_without_qa7():
    rights = {(task, "4k"): 90 if task == "qa7" else 10 for task in TEN}
    text = to_markdown(table_set(make_scores(rights)))
    means = {row[0]: row[1] for row in markdown_rows(text, "ours") if row[0].startswith("mean")}
    assert means == {"mean qa1-5": "10.0", "mean qa1-10": "18.0", "mean qa1-10 without qa7": "10.0"}
    assert "Mean over qa1-10 without qa7, by length" in text


def test_models_side_by_side_with_published_ones():
    ours = make_scores({(task, length): 80 for task in FIVE for length in ("1k", "2k")})
    rows = markdown_rows(to_markdown(table_set(ours, references="paper armt gpt-4")), "Mean over qa1-5, by length")
    by_model = {row[0]: row[2:] for row in rows}
    lengths = by_model["model"]
    assert lengths == ["0k", "1k", "2k", "4k", "8k", "16k", "32k", "64k", "128k", "512k", "1M", "10M", "shared lengths"]
    assert by_model["ours"] == ["-", "80.0", "80.0", *["-"] * 9, "80.0"]
    lm2 = by_model["LM2-1.7B (LM2 paper)"]
    assert lm2[:4] == ["88.8", "75.0", "59.0", "48.6"]
    assert lm2[-1] == "67.0"
    assert by_model["Llama-3.2-3.2B (LM2 paper)"] == ["54.8", *["-"] * 12]
    assert by_model["ARMT-137M (BABILong)"][3] == "98.1"
    # Cells at both ends only, means in between: the one is computed, the other marked as published.
    assert by_model["GPT-4-0125 (BABILong)"][:3] == ["87.4", "81.0 p", "77.0 p"]
    assert by_model["GPT-4-0125 (BABILong)"][8:10] == ["35.8", "-"]
    text = to_markdown(table_set(ours, references="paper armt gpt-4"))
    assert "Shared lengths: 1k, 2k;" in text


def test_an_average_over_fewer_tasks_says_so_beside_a_full_one():
    ours = make_scores({(task, "4k"): 80 for task in FIVE})
    rows = markdown_rows(to_markdown(table_set(ours, references="paper")), "Mean over qa1-10, by length")
    by_model = {row[0]: row for row in rows}
    place = by_model["model"].index("4k")
    assert by_model["ours"][place] == "80.0 (5 of 10)"
    assert by_model["LM2-1.7B (LM2 paper)"][place] == "55.9"


def test_published_cells_have_intervals_only_where_n_is_known_and_marks():
    text = to_markdown(table_set(references="paper rmt armt"))
    lm2 = {row[0]: row for row in markdown_rows(text, "LM2-1.7B (LM2 paper)")}
    assert lm2["qa1"][1] == "99.0 (94.6-99.8)"
    assert lm2["qa1"][9] == "15.0* (9.3-23.3)"
    assert lm2["qa9"][9] == "54.0* (44.3-63.4)"
    assert lm2["mean qa1-10"][1:11] == ["92.5", "78.3", "65.8", "55.9", "46.0", "40.0", "38.1", "35.4", "35.0", "54.1"]
    rmt = {row[0]: row for row in markdown_rows(text, "RMT-137M (BABILong)")}
    # The majority of qa3 is 21.5.
    assert rmt["qa3"][11:13] == ["22.0", "21.0*"]
    armt = {row[0]: row for row in markdown_rows(text, "ARMT-137M (BABILong)")}
    assert armt["qa5"][3:6] == ["99.1", "~98.5", "~99.0"]


def test_published_rows_are_labelled_with_what_they_are():
    text = to_markdown(table_set(make_scores(SMALL), references="paper armt"))
    rows = {row[0]: row for row in markdown_rows(text, "Models")}
    assert rows["ours"] == ["ours", "not recorded", "exact", "not recorded", "plain", "100 (counted)"]
    assert rows["RMT-1.7B (LM2 paper)"][1:4] == [
        "1.7B",
        "not stated",
        "fine-tuned on bAbI; whether with noise is not stated",
    ]
    assert rows["ARMT-137M (BABILong)"][3].startswith("fine-tuned per task on noise-mixed data")
    assert "other scale, other training data, other samples, and a metric" in text
    assert "vanilla-Llama-1.7B, qa6: printed 44.0, the cells give 54.0." in text
    assert "are a copy of the mean row" in text
    alone = to_markdown(table_set(make_scores(SMALL)))
    assert "other scale" not in alone
    assert "Metric of our models" not in to_markdown(table_set(references="armt"))


def test_csv_and_json_hold_the_same_cells_as_the_grids():
    tables = table_set(make_scores(SMALL), references="paper gpt-4 armt")
    rows = csv_rows(to_csv_of_cells(tables))
    cells = {(grid.label, *key): cell for grid in tables.grids for key, cell in grid.cells.items()}
    assert len(rows) == len(cells)
    document = json.loads(to_json(tables))
    records = [cell for model in document["models"] for cell in model["cells"]]
    for row, record in zip(rows, records, strict=True):
        cell = cells.pop((row["model"], row["task"], row["length"]))
        assert float(row["accuracy_percent"]) == pytest.approx(100 * cell.accuracy, abs=5e-5)
        assert float(row["majority_percent"]) == pytest.approx(100 * cell.majority, abs=5e-5)
        assert float(row["random_percent"]) == pytest.approx(100 * cell.random, abs=5e-5)
        assert row["n"] == ("" if cell.n is None else str(cell.n))
        assert (row["low_percent"] == "") == (cell.low is None) == (row["high_percent"] == "")
        if cell.low is not None:
            assert float(row["low_percent"]) == pytest.approx(100 * cell.low, abs=5e-5)
            assert float(row["high_percent"]) == pytest.approx(100 * cell.high, abs=5e-5)
        assert row["is_at_chance"] == str(cell.is_at_chance).lower()
        assert row["is_back_computed"] == str(cell.is_back_computed).lower()
        for key, value in record.items():
            text = "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
            assert row[key] == text
    assert cells == {}


def test_averages_in_csv_say_what_they_are_over():
    rows = csv_rows(to_csv_of_averages(table_set(make_scores(SMALL), references="gpt-4")))
    by_key = {(row["model"], row["tasks"], row["lengths"]): row for row in rows}
    both = by_key["ours", "qa2", "0k 8k"]
    assert (both["accuracy_percent"], both["num_cells"], both["num_missing"]) == ("50.0", "1", "1")
    full = by_key["ours", "qa1", "0k 8k"]
    assert (full["accuracy_percent"], full["num_cells"], full["num_missing"]) == ("57.5", "2", "0")
    published = by_key["GPT-4-0125 (BABILong)", "qa1-5", "8k"]
    assert (published["accuracy_percent"], published["num_cells"], published["published_percent"]) == ("", "0", "71.0")
    assert len(by_key) == len(rows)
    assert ("GPT-4-0125 (BABILong)", "qa1-5", "1M") not in by_key


def test_averages_over_the_lengths_that_models_share():
    rows = csv_rows(to_csv_of_averages(table_set(references="paper")))
    shared = "1k 2k 4k 8k 16k 32k 64k"
    means = {row["model"]: row for row in rows if row["tasks"] == "qa1-10" and row["lengths"] == shared}
    assert float(means["LM2-1.7B (LM2 paper)"]["accuracy_percent"]) == pytest.approx(359.5 / 7, abs=5e-5)
    assert len(means) == 5


def test_comparisons_of_the_metric_are_shown():
    def compared(metric: str, ratio: Estimate | None) -> Comparison:
        gap = Estimate(0.1, -0.02, 0.225)
        return Comparison("a|b", "base", metric, "plain", "plain", (("qa1", "4k"),), 100, 0.6, 0.5, gap, ratio, 1000, 0)

    comparisons = [compared("exact", Estimate(1.2, 0.96, 1.5)), compared("official", None)]
    tables = table_set(make_scores(SMALL), comparisons=comparisons)
    text = to_markdown(tables)
    numbers = "1 | 100 | 60.0 | 50.0 | +10.0 (-2.0 to +22.5) | 1.200 (0.960 to 1.500)"
    assert rf"| a\|b (plain) | base (plain) | exact | {numbers} |" in text
    assert len(markdown_rows(text, "Paired comparisons")) == 2
    assert [item["metric"] for item in json.loads(to_json(tables))["comparisons"]] == ["exact", "official"]
    official = table_set(make_scores(SMALL), comparisons=comparisons, metric="official")
    assert markdown_rows(to_markdown(official), "Paired comparisons")[1][-1] == "none"
    assert "Paired comparisons" not in to_markdown(table_set(make_scores(SMALL)))


def test_every_reference_makes_every_table_and_always_the_same():
    for name in reference_names():
        tables = table_set(make_scores(SMALL), references=name)
        label = tables.grids[-1].label
        assert f"| {label} |" in to_markdown(tables)
        assert label in {row["model"] for row in csv_rows(to_csv_of_averages(tables))}
        assert label in {model["label"] for model in json.loads(to_json(tables))["models"]}
    first, second = (to_markdown(table_set(references=" ".join(reference_names()))) for _ in range(2))
    assert first == second
    for line in first.splitlines():
        assert line == line.rstrip()


def test_runs_of_one_model_are_told_apart_and_no_cell_comes_twice():
    two = Scores(
        (make_cell("qa1", "0k", 1), make_cell("qa1", "0k", 2, prompt="x"), make_cell("qa1", "0k", 3, model="b"))
    )
    assert [grid.label for grid in grids_of_scores([two], "exact")] == ["ours, prompt plain", "ours, prompt x", "b"]
    halves = [make_scores({("qa1", "0k"): 5}), make_scores({("qa1", "8k"): 6})]
    [grid] = grids_of_scores(halves, "exact")
    assert grid.lengths == ("0k", "8k")
    with pytest.raises(ValueError, match=r"qa1 at 0k of model 'ours' \(prompt plain\) is there twice"):
        grids_of_scores([halves[0], halves[0]], "exact")
    with pytest.raises(ValueError, match="metric is 'f1'"):
        grids_of_scores(halves, "f1")


def test_labels_are_checked():
    check_labels(grids_of_scores([make_scores(SMALL)], "exact"))
    with pytest.raises(ValueError, match="there is no model to show"):
        check_labels([])
    clash = grids_of_scores([make_scores(SMALL, model="ARMT-137M (BABILong)")], "exact")
    with pytest.raises(ValueError, match=r"two models are called 'ARMT-137M \(BABILong\)'"):
        check_labels([*clash, *grids_of_reference(load_reference("armt"))])


def test_select():
    grids = [*grids_of_scores([make_scores(SMALL)], "exact"), *grids_of_reference(load_reference("gpt-4"))]
    ours, gpt = select(grids, ["qa1", "qa2"], ["0k", "1k"])
    assert set(ours.cells) == {("qa1", "0k"), ("qa2", "0k")}
    assert set(gpt.cells) == {("qa1", "0k"), ("qa2", "0k")}
    # A mean over qa1-5 is no mean over two of them.
    assert gpt.published_means == {}
    [gpt] = select(grids, FIVE, ["1k"])
    assert gpt.published_means == {("qa1-5", "1k"): 0.81}
    with pytest.raises(ValueError, match="no model has the task qa6"):
        select(grids, ["qa6"], None)
    with pytest.raises(ValueError, match="no model has the length 1M"):
        select(grids, None, ["1M"])


def test_common_lengths_keep_our_models_first_then_most_models_then_most_lengths():
    paper = grids_of_reference(load_reference("paper"))
    models, lengths = common_lengths(paper, TEN)
    assert lengths == ("1k", "2k", "4k", "8k", "16k", "32k", "64k")
    assert {model.label.split(" ")[0] for model in models} == {
        "Llama-3.2-1.2B",
        "Llama-3.2-1.2B-RAG",
        "vanilla-Llama-1.7B",
        "RMT-1.7B",
        "LM2-1.7B",
    }
    [ours] = grids_of_scores([make_scores({(task, length): 50 for task in TEN for length in ("128k", "1M")})], "exact")
    models, lengths = common_lengths([ours, *paper], TEN)
    assert lengths == ("128k",)
    assert len(models) == 5
    assert common_lengths([ours], ["qa11"]) == ((), ())


def test_average_of_a_grid():
    [grid] = grids_of_scores([make_scores(SMALL)], "exact")
    full = average_grid(grid, ["qa1"], ["0k", "8k"])
    assert (full.accuracy, full.num_cells, full.missing) == (pytest.approx(0.575), 2, ())
    part = average_grid(grid, ["qa1", "qa2"], ["8k"])
    assert (part.accuracy, part.accuracy_of_present, part.missing) == (None, 0.25, (("qa2", "8k"),))
    none = average_grid(grid, ["qa3"], ["8k"])
    assert (none.accuracy, none.accuracy_of_present, none.num_cells) == (None, None, 0)


def test_groups_to_average():
    assert list(groups_to_average(grids_of_reference(load_reference("rmt")))) == ["qa1-5"]
    assert list(groups_to_average(grids_of_reference(load_reference("llama-3.1-70b")))) == ["qa1-5"]
    scores = make_scores({(task, "0k"): 1 for task in (*TEN, "qa11")})
    assert list(groups_to_average(grids_of_scores([scores], "exact"))) == [
        "qa1-5",
        "qa1-10",
        "qa1-10 without qa7",
        "all 11 tasks",
    ]
    assert groups_to_average(grids_of_scores([make_scores({("qa3", "0k"): 1})], "exact")) == {"qa3": ("qa3",)}
