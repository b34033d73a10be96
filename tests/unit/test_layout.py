"""The official file layout: what is read and written, piece by piece, and what is refused."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toy_data import ToyFacts, toy_background, toy_encoder

from lm2.data import layout
from lm2.data.babilong import SampleMaker
from lm2.data.layout import (
    Row,
    cell_path,
    check_folder,
    check_format,
    read_cell,
    read_dataset,
    read_rows,
    write_card,
    write_metadata,
    write_rows,
)

ROWS = [
    Row('Mary went to the “garden”.\n\tJohn \\ "left" \U0001f4d6.', "Where is Mary? ", "garden"),
    Row("", "What is John carrying? ", "apple,milk"),
    Row("[{}], ]}", "How do you go from the office to the kitchen?", "s,w"),
]


@pytest.mark.parametrize("suffix", ["json", "parquet"])
def test_rows_come_back(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "data" / "qa1" / f"4k.{suffix}"
    write_rows(path, ROWS)
    assert list(read_rows(path)) == ROWS
    assert list(read_cell(tmp_path, 1, "4k")) == ROWS
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_json_is_what_the_official_generator_writes(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.json", ROWS)
    expected = [{"input": row.input, "question": row.question, "target": row.target} for row in ROWS]
    text = (tmp_path / "rows.json").read_text(encoding="utf-8")
    assert json.loads(text) == expected
    assert text == json.dumps(expected).replace("}, {", "},\n{") + "\n"


def test_samples_are_written_as_rows(tmp_path: Path) -> None:
    encoder = toy_encoder()
    maker = SampleMaker(ToyFacts(), toy_background(encoder), encoder, seed=0)
    samples = [maker.sample(1, "1k", index) for index in range(5)]
    expected = [Row(sample.input, sample.question, sample.target) for sample in samples]
    assert any(len(list(sample.pieces())) > 5 for sample in samples)
    for suffix in ("json", "parquet"):
        write_rows(tmp_path / f"rows.{suffix}", samples)
        assert list(read_rows(tmp_path / f"rows.{suffix}")) == expected


def test_parquet_in_several_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow.parquet

    monkeypatch.setattr(layout, "_ROW_GROUP_CHARS", 30)
    write_rows(tmp_path / "rows.parquet", ROWS * 3)
    assert pyarrow.parquet.ParquetFile(tmp_path / "rows.parquet").num_row_groups > 1
    assert list(read_rows(tmp_path / "rows.parquet")) == ROWS * 3


def test_nothing_is_left_of_a_write_that_fails(tmp_path: Path) -> None:
    def rows() -> Iterator[Row]:
        yield ROWS[0]
        raise RuntimeError("stopped")

    for suffix in ("json", "parquet"):
        path = tmp_path / f"rows.{suffix}"
        with pytest.raises(RuntimeError):
            write_rows(path, rows())
        assert list(tmp_path.iterdir()) == []
    write_rows(path, ROWS)
    with pytest.raises(RuntimeError):
        write_rows(path, rows())
    assert list(read_rows(path)) == ROWS


# --- reading JSON ---

_TEXTS = st.text(alphabet=st.characters(codec="utf-8"), max_size=12)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.builds(Row, _TEXTS, _TEXTS, _TEXTS), max_size=4),
    indent=st.sampled_from([None, 2]),
    ascii_only=st.booleans(),
    block=st.integers(1, 9),
)
def test_arrays_are_read_whole_whatever_the_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: list[Row], indent: int | None, ascii_only: bool, block: int
) -> None:
    monkeypatch.setattr(layout, "_BLOCK_CHARS", block)
    values = [{"input": row.input, "question": row.question, "target": row.target, "more": -1.5e3} for row in rows]
    path = tmp_path / "rows.json"
    path.write_text(f"\n {json.dumps(values, indent=indent, ensure_ascii=ascii_only)}\n", encoding="utf-8")
    assert list(read_rows(path)) == rows


def test_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    lines = [json.dumps({"input": row.input, "question": row.question, "target": row.target}) for row in ROWS]
    path.write_text("\n".join(lines) + "\n\n", encoding="utf-8")
    assert list(read_rows(path)) == ROWS


GOOD = '{"input": "a", "question": "b", "target": "c"}'


@pytest.mark.parametrize(
    ("text", "place", "what"),
    [
        ("", "rows.json", "is empty"),
        ("\n\n", "rows.json", "is empty"),
        ("hello", "rows.json:1", "not JSON"),
        (f"{GOOD}\n{GOOD[:-1]}\n", "rows.json:2", "not JSON"),
        (f"{GOOD}\n[1]", "rows.json:2, row 2", "a list, but must be an object"),
        (f"{GOOD}\n" + '{"input": "a", "target": "c"}', "rows.json:2, row 2", "no 'question'; there are 'input'"),
        ('{"input": "a", "question": "b", "target": 3}', "row 1", "'target' is 3, but must be a text"),
        ('{"input": "a", "question": null, "target": "c"}', "row 1", "'question' is None"),
        (f"[{GOOD},\n{GOOD}", "rows.json:2", "the end of the file, but must be ','"),
        (f"[{GOOD}\n{GOOD}]", "rows.json:2", "but must be ','"),
        (f"[{GOOD},\n]", "rows.json:2", "not JSON"),
        (f"[{GOOD},\n{GOOD[:-1]}", "rows.json:2", "not JSON"),
        (f"[{GOOD},\n\n{GOOD[:-3]}", "rows.json:3", "Unterminated string"),
        (f'[{GOOD},\n{{"input" "a"}}, {GOOD}]', "rows.json:2", "Expecting ':'"),
        (f"[{GOOD}, 12]", "row 2", "a int, but must be an object"),
        (f"[{GOOD}] {GOOD}", "rows.json:1", "follows the end"),
        ("[", "rows.json:1", "not JSON"),
    ],
)
@pytest.mark.parametrize("block", [3, 2**20])
def test_malformed_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, place: str, what: str, block: int
) -> None:
    monkeypatch.setattr(layout, "_BLOCK_CHARS", block)
    path = tmp_path / "rows.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"rows\.json") as error:
        list(read_rows(path))
    assert place in str(error.value)
    assert what in str(error.value)


def test_a_broken_row_is_found_without_reading_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.json"
    path.write_text(f'[{GOOD}, {{"input": oh}}, {", ".join([GOOD] * 5000)}]')
    monkeypatch.setattr(layout, "_BLOCK_CHARS", 64)
    with path.open() as file:
        values = layout._ArrayReader(path, file).values()
        next(values)
        with pytest.raises(ValueError, match="Expecting value"):
            next(values)
        assert len(file.read()) > 200_000


def test_rows_of_an_array_come_before_the_end_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.json"
    path.write_text(f"[{GOOD}, {GOOD}, oh")
    monkeypatch.setattr(layout, "_BLOCK_CHARS", 10)
    rows = read_rows(path)
    assert next(rows) == next(rows) == Row("a", "b", "c")


def test_other_malformed_files(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    (tmp_path / "rows.json").write_bytes(b'{"input": "\xff"}')
    with pytest.raises(ValueError, match=r"rows.json is not UTF-8: byte 0xff"):
        list(read_rows(tmp_path / "rows.json"))
    (tmp_path / "rows.parquet").write_bytes(b"no parquet")
    with pytest.raises(ValueError, match=r"rows.parquet is not a parquet file"):
        list(read_rows(tmp_path / "rows.parquet"))
    pyarrow.parquet.write_table(pyarrow.table({"input": ["a"], "question": ["b"]}), tmp_path / "rows.parquet")
    with pytest.raises(ValueError, match=r"no 'target'; there are 'input', 'question'"):
        list(read_rows(tmp_path / "rows.parquet"))
    with pytest.raises(FileNotFoundError):
        list(read_rows(tmp_path / "none.json"))


# --- sources ---


def test_sources_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be a folder, or one of RMT-team/babilong"):
        read_cell("RMT-team/babilon", 1, "4k")
    with pytest.raises(ValueError, match="task is 21"):
        read_cell(tmp_path, 21, "4k")
    with pytest.raises(ValueError, match="length is '5'"):
        read_cell(tmp_path, 1, "5")
    with pytest.raises(FileNotFoundError, match="has no 4k of qa1: there is neither"):
        read_cell(tmp_path, 1, "4k")


def test_what_is_written_loads_as_a_dataset(tmp_path: Path) -> None:
    import datasets

    for suffix in ("json", "parquet"):
        folder = tmp_path / suffix
        for task, length in ((1, "4k"), (10, "4k"), (2, "0k")):
            rows = [Row(f"{length} of {task}", "q", "t"), *ROWS]
            write_rows(cell_path(folder, task, length, suffix), rows)
            write_metadata(folder, task, length, {"seed": 0})
        write_card(folder)
        assert datasets.get_dataset_config_names(str(folder)) == ["0k", "4k"]
        loaded = datasets.load_dataset(str(folder), "4k", split="qa10", cache_dir=str(tmp_path / "cache"))
        assert loaded.column_names == ["input", "question", "target"]
        assert [Row(**row) for row in loaded] == [Row("4k of 10", "q", "t"), *ROWS]


def test_a_dataset_is_read_through_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "double"
    write_rows(cell_path(folder, 3, "1k", "json"), ROWS)
    write_card(folder)
    assert list(read_dataset(str(folder), 3, "1k")) == ROWS
    with pytest.raises(ValueError, match="has no 2k of qa3"):
        read_dataset(str(folder), 3, "2k")
    with pytest.raises(ValueError, match="has no 1k of qa4"):
        read_dataset(str(folder), 4, "1k")


def test_a_folder_that_the_library_wrote(tmp_path: Path) -> None:
    import datasets

    (tmp_path / "4k").mkdir()
    table = datasets.Dataset.from_list([{"input": r.input, "question": r.question, "target": r.target} for r in ROWS])
    for number in range(2):
        table.shard(2, number, contiguous=True).to_parquet(tmp_path / "4k" / f"qa1-0000{number}-of-00002.parquet")
    lines = cell_path(tmp_path, 2, "4k", "json")
    lines.parent.mkdir(parents=True)
    table.to_json(lines)
    assert list(read_cell(tmp_path, 1, "4k")) == ROWS
    assert list(read_cell(tmp_path, 2, "4k")) == ROWS


def test_folders_that_cells_cannot_be_added_to(tmp_path: Path) -> None:
    check_folder(tmp_path, "json")
    write_rows(cell_path(tmp_path, 1, "4k", "json"), ROWS)
    write_card(tmp_path)
    check_folder(tmp_path, "json")
    with pytest.raises(ValueError, match=r"has cells in json \(such as 4k of qa1\), and format is 'parquet'"):
        check_folder(tmp_path, "parquet")
    (tmp_path / "README.md").write_text("My notes")
    with pytest.raises(ValueError, match="would be overwritten"):
        check_folder(tmp_path, "json")
    with pytest.raises(ValueError, match="format is 'csv', but must be json or parquet"):
        check_format("csv")
