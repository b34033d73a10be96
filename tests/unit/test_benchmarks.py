"""The benchmark program on its quick shapes: it runs, its JSON is complete, and parts are kept until measured anew."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lm2 import LM2Config, LM2ForCausalLM

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


def test_a_variant_of_the_ablations_is_trained_and_measured(monkeypatch, tmp_path):
    """`base` and a rival, two steps a stage; what is counted can be wrong and right."""
    monkeypatch.syspath_prepend(PROGRAM.parent)
    import ablations

    whole = ablations.recipe_of

    def short(name, seed):
        recipe = whole(name, seed)
        for stage in recipe["curriculum"][:-1]:
            stage["until"] = {"steps": 2}
        recipe["schedule"] |= {"total_steps": 6, "warmup_steps": 1, "decay_steps": 1}
        return recipe

    monkeypatch.setattr(ablations, "recipe_of", short)
    monkeypatch.setattr(ablations, "ACCURACY_ROWS", {1: 4, 4: 2})
    monkeypatch.setattr(ablations, "KEPT_ROWS", {0: 2, 3: 2})
    for name in ("base", "rmt-half"):
        ablations.train_and_measure(name, 0, tmp_path / "found.json")
        found = json.loads((tmp_path / "found.json").read_text())
        assert set(found["accuracy"]) == {"1", "4"}
        assert set(found["kept"]) == {"0", "3"}
        assert all(
            0 <= right < asked for counts in (found["accuracy"], found["kept"]) for right, asked in counts.values()
        )


def test_variants_of_the_ablations_change_one_thing(monkeypatch):
    monkeypatch.syspath_prepend(PROGRAM.parent)
    import ablations

    from lm2.cli.build_model import build_model
    from lm2.data.tokenizer import load_tokenizer
    from lm2.train.checking import build
    from lm2.train.config import Recipe, differing_keys

    tokenizer = load_tokenizer("builtin")
    base = build(Recipe, ablations.recipe_of("base", 0))
    recipes = {name: build(Recipe, ablations.recipe_of(name, 0)) for name in ablations.VARIANTS}
    for name, recipe in recipes.items():
        differing = [key for key in differing_keys(recipe, base) if not key.startswith("name:")]
        variant = ablations.VARIANTS[name]
        assert bool(differing) == (variant.change is not ablations.Variant.change), (name, differing)
        assert (not differing and variant.patch is None) == (name == "base"), name
        whole = recipes["four-blocks" if name.startswith("four-") else "base"]
        parameters, wanted = (build_model(made.model, tokenizer, 0).num_parameters() for made in (recipe, whole))
        assert parameters == pytest.approx(wanted, rel=0.1 if recipe.model.architecture == "lm2" else 0.005), name


def test_results_of_the_ablations_are_of_the_variants_here(monkeypatch):
    """A run that is there for the same recipe is not done again, so it must be of that recipe."""
    monkeypatch.syspath_prepend(PROGRAM.parent)
    import ablations

    runs = json.loads(ablations.OUT.read_text("utf-8"))["runs"]
    assert {run["variant"] for run in runs} == set(ablations.VARIANTS)
    for run in runs:
        assert run["recipe"] == ablations.recipe_of(run["variant"], run["seed"]), (run["variant"], run["seed"])


def test_a_write_that_sees_slots_writes_less(monkeypatch):
    """With its gate wide open the variant is the base, with the gate shut nothing is written."""
    monkeypatch.syspath_prepend(PROGRAM.parent)
    import ablations

    from lm2.models.lm2.memory_lm2 import AddressWrite, SegmentMemory

    # Whatever the variant puts in their place goes when the test ends.
    monkeypatch.setattr(AddressWrite, "__init__", AddressWrite.__init__)
    monkeypatch.setattr(SegmentMemory, "write_segment", SegmentMemory.write_segment)
    monkeypatch.setattr(SegmentMemory, "write_segments", SegmentMemory.write_segments)
    config = LM2Config(**ablations.recipe_of("base", 0)["model"]["config"])
    torch.manual_seed(0)
    base = LM2ForCausalLM(config).eval()
    input_ids = torch.randint(2, config.vocab_size, (2, 3 * config.segment_length))
    with torch.no_grad():
        expected = base(input_ids).logits
    ablations.VARIANTS["seeing-slots"].patch()
    variant = LM2ForCausalLM(config).eval()
    variant.load_state_dict(base.state_dict(), strict=False)
    torch.testing.assert_close(logits_with_gate(variant, input_ids, 60.0), expected)
    shut = logits_with_gate(variant, input_ids, -200.0)
    first = config.segment_length
    torch.testing.assert_close(shut[:, :first], expected[:, :first])
    assert not torch.allclose(shut[:, first:], expected[:, first:], atol=1e-2)
    memory = variant.model.layers[0].memory
    bank = memory.initial_bank(2, torch.device("cpu"))
    x = torch.randn(2, first, config.hidden_size)
    assert torch.equal(memory.write_segment(bank, x, torch.tensor([True, True])), bank)


def logits_with_gate(model, input_ids, bias: float):
    with torch.no_grad():
        for layer in model.model.layers:
            layer.memory.write.slot_gate.bias.fill_(bias)
        return model(input_ids).logits


def test_told_rows_ask_for_what_was_told_last(monkeypatch):
    monkeypatch.syspath_prepend(PROGRAM.parent)
    import random

    import ablations

    from lm2.data.recall import RecallTask, draw_recall_vocabulary

    task = RecallTask(8, 5, 3, 0.4)
    vocabulary = draw_recall_vocabulary(random.Random(0), range(100), task)
    for seed in range(20):
        ids, answers = ablations.told_row(seed, 3, 12, task, vocabulary)
        told = {}
        for place in range(24):
            if ids[place] in vocabulary.keys:
                told[ids[place]] = ids[place + 1]
        assert set(ids[24 : 24 + 36]) <= set(vocabulary.noise)
        assert [(ids[place - 1], ids[place]) for place in answers] == list(told.items())
        assert all(ids[place - 2] == vocabulary.ask for place in answers)
        assert answers[-1] == len(ids) - 1


def test_what_slots_keep_is_what_the_bank_keeps(monkeypatch):
    """The factors that the hooks see carry a bank through the text as the model itself does."""
    monkeypatch.syspath_prepend(PROGRAM.parent)
    import numpy as np
    import torch
    from slots_kept import keeps_of

    from lm2 import LM2Cache
    from lm2.cli.load_model import load_model
    from lm2.cli.options import BUILTIN_FOLDERS, BUILTIN_MODEL

    model = load_model(BUILTIN_FOLDERS[BUILTIN_MODEL], "cpu", "auto", None).model
    ids = np.random.default_rng(0).integers(3, 2000, 4 * model.config.segment_length)
    keeps = keeps_of(model, ids)
    assert [keep.shape for keep in keeps] == [(4, model.config.num_memory_slots, model.config.num_memory_heads)] * 2
    banks = []
    for scale in (0.0, 1.0):
        cache = LM2Cache(model.config)
        with torch.no_grad():
            # The bank after the text is keep * bank + new: linear in the bank before it, block by block.
            memory = model.model.layers[0].memory
            first = memory.initial_slots.clone()
            memory.initial_slots.mul_(scale)
            model.model(torch.from_numpy(ids)[None], cache=cache, use_cache=True)
            memory.initial_slots.copy_(first)
        banks.append(cache.layers[0].state.bank[0])
    kept = (banks[1] - banks[0]).unflatten(-1, (model.config.num_memory_heads, -1))
    expected = first.unflatten(-1, kept.shape[1:]) * torch.from_numpy(keeps[0].prod(0))[..., None]
    torch.testing.assert_close(kept, expected, rtol=1e-4, atol=1e-5)


def test_slots_kept_prints_a_row_for_each_head():
    program = PROJECT / "benchmarks" / "slots_kept.py"
    command = [sys.executable, str(program), "--stories", "2", "--segments", "4"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300, cwd=PROJECT)
    rows = [line.split() for line in done.stdout.splitlines()[2:]]
    assert [row[:2] for row in rows] == [[str(block), str(head)] for block in range(2) for head in range(4)]
    # The block whose heads hold the facts does not lose them in four segments, nor in 256.
    assert max(float(row[3]) for row in rows[4:]) > 0.9


def test_yes_and_no_prints_a_row_for_each_model():
    program = PROJECT / "benchmarks" / "yes_and_no.py"
    arguments = ["builtin-ten", "builtin", "--stories", "8", "--most-facts", "6"]
    finished = subprocess.run([sys.executable, str(program), *arguments], capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr
    header, *rows = finished.stdout.splitlines()
    assert header.split("  ")[-1] == "model"
    assert [row.split()[-1] for row in rows] == arguments[:2]
    [knows, guesses] = [sum(map(int, re.findall(r"(\d+) of", row))) for row in rows]
    # The one of qa1 has never seen a question of yes and no.
    assert knows > guesses
