"""Scoring predictions: files and their faults, cells with intervals and baselines, averages, paired comparisons."""

import bz2
import csv
import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from lm2.eval.babilong import TASK_GROUPS, Scores, average, score_cells, wilson_interval
from lm2.eval.compare import compare, compare_over_seeds, mean_over_seeds
from lm2.eval.metrics import METRICS
from lm2.eval.predictions import Prediction, check_against_dataset, read_predictions
from lm2.eval.scores_json import read_scores, write_scores

CSV_NAME = "qa1_4k_instruction_yes_examples_yes_post_prompt_yes.csv"


def predict(
    target="garden", output="garden", index=0, model="ours", task="qa1", length="4k", prompt="plain", asked="?"
):
    return Prediction(model, prompt, task, length, index, asked, target, output)


def counted_by(tokenizer: str | None, **fields) -> list[Prediction]:
    return [replace(predict(**fields), lengths_counted_by=tokenizer)]


def test_samples_made_by_different_tokenizers_are_not_compared():
    with pytest.raises(ValueError, match="have different tokenizers"):
        compare(counted_by("a"), counted_by("b", model="theirs"), "exact")
    for ours, theirs in (("a", "a"), ("a", None), (None, None)):
        compare(counted_by(ours), counted_by(theirs, model="theirs"), "exact")
    # Facts alone are the same.
    compare(counted_by("a", length="0k"), counted_by("b", length="0k", model="theirs"), "exact")


def cell_rows(outputs: list[str], targets: list[str], **fields) -> list[Prediction]:
    pairs = zip(targets, outputs, strict=True)
    return [predict(target, output, index, **fields) for index, (target, output) in enumerate(pairs)]


def grid(tasks, lengths, accuracies) -> list[Prediction]:
    """Ten samples per cell, so many tenths of them right."""
    rows = []
    for (task, length), tenths in zip([(t, x) for t in tasks for x in lengths], accuracies, strict=True):
        rows += cell_rows(["garden"] * tenths + ["hall"] * (10 - tenths), ["garden"] * 10, task=task, length=length)
    return rows


# --- cells ---


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_is_scipys(pair):
    right, n = pair
    known = binomtest(right, n).proportion_ci(method="wilson")
    assert wilson_interval(right, n) == pytest.approx((known.low, known.high), abs=1e-12)


def test_wilson_interval_at_its_ends():
    assert wilson_interval(0, 100) == (0, pytest.approx(0.0369935, abs=1e-7))
    assert wilson_interval(100, 100) == (pytest.approx(0.9630065, abs=1e-7), 1)


@pytest.mark.parametrize(("right", "n"), [(1, 0), (0, 0), (-1, 5), (6, 5)])
def test_no_interval_of_nonsense(right, n):
    with pytest.raises(ValueError, match=f"right is {right} of n = {n}"):
        wilson_interval(right, n)


def test_a_cell_holds_all_metrics_and_chance():
    """qa7 with 5 x none, 4 x one, 1 x two, always answered with none."""
    targets = ["none"] * 5 + ["one"] * 4 + ["two"]
    [cell] = score_cells(cell_rows(["none"] * 10, targets, task="qa7"))
    assert (cell.model, cell.task, cell.length, cell.prompt, cell.n) == ("ours", "qa7", "4k", "plain", 10)
    exact, official, substring = (cell.metrics[name] for name in METRICS)
    assert [score.right for score in (exact, official, substring)] == [5, 0, 9]
    assert [score.accuracy for score in (exact, official, substring)] == [0.5, 0, 0.9]
    assert (exact.low, exact.high) == wilson_interval(5, 10)
    # The best constant answer differs by metric: official never counts "none", substring gives "one" for "none" too.
    assert [(score.majority_answer, score.majority) for score in (exact, official, substring)] == [
        ("none", 0.5),
        ("one", 0.4),
        ("none", 0.9),
    ]
    # Guesses none, one, three, two: exact 5 + 4 + 0 + 1 of 40; official 0 + 4 + 0 + 1; substring 9 + 4 + 0 + 1.
    assert [score.random for score in (exact, official, substring)] == pytest.approx([10 / 40, 5 / 40, 14 / 40])


def test_the_exact_majority_is_the_most_frequent_target_whatever_its_spelling():
    [cell] = score_cells(cell_rows([""] * 5, ["apple,milk", "milk,apple", "apple", "nothing", "nothing,"], task="qa8"))
    assert cell.metrics["exact"].majority == 2 / 5
    # Of the labels apple, football, milk, nothing one guess in four is right in three of five samples.
    assert cell.metrics["exact"].random == pytest.approx(3 / 20)


def test_cells_come_in_order_and_apart():
    runs = product("ba", ("plain", "other"), ("qa10", "qa2"), ("1M", "16k", "2k"))
    rows = [predict(model=model, prompt=prompt, task=task, length=length) for model, prompt, task, length in runs]
    cells = score_cells(rows)
    assert [(c.model, c.prompt) for c in cells[::6]] == [("a", "other"), ("a", "plain"), ("b", "other"), ("b", "plain")]
    assert [(c.task, c.length) for c in cells[:6]] == [(t, x) for t in ("qa2", "qa10") for x in ("2k", "16k", "1M")]
    assert all(cell.n == 1 for cell in cells)


# --- averages ---


def test_averages_count_each_cell_the_same():
    rows = cell_rows(["garden"], ["garden"], task="qa1") + cell_rows(["x"] * 99, ["garden"] * 99, task="qa2")
    assert average(score_cells(rows), "exact", "ours", "plain", ["qa1", "qa2"], ["4k"]).accuracy == 0.5


def test_an_average_over_a_grid_with_a_hole_has_no_value():
    """The paper's row for 8K and more left out 128K without a word."""
    cells = score_cells(grid(["qa1", "qa2"], ["8k", "16k"], [1, 2, 3, 4]))
    whole = average(cells, "exact", "ours", "plain", ["qa1", "qa2"], ["8k", "16k"])
    assert (whole.accuracy, whole.num_cells, whole.missing) == (pytest.approx(0.25), 4, ())
    holed = average(cells, "exact", "ours", "plain", ["qa1", "qa2"], ["8k", "16k", "128k"])
    assert holed.accuracy is None
    assert holed.accuracy_of_present == pytest.approx(0.25)
    assert holed.missing == (("qa1", "128k"), ("qa2", "128k"))
    assert average(cells, "exact", "ours", "plain", ["qa9"], ["8k"]).accuracy_of_present is None


def test_groups_of_tasks():
    assert TASK_GROUPS["qa1-5"] == ("qa1", "qa2", "qa3", "qa4", "qa5")
    assert len(TASK_GROUPS["qa1-10"]) == 10
    assert set(TASK_GROUPS["qa1-10"]) - set(TASK_GROUPS["qa1-10 without qa7"]) == {"qa7"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metric": "f1"}, "metric is 'f1', but must be one of exact, official, substring"),
        ({"tasks": ["qa21"]}, "task is 'qa21'"),
        ({"tasks": ["qa1", "qa1"]}, "tasks is"),
        ({"tasks": []}, "tasks is"),
        ({"lengths": ["4x"]}, "length is '4x'"),
        ({"lengths": ["1M", "1000k"]}, "lengths is"),
        ({"model": "theirs"}, "no cell of model 'theirs'"),
        ({"prompt": "other"}, "with prompt 'other'"),
    ],
)
def test_an_average_of_unknown_things_is_refused(change, message):
    arguments = {"metric": "exact", "model": "ours", "prompt": "plain", "tasks": ["qa1"], "lengths": ["4k"]}
    with pytest.raises(ValueError, match=message):
        average(score_cells([predict()]), **{**arguments, **change})


# --- comparisons ---


def outcome_rows(pairs: list[tuple[bool, bool]], **fields) -> tuple[list[Prediction], list[Prediction]]:
    sides = []
    for side, model in enumerate(("ours", "theirs")):
        outputs = ["garden" if pair[side] else "hall" for pair in pairs]
        sides.append(cell_rows(outputs, ["garden"] * len(pairs), model=model, **fields))
    return sides[0], sides[1]


def test_a_comparison_against_resampling_row_by_row():
    """The intervals equal those of a plain bootstrap that draws the rows themselves."""
    rng = np.random.default_rng(3)
    cells = {"qa1": rng.random((60, 2)) < (0.8, 0.5), "qa2": rng.random((25, 2)) < (0.4, 0.3)}
    ours, theirs = [], []
    for task, pairs in cells.items():
        for side, rows in zip((ours, theirs), outcome_rows(pairs.tolist(), task=task), strict=True):
            side += rows
    found = compare(ours, theirs, "exact", resamples=40_000, seed=1)

    means = []
    for pairs in cells.values():
        draws = rng.integers(len(pairs), size=(40_000, len(pairs)))
        means.append(pairs[draws].mean(axis=1))
    model, baseline = np.mean(means, axis=0).T
    exact_model, exact_baseline = np.mean([pairs.mean(axis=0) for pairs in cells.values()], axis=0)
    assert (found.mean, found.baseline_mean) == pytest.approx((exact_model, exact_baseline))
    assert found.difference.value == pytest.approx(exact_model - exact_baseline)
    assert found.ratio.value == pytest.approx(exact_model / exact_baseline)
    interval = np.quantile(model - baseline, (0.025, 0.975))
    assert (found.difference.low, found.difference.high) == pytest.approx(interval, abs=0.012)
    interval = np.quantile(model / baseline, (0.025, 0.975))
    assert (found.ratio.low, found.ratio.high) == pytest.approx(interval, abs=0.06)
    assert (found.n, found.cells, found.resamples) == (85, (("qa1", "4k"), ("qa2", "4k")), 40_000)


def seed_rows(right: np.ndarray, **fields) -> list[list[Prediction]]:
    """A run for each column of `right`, which has a row for each sample."""
    return [
        cell_rows(["garden" if is_right else "hall" for is_right in column], ["garden"] * len(right), **fields)
        for column in right.T
    ]


def test_a_comparison_over_seeds_against_resampling_row_by_row():
    """Two seeds against three: a sample is drawn with all five answers, and counts as the share that is right."""
    rng = np.random.default_rng(4)
    # One hardness a sample, so that the runs' answers to it depend on one another.
    cells = {task: rng.random((n, 1)) + 0.3 * rng.random((n, 5)) < 0.8 for task, n in (("qa1", 60), ("qa2", 25))}
    ours: list[list[Prediction]] = [[], []]
    theirs: list[list[Prediction]] = [[], [], []]
    for task, right in cells.items():
        for side, columns, model in ((ours, right[:, :2], "a"), (theirs, right[:, 2:], "b")):
            for run, rows in zip(side, seed_rows(columns, task=task, model=model), strict=True):
                run += rows
    found = compare_over_seeds("ours", ours, "theirs", theirs, "exact", resamples=40_000, seed=1)

    shares = [np.stack([right[:, :2].mean(axis=1), right[:, 2:].mean(axis=1)], axis=1) for right in cells.values()]
    draws = [share[rng.integers(len(share), size=(40_000, len(share)))].mean(axis=1) for share in shares]
    model, baseline = np.mean(draws, axis=0).T
    exact_model, exact_baseline = np.mean([share.mean(axis=0) for share in shares], axis=0)
    assert (found.mean, found.baseline_mean) == pytest.approx((exact_model, exact_baseline))
    interval = np.quantile(model - baseline, (0.025, 0.975))
    assert (found.difference.low, found.difference.high) == pytest.approx(interval, abs=0.004)
    interval = np.quantile(model / baseline, (0.025, 0.975))
    assert (found.ratio.low, found.ratio.high) == pytest.approx(interval, abs=0.006)
    assert (found.model, found.num_runs, found.baseline, found.num_baseline_runs) == ("ours", 2, "theirs", 3)
    assert (found.n, found.names) == (85, ("ours, 2 seeds", "theirs, 3 seeds"))


def test_a_mean_over_seeds_against_resampling_row_by_row():
    """Two seeds: a sample is drawn with both answers, and every cell counts the same, however many samples it has."""
    rng = np.random.default_rng(5)
    cells = {task: rng.random((n, 1)) + 0.3 * rng.random((n, 2)) < 0.8 for task, n in (("qa1", 60), ("qa2", 25))}
    runs: list[list[Prediction]] = [[], []]
    for task, right in cells.items():
        for run, rows in zip(runs, seed_rows(right, task=task), strict=True):
            run += rows
    found = mean_over_seeds(runs, "exact", resamples=40_000, seed=1)
    assert found.value == pytest.approx(np.mean([right.mean() for right in cells.values()]))
    shares = [right.mean(axis=1) for right in cells.values()]
    draws = np.mean([share[rng.integers(len(share), size=(40_000, len(share)))].mean(axis=1) for share in shares], 0)
    assert (found.low, found.high) == pytest.approx(np.quantile(draws, (0.025, 0.975)), abs=0.004)
    other = [[replace(row, question="Who?") for row in runs[1]]]
    with pytest.raises(ValueError, match="the question is"):
        mean_over_seeds(runs[:1] + other, "exact")


def test_a_comparison_over_one_seed_is_a_comparison():
    ours, theirs = outcome_rows([(True, False)] * 13 + [(True, True)] * 20 + [(False, True)] * 5)
    assert compare_over_seeds("ours", [ours], "theirs", [theirs], "exact") == compare(ours, theirs, "exact")
    # Nor does a seed that answers as the other did tell anything new.
    once, twice = (compare_over_seeds("a", [ours] * count, "b", [theirs], "exact", seed=1) for count in (1, 2))
    assert twice.difference.value == once.difference.value
    assert twice.difference.low == pytest.approx(once.difference.low, abs=0.03)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"index": 7}, "row 1, 'b' .* does not"),
        ({"target": "office"}, "the target is"),
        ({"prompt": "other"}, "the runs of 'ours' must have one prompt, but they have other, plain"),
        (None, "the runs of 'ours' must have one prompt, but they have none"),
    ],
)
def test_seeds_that_answered_other_questions_are_refused(change, message):
    runs = [cell_rows(["garden"] * 2, ["garden"] * 2, model=model) for model in ("a", "b")]
    rival = cell_rows(["garden"] * 2, ["garden"] * 2, model="c")
    if change is None:
        runs = []
    elif "prompt" in change:
        runs[1] = [replace(row, **change) for row in runs[1]]
    else:
        runs[1][1] = replace(runs[1][1], **change)
    with pytest.raises(ValueError, match=message):
        compare_over_seeds("ours", runs, "theirs", [rival], "exact")


def test_pairing_makes_the_interval_narrow():
    """Equal answers leave no doubt about the difference; an unpaired interval would be wide."""
    pairs = [(True, True), (False, False)] * 50
    found = compare(*outcome_rows(pairs), "exact")
    assert (found.difference.value, found.difference.low, found.difference.high) == (0, 0, 0)
    assert (found.ratio.low, found.ratio.high) == (1, 1)
    crossed = compare(*outcome_rows([(True, False), (False, True)] * 50), "exact")
    assert crossed.difference.high - crossed.difference.low > 0.3


def test_a_seed_decides_the_resamples():
    pairs = [(True, False)] * 13 + [(True, True)] * 20 + [(False, True)] * 5
    first, again, other = (compare(*outcome_rows(pairs), "exact", seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first.difference.value == other.difference.value
    assert first.ratio != other.ratio


def test_no_ratio_to_a_baseline_that_may_be_zero():
    assert compare(*outcome_rows([(True, False)] * 20), "exact").ratio is None
    found = compare(*outcome_rows([(True, False)] * 19 + [(True, True)]), "exact")
    assert found.ratio is None
    assert found.difference.value == pytest.approx(0.95)


def test_a_comparison_uses_its_metric():
    rows, baseline = cell_rows(["none"], ["one"], task="qa7"), cell_rows(["two"], ["one"], task="qa7", model="theirs")
    assert compare(rows, baseline, "exact").mean == 0
    assert compare(rows, baseline, "substring").mean == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": "office"}, "row 2: the target is 'garden' in 'ours' .*, but 'office' in 'theirs'"),
        ({"question": "Where?"}, "row 2: the question is '\\?'"),
        ({"index": 7}, "'ours' .* has qa1 at 4k, row 2, 'theirs' .* does not \\(1 such"),
        ({"length": "8k"}, "'ours' .* has qa1 at 4k, row 2"),
        ({"index": 1}, "qa1 at 4k, row 1 of model 'theirs' is there twice"),
        ({"model": "third"}, "one model with one prompt"),
        ({"prompt": "other"}, "one model with one prompt"),
    ],
)
def test_rows_that_do_not_match_are_refused(change, message):
    ours, theirs = outcome_rows([(True, True)] * 3)
    theirs[2] = replace(theirs[2], **change)
    with pytest.raises(ValueError, match=message):
        compare(ours, theirs, "exact")


def test_a_comparison_of_nothing_is_refused():
    ours, theirs = outcome_rows([(True, True)] * 3)
    with pytest.raises(ValueError, match=r"'theirs' .* has qa1 at 4k, row 2, 'ours' .* does not"):
        compare(ours[:2], theirs, "exact")
    with pytest.raises(ValueError, match="it has none"):
        compare([], theirs, "exact")
    with pytest.raises(ValueError, match="resamples is 10"):
        compare(ours, theirs, "exact", resamples=10)


# --- prediction files ---


def row_json(**change) -> str:
    row = {"task": "qa1", "length": "4k", "index": 0, "question": "Where? ", "target": "garden", "output": "garden"}
    row = {**row, "model": "ours", **change}
    return json.dumps({key: value for key, value in row.items() if value is not ...}) + "\n"


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="")
    return path


def test_rows_of_ours(tmp_path):
    text = (
        row_json(more={"seconds": 1}) + row_json(index=1, prompt="plain", output="a\nb") + row_json(index=0, task="qa2")
    )
    path = write(tmp_path / "a.jsonl", text + row_json(index=0, prompt="plain"))
    rows = read_predictions([path])
    assert rows[0] == Prediction("ours", "unstated", "qa1", "4k", 0, "Where? ", "garden", "garden")
    assert rows[1] == Prediction("ours", "plain", "qa1", "4k", 1, "Where? ", "garden", "a\nb")
    assert [(row.task, row.prompt, row.index) for row in rows[2:]] == [("qa2", "unstated", 0), ("qa1", "plain", 0)]


@pytest.mark.parametrize("header", ["", "Unnamed: 0", None])
def test_rows_of_the_official_repository(tmp_path, header):
    lines = ["target,output,question", 'garden,"Garden, ""so""\nit is.",Where is Mary? ', "office,,Where is John? "]
    if header is not None:
        lines = [f"{start},{line}" for start, line in zip((header, "0", "1"), lines, strict=True)]
    path = write(tmp_path / "some-model" / CSV_NAME, "\r\n".join(lines) + "\r\n")
    prompt = "instruction_yes_examples_yes_post_prompt_yes"
    garden = Prediction("some-model", prompt, "qa1", "4k", 0, "Where is Mary? ", "garden", 'Garden, "so"\nit is.')
    office = replace(garden, index=1, question="Where is John? ", target="office", output="")
    assert read_predictions([path]) == [garden, office]
    assert {row.model for row in read_predictions([path], csv_model="mine")} == {"mine"}


# The csv module reads no NUL in Python 3.10.
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"))


@given(st.lists(st.tuples(TEXT, TEXT), min_size=1))
def test_any_text_survives_both_forms(tmp_path_factory, pairs):
    folder = tmp_path_factory.mktemp("predictions")
    texts = [row_json(index=index, target=target, output=output) for index, (target, output) in enumerate(pairs)]
    rows = read_predictions([write(folder / "a.jsonl", "".join(texts))])
    assert [(row.target, row.output) for row in rows] == pairs

    with (folder / CSV_NAME).open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("target", "output", "question"), *((*pair, "?") for pair in pairs)])
    assert [(row.target, row.output) for row in read_predictions([folder / CSV_NAME])] == pairs


def test_a_folder_stands_for_its_files(tmp_path):
    write(tmp_path / "a" / CSV_NAME, "target,output,question\ngarden,garden,?\n")
    write(tmp_path / "a" / CSV_NAME.replace(".csv", ".json"), "{}")
    (tmp_path / "b.jsonl.bz2").write_bytes(bz2.compress(row_json().encode()))
    assert [row.model for row in read_predictions([tmp_path])] == ["a", "ours"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a.jsonl has no rows"),
        (row_json() + "\n", "a.jsonl:2: the line is empty"),
        (row_json() + '{"task": \n', "a.jsonl:2: this is no JSON"),
        ("[1]\n", "a.jsonl:1: this is no JSON object, but list"),
        (row_json(output=...), "a.jsonl:1: 'output' is missing"),
        (row_json(output=None), "a.jsonl:1: 'output' is None, but must be a string"),
        (row_json(index="0"), "'index' is '0', but must be a whole number"),
        (row_json(index=True), "'index' is True"),
        (row_json(index=0.0), "'index' is 0.0"),
        (row_json(index=-1), "'index' is -1, but must be 0 or more"),
        (row_json(prompt=3), "'prompt' is 3"),
        (row_json(model=" "), "'model' is empty"),
        (row_json(task="qa21"), "a.jsonl:1: task is 'qa21'"),
        (row_json(length="4K"), "a.jsonl:1: length is '4K'"),
        (row_json() + row_json(), "a.jsonl:2: row 0 of qa1 at 4k .* is there already, at .*a.jsonl:1"),
        (row_json() + row_json(index=1, model="b"), "a.jsonl:2: the model is 'b', but 'ours' in the rows before"),
        (row_json() + row_json(index=2), "a.jsonl:2: .* has row 2, but lacks 1 of the rows before it: 1"),
        (row_json(index=9), "lacks 9 of the rows before it: 0, 1, 2, 3, 4 and more"),
    ],
)
def test_a_malformed_file_of_ours_is_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_predictions([write(tmp_path / "a.jsonl", text)])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "columns are \\[\\]"),
        ("target,output,question\n", "has no rows"),
        ("target,output\na,b\n", ":1: the columns are \\['target', 'output'\\], but must be"),
        ("target,output,question,score\n", ":1: the columns are"),
        ("target,output,question\na,b\n", ":2: the row has 2 values, but there are 3 columns"),
        (",target,output,question\n0,a,b,c\n2,a,b,c\n", ":3: the row is number '2', but must be 1"),
        ('target,output,question\na,"b,c\n', "unexpected end of data"),
        ('target,output,question\na,"b"x,c\n', ":2: "),
    ],
)
def test_a_malformed_official_file_is_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=message) as error:
        read_predictions([write(tmp_path / CSV_NAME, text)])
    assert CSV_NAME in str(error.value)


@pytest.mark.parametrize("name", ["results.csv", "qa1_4k.csv", "qa21_4k_x.csv", "qa1_0M_x.csv"])
def test_a_csv_file_must_be_named_as_officially(tmp_path, name):
    with pytest.raises(ValueError, match=name):
        read_predictions([write(tmp_path / name, "target,output,question\na,b,c\n")])


def test_files_that_are_none(tmp_path):
    ours = write(tmp_path / "a.jsonl", row_json())
    for paths, message in (
        ([], "no prediction files are given"),
        ([tmp_path / "b.jsonl"], "b.jsonl does not exist"),
        ([write(tmp_path / "a.txt", "x")], "must end in .jsonl or .csv"),
        ([write(tmp_path / "empty" / "a.txt", "x").parent], "folder without .csv or .jsonl"),
        ([ours, tmp_path / "empty" / ".." / "a.jsonl"], "given twice"),
    ):
        with pytest.raises(ValueError, match=message):
            read_predictions(paths)
    with pytest.raises(ValueError, match=r"model is 'x', but names the model of \.csv files, and none is given"):
        read_predictions([ours], csv_model="x")


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.xz", "a.jsonl.bz2", "a.jsonl.gz", CSV_NAME, CSV_NAME + ".xz"])
def test_a_damaged_file_is_refused(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"\xff\xfe\x00\xff")
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        read_predictions([path])


# --- the dataset that was asked ---


@pytest.fixture
def dataset(tmp_path) -> Path:
    rows = [{"input": "A.", "question": "Where is Mary? ", "target": target} for target in ("garden", "office")]
    write(tmp_path / "set" / "data" / "qa1" / "4k.json", json.dumps(rows))
    return tmp_path / "set"


def test_predictions_that_answer_the_dataset(dataset):
    rows = cell_rows(["x", "y"], ["garden", "office"], asked="Where is Mary? ")
    # The space at the end of a question may be lost.
    check_against_dataset(rows + [replace(row, model="b", question="Where is Mary?") for row in rows[::-1]], dataset)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": "garden"}, "row 1: the target is 'garden', but 'office' in the dataset"),
        ({"question": "Who?"}, "row 1: the question is 'Who\\?'"),
        (None, "has 1 rows, but the dataset has 2"),
    ],
)
def test_predictions_of_another_dataset_are_refused(dataset, change, message):
    rows = cell_rows(["x", "y"], ["garden", "office"], asked="Where is Mary? ")
    rows[1:] = [] if change is None else [replace(rows[1], **change)]
    with pytest.raises(ValueError, match=message):
        check_against_dataset(rows, dataset)


def test_a_cell_that_the_dataset_lacks_is_refused(dataset):
    with pytest.raises(OSError, match="8k"):
        check_against_dataset([predict(length="8k")], dataset)


# --- scores files ---


@pytest.fixture
def scores() -> Scores:
    ours, theirs = outcome_rows([(True, False), (True, True), (False, True)] * 20)
    comparisons = (compare(ours, theirs, "exact"), replace(compare(ours, theirs, "official"), ratio=None))
    return Scores(score_cells(ours + theirs), comparisons, {"files": ["a.jsonl"], "dataset": None})


def test_scores_come_back_from_their_file(tmp_path, scores):
    path = tmp_path / "new" / "scores.json"
    write_scores(path, scores)
    assert read_scores(path) == scores
    assert [file.name for file in path.parent.iterdir()] == ["scores.json"]


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (["kind"], "x", "holds no scores"),
        (["version"], 2, "has version 2"),
        (["cells"], [], "no cells"),
        (["cells"], {}, "'cells' must be a list"),
        (["settings"], None, "'settings' must be an object"),
        (["cells", 0, "n"], ..., "cells\\[0\\]: .*'n'"),
        (["cells", 1, "n"], 0, "cells\\[1\\]: exact says 40 of 0"),
        (["cells", 0, "model"], "theirs", "a cell twice"),
        (["cells", 0, "task"], "qa0", "cells\\[0\\]: task is 'qa0'"),
        (["cells", 0, "more"], 1, "cells\\[0\\]: .*'more'"),
        (["cells", 0, "metrics", "exact"], ..., "cells\\[0\\] lacks 'exact'"),
        (["cells", 0, "metrics", "exact", "accuracy"], 0.9, "accuracy 0.9"),
        (["comparisons", 1, "metric"], "f1", "comparisons\\[1\\]: metric is 'f1'"),
        (["comparisons", 0, "difference"], ..., "comparisons\\[0\\] lacks 'difference'"),
    ],
)
def test_a_spoilt_scores_file_is_refused(tmp_path, scores, keys, value, message):
    write_scores(tmp_path / "scores.json", scores)
    document = json.loads((tmp_path / "scores.json").read_text())
    *way, last = keys
    place = document
    for key in way:
        place = place[key]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    path = write(tmp_path / "scores.json", json.dumps(document))
    with pytest.raises(ValueError, match=message):
        read_scores(path)


@pytest.mark.parametrize(
    ("text", "message"), [("", "is no JSON"), ("[]", "holds no scores"), ("{}", "holds no scores")]
)
def test_a_file_that_holds_no_scores_is_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_scores(write(tmp_path / "a.json", text))
