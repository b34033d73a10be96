"""`lm2 data babilong`: the files it writes, what it says, and that it refuses before it writes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from toy_data import shared_data
from typer.testing import CliRunner

from lm2.cli.main import app
from lm2.data.layout import read_cell


def invoke(*arguments: object):
    return CliRunner().invoke(app, ["data", "babilong", *map(str, arguments)])


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("file_format", ["json", "parquet"])
def test_cells_with_metadata_and_card(tmp_path: Path, file_format: str) -> None:
    options = ("--tasks", "1-2,20", "--lengths", "0k,1k", "--samples", 3, "--format", file_format)
    result = invoke("--out", tmp_path / "a", *options)
    assert result.exit_code == 0, result.output
    assert "wrote 6 cells of 3 samples" in result.stdout
    assert "lengths counted with tokenizer builtin" in result.stdout
    cells = [f"qa{task}/{length}" for task in (1, 2, 20) for length in ("0k", "1k")]
    expected = [f"data/{cell}.{file_format}" for cell in cells] + [f"metadata/{cell}.json" for cell in cells]
    assert _files(tmp_path / "a") == sorted([*expected, "README.md"])
    metadata = json.loads((tmp_path / "a/metadata/qa2/1k.json").read_text())
    assert metadata["context_tokens"] == 700
    assert metadata["tokenizer"]["name"] == "builtin"
    assert (metadata["samples"], metadata["seed"], metadata["facts"]) == (3, 0, "simulator")
    assert not metadata["repeats_allowed"]
    assert metadata["samples_with_repeats"] == 0

    # The same settings make the same rows, another seed others.
    assert invoke("--out", tmp_path / "b", *options).exit_code == 0
    assert invoke("--out", tmp_path / "c", *options, "--seed", 1).exit_code == 0
    for task in (1, 2, 20):
        for length in ("0k", "1k"):
            rows = [list(read_cell(tmp_path / folder, task, length)) for folder in "abc"]
            assert len(rows[0]) == 3
            assert rows[0] == rows[1] != rows[2]


def test_cells_are_added_and_replaced_only_when_asked(tmp_path: Path) -> None:
    assert invoke("--out", tmp_path, "--tasks", 1, "--lengths", "0k", "--samples", 2).exit_code == 0
    before = (tmp_path / "data/qa1/0k.json").read_bytes()
    refused = invoke("--out", tmp_path, "--tasks", "1,2", "--lengths", "0k", "--samples", 2, "--seed", 1)
    assert refused.exit_code == 2
    assert "exists (1 of 2 cells do); give --overwrite" in refused.stderr
    assert not (tmp_path / "data/qa2").exists()
    added = invoke("--out", tmp_path, "--tasks", "1,2", "--lengths", "0k", "--samples", 2, "--seed", 1, "--overwrite")
    assert added.exit_code == 0
    assert (tmp_path / "data/qa1/0k.json").read_bytes() != before
    assert (tmp_path / "README.md").read_text().count("split:") == 2


def test_repeats_are_told(tmp_path: Path) -> None:
    options = ("--out", tmp_path, "--tasks", 1, "--lengths", "64k", "--samples", 1)
    refused = invoke(*options)
    assert refused.exit_code == 2
    assert "without repeating a sentence" in refused.stderr
    assert _files(tmp_path) == []
    allowed = invoke(*options, "--allow-repeats")
    assert allowed.exit_code == 0, allowed.output
    assert "1 samples have background sentences more than once" in allowed.stdout
    assert json.loads((tmp_path / "metadata/qa1/64k.json").read_text())["samples_with_repeats"] == 1


def test_original_files_and_books(tmp_path: Path) -> None:
    facts, books = shared_data("babi/en-10k"), shared_data("books")
    options = ("--out", tmp_path, "--tasks", 3, "--lengths", "1k", "--facts", facts, "--background", books)
    refused = invoke(*options, "--samples", 1000)
    assert refused.exit_code == 2
    assert "questions of qa3 that fit a context of 1k" in refused.stderr
    assert _files(tmp_path) == []
    assert invoke(*options, "--samples", 5).exit_code == 0
    assert len(list(read_cell(tmp_path, 3, "1k"))) == 5
    metadata = json.loads((tmp_path / "metadata/qa3/1k.json").read_text())
    assert (metadata["facts"], metadata["background"]) == ("en-10k", "books/test")


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (["--tasks", "21"], "21"),
        (["--lengths", "5"], "length is '5'"),
        (["--lengths", "1k,1k"], "given twice"),
        (["--samples", "0"], "--samples is 0"),
        (["--split", "valid"], "split is 'valid'"),
        (["--facts", "no-such-folder"], "'simulator' or a folder"),
        (["--background", "no-such-folder"], "no-such-folder"),
        (["--format", "csv"], "format is 'csv'"),
        (["--lengths", "0k", "--background", "builtin"], "no effect at 0k"),
        (["--lengths", "0k", "--allow-repeats"], "no effect at 0k"),
    ],
)
def test_bad_options_are_refused_before_any_work(tmp_path: Path, options: list[str], what: str) -> None:
    result = invoke("--out", tmp_path / "out", *options)
    assert result.exit_code == 2
    assert what in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_folder_without_task_files(tmp_path: Path) -> None:
    (tmp_path / "facts").mkdir()
    result = invoke("--out", tmp_path / "out", "--facts", tmp_path / "facts", "--lengths", "0k")
    assert result.exit_code == 2
    assert "facts" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_speed_program_runs(tmp_path: Path) -> None:
    program = Path(__file__).parents[2] / "benchmarks" / "data_speed.py"
    command = [sys.executable, str(program), "--quick", "--out", str(tmp_path)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr
    results = json.loads((tmp_path / "data_speed.json").read_text())
    assert results["run"]["quick"]
    assert [row["length"] for row in results["samples"]] == ["4k", "128k", "1M"]
    assert {row["tasks"] for row in results["streams"]} == {"qa1", "qa1-5", "qa1-20"}
    assert all(row["tokens_per_second"] > 0 for row in results["streams"])
