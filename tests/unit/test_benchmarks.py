"""The benchmark program on its quick shapes: it runs, its JSON is complete, and parts are kept until measured anew."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
PROGRAM = PROJECT / "benchmarks" / "speed.py"
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def run_program(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, str(PROGRAM), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=PROJECT)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Output of two runs: all parts but one, then that one."""
    folder = tmp_path_factory.mktemp("speed")
    for parts in ("training,prefill,decode", "length"):
        finished = run_program("--quick", "--parts", parts, "--out", folder)
        assert finished.returncode == 0, finished.stderr
        assert "left" in finished.stderr
    return folder


@pytest.fixture(scope="module")
def parts(folder) -> dict:
    return json.loads((folder / "speed.json").read_text())["parts"]


@pytest.mark.slow
def test_every_part_says_how_it_was_measured(parts):
    assert list(parts) == ["training", "length", "prefill", "decode"]
    for part in parts.values():
        assert part["cells"]
        assert {"command", "date", "commit", "seed", "quick", "dtype", "clock", "machine"} <= part["run"].keys()
        machine = part["run"]["machine"]
        assert {"cpu", "cores", "threads", "ram_bytes", "torch", "transformers", "device"} <= machine.keys()
    assert "--parts length" in parts["length"]["run"]["command"]
    assert "--parts training,prefill,decode" in parts["training"]["run"]["command"]


@pytest.mark.slow
def test_training_cells_hold_times_memory_and_operations(parts):
    for cell in parts["training"]["cells"]:
        models = cell["models"]
        assert set(models) == {"lm2", "llama", "matched_llama"}
        assert models["matched_llama"]["parameters"] == pytest.approx(models["lm2"]["parameters"], rel=0.005)
        for model in models.values():
            assert len(model["seconds"]["cpu"]) == len(model["seconds"]["wall"]) == cell["rounds"]
            # Weights and gradients at the least.
            assert model["peak_bytes"] > 2 * 4 * model["parameters"]
            assert model["flops_executed"] >= model["flops"] > 6 * cell["tokens"] * 0.5 * model["parameters"]
        ratio = cell["ratios"]["time_vs_llama"]["cpu"]
        assert ratio["min"] <= ratio["median"] <= ratio["max"]
        for target in cell["targets"].values():
            assert target["met"] == (target["measured"] <= target["at_most"])


@pytest.mark.slow
def test_prefill_and_decode_cover_both_models(parts):
    for name, place in (("prefill", "tokens"), ("decode", "context")):
        cells = parts[name]["cells"]
        assert {cell["model"] for cell in cells} == {"lm2", "llama"}
        assert all(cell[place] > 0 and cell["seconds"]["cpu"] for cell in cells)
        assert parts[name]["targets"]
    peaks = [cell["peak_bytes"] for cell in parts["prefill"]["cells"] if cell["model"] == "lm2"]
    assert peaks == sorted(peaks)


@pytest.mark.slow
def test_plots_and_table_are_written(folder, parts):
    for name in parts:
        assert (folder / f"{name}.png").read_bytes().startswith(PNG_SIGNATURE)
    table = (folder / "speed.md").read_text()
    assert "| cell | quantity | target | measured | met |" in table
    assert "Quick shapes" in table


def test_order_of_retrieval_is_measured(tmp_path):
    out = tmp_path / "order.json"
    program = PROJECT / "benchmarks" / "retrieval_order.py"
    command = [sys.executable, str(program), "--tasks", "2", "--samples", "10", "--out", str(out)]
    subprocess.run(command, check=True, capture_output=True, timeout=300, cwd=PROJECT)
    rows = {(row["length"], row["top_k"]): row for row in json.loads(out.read_text())["rows"]}
    assert set(rows) == {(length, top_k) for length in ("0k", "4k") for top_k in (5, 10, 20)}
    # A solver needs all supporting facts, and gets more of them with more sentences.
    assert all(row["document"] <= row["with_all_support"] <= row["n"] == 10 for row in rows.values())
    assert rows["0k", 20]["with_all_support"] > rows["0k", 5]["with_all_support"]
    assert rows["0k", 20]["document"] > rows["0k", 20]["similarity"]


def test_an_unknown_part_is_refused():
    finished = run_program("--parts", "traning")
    assert finished.returncode == 2
    assert "traning unknown; choose from training" in finished.stderr


def test_causal_attention_counts_the_blocks_that_the_kernel_touches(monkeypatch):
    monkeypatch.syspath_prepend(PROGRAM.parent)
    from measure import attended_pairs

    # One block of keys: nothing can be left out.
    assert attended_pairs(512, 512, True) == attended_pairs(512, 512, False) == 512 * 512
    # 256 queries and 512 keys to a block: two blocks of queries for each further block of keys.
    assert attended_pairs(2048, 2048, True) == 2 * 256 * 512 * (1 + 2 + 3 + 4)
    # The extra key is a block of its own, which only the last query reaches.
    assert attended_pairs(513, 513, True) == 512 * 512 + 513
