"""`lm2 score` as users call it: tables, comparisons, the scores file, and refusals that leave nothing behind."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lm2.cli.main import app
from lm2.eval.scores_json import read_scores


def invoke(*arguments: object):
    return CliRunner().invoke(app, ["score", *map(str, arguments)])


def write_rows(path: Path, model: str, right: dict[tuple[str, str], int], n: int = 20, **more) -> Path:
    """So many of `n` samples right in each cell (task, length)."""
    with path.open("w") as file:
        for (task, length), count in right.items():
            for index in range(n):
                row = {"task": task, "length": length, "index": index, "question": "Where is Mary? ", "model": model}
                output = "garden." if index < count else "hall"
                file.write(json.dumps({**row, "target": "garden", "output": output, **more}) + "\n")
    return path


@pytest.fixture
def files(tmp_path) -> list[Path]:
    cells = [(task, length) for task in ("qa1", "qa2") for length in ("4k", "128k")]
    ours = write_rows(tmp_path / "ours.jsonl", "org/ours[red]", dict(zip(cells, (20, 15, 12, 5), strict=True)))
    theirs = write_rows(tmp_path / "theirs.jsonl", "theirs", dict(zip(cells, (10, 9, 8, 7), strict=True)))
    return [ours, theirs]


def lines_of(text: str) -> list[list[str]]:
    """The cells of table rows."""
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in text.splitlines() if line.startswith("│")]


def test_the_tables(files):
    result = invoke(*files)
    assert result.exit_code == 0, result.stderr
    assert "\x1b" not in result.stdout
    rows = lines_of(result.stdout)
    # Lengths in order; the only target is garden, so the constant answer is always right; one guess in six is.
    assert "org/ours[red], prompt unstated: exact" in result.stdout
    assert rows[0] == ["qa1", "100.0*", "75.0*", "87.5", "20", "100.0", "16.7"]
    assert rows[1] == ["", "83.9-100.0", "53.1-88.8", "", "", "", ""]
    assert rows[2][:4] == ["qa2", "60.0*", "25.0*", "42.5"]
    assert rows[4] == ["all tasks here", "exact", "80.0", "50.0", "65.0"]
    assert [row[1] for row in rows[4:7]] == ["exact", "official", "substring"]
    assert result.stdout.index("4k") < result.stdout.index("128k")


def test_another_metric_is_printed_when_asked(tmp_path):
    path = write_rows(tmp_path / "a.jsonl", "m", {("qa7", "0k"): 0}, target="one", output="none")
    for metric, accuracy in (("exact", "0.0*"), ("official", "0.0*"), ("substring", "100.0*")):
        result = invoke(path, "--metric", metric)
        assert lines_of(result.stdout)[0][:2] == ["qa7", accuracy]


def test_a_hole_in_the_grid_is_said(tmp_path):
    path = write_rows(tmp_path / "a.jsonl", "m", {("qa1", "4k"): 20, ("qa1", "8k"): 20, ("qa2", "4k"): 10})
    result = invoke(path)
    rows = lines_of(result.stdout)
    assert rows[2][:4] == ["qa2", "50.0*", "", "-"]
    assert rows[4] == ["all tasks here", "exact", "75.0", "-", "-"]
    assert "all tasks here lacks qa2 at 8k" in result.stdout


def test_groups_of_tasks_are_averaged_when_they_are_there(tmp_path):
    tasks = [f"qa{number}" for number in range(1, 11)]
    path = write_rows(tmp_path / "a.jsonl", "m", {(task, "0k"): 20 if task == "qa7" else 10 for task in tasks})
    rows = lines_of(invoke(path).stdout)
    means = {row[0]: row[2] for row in rows if row[1] == "exact"}
    assert means == {"qa1-5": "50.0", "qa1-10": "55.0", "qa1-10 without qa7": "50.0"}


def test_comparisons_and_the_scores_file(files, tmp_path):
    out = tmp_path / "new" / "scores.json"
    result = invoke(*files, "--baseline", "theirs", "--json", out)
    assert result.exit_code == 0, result.stderr
    scores = read_scores(out)
    assert len(scores.cells) == 8
    assert scores.settings["files"] == [str(path) for path in files]
    by_metric = {item.metric: item for item in scores.comparisons}
    assert list(by_metric) == ["exact", "official", "substring"]
    exact = by_metric["exact"]
    assert (exact.model, exact.baseline, exact.n) == ("org/ours[red]", "theirs", 80)
    assert (exact.mean, exact.baseline_mean) == pytest.approx((0.65, 0.425))
    [row] = [row for row in lines_of(result.stdout) if row[:3] == ["org/ours[red]", "theirs", "exact"]]
    assert row[7].startswith("+22.5 [+")
    assert row[8].startswith("1.529 [")
    assert invoke(*files, "--baseline", "theirs", "--json", out).exit_code == 0
    assert read_scores(out) == scores


def test_seeds_are_compared_together(tmp_path):
    cell = ("qa1", "4k")
    counts = {"lm2-seed0": 20, "lm2-seed1": 14, "rmt-seed0": 8, "rmt-seed1": 4, "llama": 2}
    files = [write_rows(tmp_path / f"{name}.jsonl", name, {cell: count}) for name, count in counts.items()]
    out = tmp_path / "scores.json"
    result = invoke(*files, "--baseline", "rmt", "--pool-seeds", "--json", out)
    assert result.exit_code == 0, result.stderr
    means = {
        row[0]: (row[1], row[4:7]) for row in lines_of(result.stdout) if len(row) > 2 and row[2] == "exact" and row[1]
    }
    assert means["lm2, 2 seeds"] == ("rmt, 2 seeds", ["20", "85.0", "30.0"])
    assert means["llama"] == ("rmt, 2 seeds", ["20", "10.0", "30.0"])
    # Accuracies stay those of each run.
    assert {item.model for item in read_scores(out).cells} == set(counts)
    assert {(item.model, item.num_runs) for item in read_scores(out).comparisons} == {("lm2", 2), ("llama", 1)}


def test_pooling_without_seeds_or_a_baseline_is_refused(files, tmp_path):
    nothing = invoke(*files, "--pool-seeds")
    assert nothing.exit_code == 2
    assert "name a --baseline" in nothing.stderr
    single = invoke(*files, "--baseline", "theirs", "--pool-seeds")
    assert single.exit_code == 2
    assert "needs a model with several seeds" in single.stderr


def test_only_some_tasks_and_lengths(files, tmp_path):
    out = tmp_path / "scores.json"
    assert invoke(*files, "--tasks", "qa2", "--lengths", "4k", "--json", out).exit_code == 0
    assert {(cell.task, cell.length) for cell in read_scores(out).cells} == {("qa2", "4k")}


def test_models_with_other_cells_can_be_compared_where_both_have_them(files, tmp_path):
    short = write_rows(tmp_path / "short.jsonl", "short", {("qa1", "4k"): 3})
    refused = invoke(files[0], short, "--baseline", "short")
    assert refused.exit_code == 2
    assert "compare models on the same samples only" in refused.stderr
    result = invoke(files[0], short, "--baseline", "short", "--tasks", "qa1", "--lengths", "4k")
    assert result.exit_code == 0, result.stderr
    assert "+85.0 [" in result.stdout


def test_each_prompt_is_compared_with_its_like(tmp_path):
    paths = []
    for model, prompts in (("a", ("plain", "x")), ("b", ("plain", "x")), ("c", ("plain",))):
        for prompt in prompts:
            path = tmp_path / f"{model}-{prompt}.jsonl"
            paths.append(write_rows(path, model, {("qa1", "4k"): 5}, prompt=prompt))
    out = tmp_path / "scores.json"
    assert invoke(*paths, "--baseline", "b", "--json", out).exit_code == 0
    pairs = {(item.model, item.prompt, item.baseline_prompt) for item in read_scores(out).comparisons}
    assert pairs == {("a", "plain", "plain"), ("a", "x", "x"), ("c", "plain", "plain")}
    odd = write_rows(tmp_path / "d.jsonl", "d", {("qa1", "4k"): 5}, prompt="y")
    refused = invoke(*paths, odd, "--baseline", "b")
    assert refused.exit_code == 2
    assert "give files of one of them" in refused.stderr


def test_official_files(tmp_path):
    path = tmp_path / "some-model" / "qa1_0k_instruction_yes_examples_yes_post_prompt_yes.csv"
    path.parent.mkdir()
    path.write_text(
        ",target,output,question\n"
        "0,garden,The most recent location of Mary is garden.,Where is Mary? \n"
        "1,office,Mary is in the office.,Where is Mary? \n"
    )
    out = tmp_path / "scores.json"
    assert invoke(path.parent, "--json", out).exit_code == 0
    [cell] = read_scores(out).cells
    assert (cell.model, cell.prompt) == ("some-model", "instruction_yes_examples_yes_post_prompt_yes")
    assert [cell.metrics[name].right for name in ("exact", "official", "substring")] == [1, 2, 2]
    assert invoke(path, "--model", "mine", "--json", out).exit_code == 0
    assert read_scores(out).cells[0].model == "mine"


def test_the_dataset_is_checked(files, tmp_path):
    folder = tmp_path / "set" / "data" / "qa1"
    folder.mkdir(parents=True)
    rows = [{"input": "A.", "question": "Where is Mary? ", "target": "garden"}] * 20
    (folder / "4k.json").write_text(json.dumps(rows))
    arguments = (files[0], "--tasks", "qa1", "--lengths", "4k", "--dataset", tmp_path / "set")
    assert invoke(*arguments).exit_code == 0
    (folder / "4k.json").write_text(json.dumps(rows[:19]))
    refused = invoke(*arguments)
    assert refused.exit_code == 2
    assert "has 20 rows, but the dataset has 19" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--metric", "f1"], "metric is 'f1', but must be one of exact, official, substring"),
        (["--tasks", "qa21"], "21"),
        (["--tasks", "qa3"], "no prediction has the task qa3, there are only qa1, qa2"),
        (["--lengths", "4x"], "length is '4x'"),
        (["--lengths", "8k"], "no prediction has the length 8k"),
        (["--baseline", "third"], "--baseline is 'third'"),
        (["--model", "mine"], "model is 'mine', but names the model of .csv files"),
        (["--dataset", "nowhere"], "'nowhere'"),
        (["--json", "{folder}"], "that is a folder"),
        (["--json", "{folder}/ours.jsonl"], "one of the prediction files"),
    ],
)
def test_refusals_leave_all_as_it_was(files, tmp_path, arguments, message):
    before = {path: path.read_bytes() for path in files}
    out = tmp_path / "scores.json"
    named = [text.format(folder=tmp_path) for text in arguments]
    result = invoke(*files, *named, *([] if "--json" in named else ["--json", out]))
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not result.stdout
    assert not out.exists()
    assert {path: path.read_bytes() for path in files} == before


def test_a_baseline_needs_another_model(files):
    result = invoke(files[1], "--baseline", "theirs")
    assert result.exit_code == 2
    assert "the files must hold it and another model; they hold theirs" in result.stderr
