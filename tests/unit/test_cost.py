"""Costs of models against what their sizes say, and `lm2 eval cost`."""

import json

import pytest
import torch
from tiny_models import POSITIONS, SEGMENT, save, tiny_armt, tiny_llama, tiny_lm2, tiny_rmt
from typer.testing import CliRunner

from lm2.cli.eval import evaluate
from lm2.cli.eval_cost import read_costs
from lm2.eval.cost import count_flops, measure_costs


def llama_flops(model, num_tokens: int) -> int:
    """Reading: two operations for each weight of a matrix and token, two products for each pair, one row of logits."""
    config = model.config
    matrices = sum(p.numel() for name, p in model.model.layers.named_parameters() if p.dim() == 2)
    pairs = num_tokens * (num_tokens + 1) // 2
    attention = config.num_hidden_layers * pairs * 2 * 2 * config.hidden_size
    return 2 * matrices * num_tokens + attention + 2 * config.vocab_size * config.hidden_size


@pytest.mark.parametrize("num_tokens", [1, 40, 300])
def test_reading_costs_a_llama_what_its_sizes_say(num_tokens):
    model = tiny_llama()
    [cost] = measure_costs([model], [num_tokens], training_tokens=8, rounds=2)
    [reading] = cost.reading
    assert reading.tokens == num_tokens
    assert reading.flops == llama_flops(model, num_tokens)
    # Keys and values of two heads of 8 numbers in two blocks.
    assert reading.state_bytes == num_tokens * 2 * 2 * 2 * 8 * 4
    assert len(reading.seconds) == 2
    assert min(reading.seconds) > 0
    assert cost.parameters == sum(p.numel() for p in model.parameters())


def test_training_costs_three_times_the_forward_pass_and_attention_more():
    model = tiny_llama()
    ids = torch.zeros(1, 64, dtype=torch.long)
    [cost] = measure_costs([model], [8], training_tokens=64, rounds=1)
    with torch.no_grad():
        forward = count_flops(lambda: model(input_ids=ids, labels=ids, use_cache=False))
    pairs = 64 * 65 // 2 * model.config.num_hidden_layers * 2 * model.config.hidden_size
    # Of every matrix product two in the backward pass; of attention's two products five.
    assert cost.training_flops == 3 * (forward - 2 * pairs) + (2 + 5) * pairs
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.training


@pytest.mark.parametrize("is_causal", [True, False])
def test_attention_counts_pairs(is_causal):
    query, key = torch.zeros(2, 3, 70, 16), torch.zeros(2, 3, 70, 16)
    flops = count_flops(lambda: torch.nn.functional.scaled_dot_product_attention(query, key, key, is_causal=is_causal))
    pairs = sum(i + 1 if is_causal else 70 for i in range(70))
    assert flops == 2 * 3 * pairs * 2 * (16 + 16)


@pytest.mark.parametrize("make", [tiny_lm2, tiny_rmt, tiny_armt])
def test_a_memory_costs_the_same_for_every_segment(make):
    model = make()
    lengths = [SEGMENT * count for count in (10, 20, 40)]
    [cost] = measure_costs([model], lengths, training_tokens=8, rounds=1)
    first, second, third = cost.reading
    assert third.flops - second.flops == 2 * (second.flops - first.flops)
    assert first.state_bytes == second.state_bytes == third.state_bytes
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_models_that_cannot_read_so_much():
    with pytest.raises(ValueError, match="max_position_embeddings of a llama is 512"):
        measure_costs([tiny_llama()], [POSITIONS + 1], training_tokens=8, rounds=1)
    with pytest.raises(ValueError, match="a length is 0"):
        measure_costs([tiny_llama()], [0], training_tokens=8, rounds=1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("models")
    return [save(tiny_lm2(), place / "lm2"), save(tiny_llama(), place / "llama")]


def run_cost(*arguments):
    return CliRunner().invoke(evaluate, ["cost", *map(str, arguments)])


def test_the_verb_prints_and_writes_the_same(folders, tmp_path):
    path = tmp_path / "cost.json"
    done = run_cost(*folders, "--lengths", "200,20", "--training-tokens", 32, "--rounds", 1, "--json", path)
    assert done.exit_code == 0, done.output
    costs = read_costs(path)
    assert list(costs) == ["lm2", "llama"]
    [expected] = measure_costs([tiny_llama()], [20, 200], training_tokens=32, rounds=1)
    assert costs["llama"]["training_flops"] == expected.training_flops
    assert [row["flops"] for row in costs["llama"]["reading"]] == [row.flops for row in expected.reading]
    assert f"{expected.reading[1].state_bytes:,}" in done.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lengths", "1k"], "--lengths is '1k', but must be numbers of tokens"),
        (["--lengths", "0"], "--lengths is '0'"),
        (["--rounds", "0"], "--rounds is 0"),
        (["--lengths", "1000"], "max_position_embeddings of a llama"),
        (["--training-tokens", "0"], "a length is 0"),
    ],
)
def test_bad_options(folders, options, message):
    failed = run_cost(*folders, *options)
    assert message in str(failed.exception)


def test_the_model_that_ships_has_a_word():
    result = CliRunner().invoke(evaluate, ["cost", "builtin", "--lengths", "64", "--rounds", "1"])
    assert result.exit_code == 0, (result.output, result.exception)
    assert "lm2-qa1" in result.stdout


def test_models_must_be_told_apart(folders, tmp_path):
    other = save(tiny_lm2(seed=1), tmp_path / "lm2")
    assert "given twice" in str(run_cost(folders[0], folders[0]).exception)
    assert "are named lm2, lm2" in str(run_cost(folders[0], other).exception)


def test_a_file_of_something_else_is_no_cost(tmp_path):
    path = tmp_path / "cost.json"
    path.write_text(json.dumps({"kind": "lm2-cost", "version": 0}))
    with pytest.raises(ValueError, match="no file of this lm2's eval cost"):
        read_costs(path)
