"""`lm2 tables babilong` as users call it: files, what is printed, and refusals that leave nothing behind."""

import csv
import importlib.util
import json
from pathlib import Path

import pytest
from toy_scores import make_scores
from typer.testing import CliRunner

from lm2.cli.main import app
from lm2.eval.scores_json import write_scores

TEN = [f"qa{number}" for number in range(1, 11)]
ALL_FILES = ["averages.csv", "cells.csv", "heat.png", "heat.svg", "radar.png", "radar.svg", "tables.json", "tables.md"]


def invoke(*arguments: object):
    return CliRunner().invoke(app, ["tables", "babilong", *map(str, arguments)])


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def scores(tmp_path) -> Path:
    path = tmp_path / "scores.json"
    write_scores(path, make_scores({(task, length): 60 for task in TEN for length in ("0k", "4k")}))
    return path


def test_all_files(scores, tmp_path):
    out = tmp_path / "new" / "tables"
    result = invoke(scores, "--reference", "rmt, armt", "--out", out)
    assert result.exit_code == 0, result.stderr
    assert names_in(out) == ALL_FILES
    assert sorted(result.stdout.split()) == sorted(str(out / name) for name in ALL_FILES)
    labels = {row["model"] for row in csv.DictReader((out / "cells.csv").open())}
    assert {"ours", "RMT-137M (BABILong)", "ARMT-137M (BABILong)"} <= labels
    assert json.loads((out / "tables.json").read_text())["metric"] == "exact"
    assert "## ours" in (out / "tables.md").read_text()


def test_the_same_call_writes_the_same_bytes(scores, tmp_path):
    for name in ("a", "b"):
        assert invoke(scores, "--reference", "rmt", "--out", tmp_path / name).exit_code == 0
    for name in ALL_FILES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_papers_own_table_without_scores():
    result = invoke("--reference", "paper")
    assert result.exit_code == 0, result.stderr
    assert "| LM2-1.7B (LM2 paper) | not stated | 92.5 | 78.3 | 65.8 | 55.9 | 46.0 | 40.0 |" in result.stdout
    assert "Metric of our models" not in result.stdout


def test_references_in_one_option_or_several():
    one, several = invoke("--reference", "rmt,armt"), invoke("--reference", "rmt", "--reference", "armt")
    assert one.exit_code == 0, one.stderr
    assert one.stdout == several.stdout
    assert "## RMT-137M (BABILong)" in one.stdout
    assert "## ARMT-137M (BABILong)" in one.stdout
    assert "--reference names rmt twice" in invoke("--reference", "rmt", "--reference", "armt,rmt").stderr


def test_metric_tasks_and_lengths(scores):
    result = invoke(scores, "--metric", "official", "--tasks", "1-3,7", "--lengths", "4k", "--format", "md")
    assert result.exit_code == 0, result.stderr
    assert "| task | 4k | mean | n |" in result.stdout
    assert "| qa7 | 59.0 (" in result.stdout
    assert "qa8" not in result.stdout
    assert "0k" not in result.stdout
    printed = json.loads(invoke(scores, "--format", "json", "--tasks", "2").stdout)
    assert {cell["task"] for cell in printed["models"][0]["cells"]} == {"qa2"}


def test_some_formats_without_pictures(scores, tmp_path):
    result = invoke(scores, "--format", "json,md", "--no-figures", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    assert names_in(tmp_path / "out") == ["tables.json", "tables.md"]


def test_predictions_are_scored_on_the_way(scores, tmp_path):
    rows = [
        {"model": "m", "task": "qa1", "length": "4k", "index": index, "question": "Where is Mary? ", "target": "garden"}
        for index in range(4)
    ]
    path = tmp_path / "predictions.jsonl"
    path.write_text("".join(json.dumps({**row, "output": "garden" if row["index"] else "hall"}) + "\n" for row in rows))
    result = invoke(path, scores, "--tasks", "1")
    assert result.exit_code == 0, result.stderr
    assert "| qa1 | 75.0* (30.1-95.4) | 75.0 | 4 |" in result.stdout
    assert "## ours" in result.stdout


def test_pictures_that_cannot_be_drawn_are_named_and_old_ones_go(scores, tmp_path):
    out = tmp_path / "out"
    assert invoke(scores, "--out", out).exit_code == 0
    result = invoke("--reference", "llama-3.1-70b", "--out", out, "--overwrite")
    assert result.exit_code == 0, result.stderr
    assert "no heat table: only means are published, no cells" in result.stdout
    assert "no radar chart: no model has all of qa1 to qa10 at any length" in result.stdout
    assert names_in(out) == ["averages.csv", "cells.csv", "tables.json", "tables.md"]


def test_files_that_exist_are_kept_unless_told_otherwise(scores, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "radar.svg").write_text("mine")
    result = invoke(scores, "--out", out)
    assert result.exit_code == 2
    assert f"{out / 'radar.svg'} exists: choose another --out, or give --overwrite" in result.stderr
    assert names_in(out) == ["radar.svg"]
    # Files that this call would not write are not in its way.
    assert invoke(scores, "--out", out, "--no-figures").exit_code == 0
    assert (out / "radar.svg").read_text() == "mine"
    assert invoke(scores, "--out", out, "--overwrite").exit_code == 0
    assert (out / "radar.svg").read_text() != "mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "there is nothing to show"),
        (["SCORES", "--reference", "titans"], "reference is 'titans', but must be one of paper, armt, "),
        (["SCORES", "--reference", "rmt,rmt"], "--reference names rmt twice"),
        (["SCORES", "--metric", "f1"], "metric is 'f1', but must be one of exact, official, substring"),
        (["--reference", "paper", "--metric", "official"], "--metric is 'official', but chooses the metric of scores"),
        (["SCORES", "--tasks", "21"], "tasks are 1 to 20"),
        (["SCORES", "--tasks", "11"], "no model has the task qa11"),
        (["SCORES", "--lengths", "4k,4k"], "length '4k' is given twice"),
        (["SCORES", "--lengths", "8k"], "no model has the length 8k"),
        (["SCORES", "SCORES"], "qa1 at 0k of model 'ours' (prompt plain) is there twice"),
        (["SCORES", "--format", "html"], "--format is 'html', but must be md, csv, json"),
        (["SCORES", "--format", "md,md"], "--format is 'md,md', but must be"),
        (["MISSING"], "missing.json"),
        (["BROKEN"], "broken.json is no JSON"),
        (["TEXT"], "text.txt is no prediction file"),
    ],
)
def test_refusals(arguments, message, scores, tmp_path):
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "text.txt").write_text("x")
    places = {"SCORES": scores, "MISSING": tmp_path / "missing.json", "BROKEN": tmp_path / "broken.json"}
    places["TEXT"] = tmp_path / "text.txt"
    out = tmp_path / "out"
    result = invoke(*(places.get(argument, argument) for argument in arguments), "--out", out)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not out.exists()


def test_a_model_that_is_called_like_a_published_one(tmp_path):
    path = tmp_path / "scores.json"
    write_scores(path, make_scores({("qa1", "0k"): 60}, model="LM2-1.7B (LM2 paper)"))
    result = invoke(path, "--reference", "paper")
    assert result.exit_code == 2
    assert "two models are called 'LM2-1.7B (LM2 paper)': rename one" in result.stderr


def test_options_without_effect_are_refused(scores):
    for options, message in (
        (["--overwrite"], "--overwrite has no effect without --out"),
        (["--no-figures"], "--no-figures has no effect without --out"),
        (["--format", "csv"], "makes several files: give --out"),
        (["--format", "md,json"], "makes several files: give --out"),
    ):
        result = invoke(scores, *options)
        assert result.exit_code == 2
        assert message in result.stderr


def test_out_that_is_a_file(scores, tmp_path):
    result = invoke(scores, "--out", scores)
    assert result.exit_code == 2
    assert "but that is a file: name a folder" in result.stderr


def test_matplotlib_is_asked_for_before_any_work(scores, tmp_path, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find_spec(name))
    result = invoke(scores, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "pip install 'lm2[viz]', or give --no-figures" in result.stderr
    assert not (tmp_path / "out").exists()
    assert invoke(scores, "--out", tmp_path / "out", "--no-figures").exit_code == 0


def test_an_error_while_drawing_leaves_nothing(scores, tmp_path, monkeypatch):
    from lm2.eval import figures

    def fail(grids):
        raise OSError("no font")

    monkeypatch.setattr(figures, "draw_radar", fail)
    result = invoke(scores, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert not (tmp_path / "out").exists()
