"""Perplexity: losses in pieces and windows are those of whole forwards, and every token and byte is counted once."""

import io
import json
import math

import numpy as np
import pytest
import torch
from tiny_models import POSITIONS, SEGMENT, save, tiny_llama, tiny_lm2
from tokenizers.processors import TemplateProcessing
from typer.testing import CliRunner

from lm2.cli.eval import evaluate
from lm2.data.encoding import TextEncoder
from lm2.data.tokenizer import load_tokenizer
from lm2.eval import perplexity
from lm2.eval.perplexity import (
    Losses,
    Window,
    count_tokens,
    file_losses,
    starting_tokens,
    stream_losses,
    text_blocks,
    window_losses,
)

MODELS = {"lm2": tiny_lm2(), "llama": tiny_llama()}
TOKENIZER = load_tokenizer("builtin")
ENCODER = TextEncoder(TOKENIZER, "builtin")
TEXT = (
    "Old rivers run slowly.\n\nÉtudes, 12 of them: “never”, he said.\r\n  Indented line\n\tand a tab;  two spaces. "
    "A long line " + "without any end " * 9 + "\nx" + "y" * 80 + "\n\n\nThe end\n"
)


@torch.no_grad()
def losses_of_one_forward(model, ids) -> np.ndarray:
    ids = torch.tensor(np.array(ids, dtype=np.int64))
    log_probabilities = model(ids[None], use_cache=False).logits[0, :-1].double().log_softmax(-1)
    return -log_probabilities.gather(-1, ids[1:, None])[:, 0].numpy()


def random_ids(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(2, 2048, count, dtype=np.int32)


@pytest.mark.parametrize("size", [1, 7, 64, 10_000])
def test_blocks_have_the_tokens_of_the_text(size):
    blocks = list(text_blocks(io.StringIO(TEXT, newline=""), size))
    assert "".join(blocks) == TEXT
    assert len(blocks) > {1: 40, 7: 20, 64: 5}.get(size, 0)
    ids = np.concatenate(list(ENCODER.encode_many(blocks)))
    assert ids.tolist() == TOKENIZER(TEXT)["input_ids"]


@pytest.mark.parametrize("call_tokens", [1, 7, SEGMENT, 1000])
@pytest.mark.parametrize("name", MODELS)
def test_streamed_losses_are_those_of_one_forward(name, call_tokens, monkeypatch):
    monkeypatch.setattr(perplexity, "CALL_TOKENS", call_tokens)
    ids = random_ids(5 * SEGMENT + 3)
    streamed = list(stream_losses(MODELS[name], [ids[:50], ids[50:]]))
    assert len(streamed) == math.ceil(len(ids) / call_tokens) - (call_tokens == 1)
    np.testing.assert_allclose(np.concatenate(streamed), losses_of_one_forward(MODELS[name], ids), atol=1e-4)


@pytest.mark.parametrize(("length", "stride"), [(20, 1), (20, 13), (20, 19), (200, 50)])
@pytest.mark.parametrize("name", MODELS)
def test_windows_are_read_on_their_own(name, length, stride):
    model, ids = MODELS[name], random_ids(73)
    expected = [losses_of_one_forward(model, ids[:length])]
    for first_new in range(length, len(ids), stride):
        end = min(first_new + stride, len(ids))
        expected.append(losses_of_one_forward(model, ids[max(0, end - length) : end])[first_new - end :])
    got = np.concatenate(list(window_losses(model, np.array_split(ids, 4), Window(length, stride))))
    assert len(got) == len(ids) - 1
    np.testing.assert_allclose(got, np.concatenate(expected), atol=1e-4)


@pytest.mark.parametrize(("length", "stride"), [(8, 0), (8, 8), (1, 1)])
def test_windows_without_a_past_are_refused(length, stride):
    with pytest.raises(ValueError, match="1 <= stride < window"):
        Window(length, stride)


def test_a_model_without_state_is_refused_when_a_text_is_longer_than_a_call(monkeypatch):
    monkeypatch.setattr(perplexity, "CALL_TOKENS", 10)
    model = tiny_llama()
    forward = model.forward

    def stateless(*args, **kwargs):
        output = forward(*args, **kwargs)
        output.cache = None
        return output

    monkeypatch.setattr(model, "forward", stateless)
    assert len(np.concatenate(list(stream_losses(model, [random_ids(10)])))) == 9
    with pytest.raises(ValueError, match=r"returns no cache.*--window 10"):
        list(stream_losses(model, [random_ids(11)]))


def test_the_curve_has_every_token_in_its_power_of_two():
    losses = Losses(num_bytes=10)
    losses.add(1, np.array([1.0, 2.0]))
    losses.add(3, np.array([4.0, 8.0, 16.0]))
    other = Losses(num_bytes=2)
    other.add(1, np.array([3.0]))
    other.add(9, np.array([5.0]))
    losses.merge(other)
    report = losses.report()
    spans = [(point["first_distance"], point["last_distance"], point["tokens"]) for point in report["curve"]]
    assert spans == [(1, 1, 2), (2, 3, 2), (4, 7, 2), (8, 15, 1)]
    assert [point["loss"] for point in report["curve"]] == [2.0, 3.0, 12.0, 5.0]
    assert (report["tokens"], report["bytes"], report["loss"]) == (7, 12, 39 / 7)
    assert report["perplexity"] == pytest.approx(math.exp(39 / 7))
    assert report["bits_per_byte"] == pytest.approx(39 / math.log(2) / 12)


def test_the_first_token_counts_only_behind_a_special_one():
    model = MODELS["lm2"]
    ids = TOKENIZER(TEXT)["input_ids"]
    losses = file_losses(model, TOKENIZER, ENCODER, [TEXT], None)
    assert sum(losses.counts) == len(ids) - 1
    assert losses.num_bytes == len(TEXT.encode()) - len(TOKENIZER.decode(ids[:1]).encode())
    assert math.fsum(losses.sums) == pytest.approx(losses_of_one_forward(model, ids).sum(), rel=1e-5)

    special = load_tokenizer("builtin")
    special.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> <|pad|> $A <|endoftext|>",
        special_tokens=[(name, special.convert_tokens_to_ids(name)) for name in ("<|endoftext|>", "<|pad|>")],
    )
    start = starting_tokens(special)
    assert start == special.convert_tokens_to_ids(["<|endoftext|>", "<|pad|>"])
    assert starting_tokens(TOKENIZER) == []
    for window in (None, Window(30, 7)):
        losses = file_losses(model, special, TextEncoder(special, "special"), text_blocks(io.StringIO(TEXT), 9), window)
        assert (sum(losses.counts), losses.num_bytes) == (len(ids), len(TEXT.encode()))
        assert losses.counts[0] == 0
        if window is None:
            expected = losses_of_one_forward(model, start + ids)[1:].sum()
            assert math.fsum(losses.sums) == pytest.approx(expected, rel=1e-5)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("models")
    uniform = tiny_lm2()
    torch.nn.init.zeros_(uniform.lm_head.weight)
    models = {**MODELS, "uniform": uniform}
    return {name: save(model, place / name) for name, model in models.items()}


def invoke(*arguments: object):
    return CliRunner().invoke(evaluate, ["perplexity", *map(str, arguments)])


def test_the_command_prints_and_writes_the_numbers(folders, tmp_path):
    texts = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for number, path in enumerate(texts, start=1):
        path.write_bytes(TEXT.encode() * number)
    result = invoke(folders["uniform"], *texts, "--json", tmp_path / "out.json")
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "out.json").read_text())
    num_tokens = [count_tokens(path, ENCODER) - 1 for path in texts]
    for entry, tokens in zip([*report["files"], report["all"]], [*num_tokens, sum(num_tokens)], strict=True):
        assert entry["tokens"] == tokens
        assert entry["perplexity"] == pytest.approx(2048, rel=1e-5)
        assert entry["bits_per_byte"] == pytest.approx(11 * tokens / entry["bytes"], rel=1e-5)
        assert sum(point["tokens"] for point in entry["curve"]) == tokens
        assert all(point["loss"] == pytest.approx(11 * math.log(2), rel=1e-5) for point in entry["curve"])
    assert "2048.0" in result.stdout
    assert f"{sum(num_tokens):,}" in result.stdout


def test_a_text_beyond_the_positions_needs_a_window_unless_the_state_is_bounded(folders, tmp_path):
    text = tmp_path / "long.txt"
    text.write_text("word " * (POSITIONS + 20))
    refused = invoke(folders["llama"], text)
    assert str(refused.exception).endswith("give --window 512 to read it in windows that slide")
    assert "perplexity" not in refused.stdout
    for arguments in ((folders["llama"], text, "--window", 100), (folders["lm2"], text)):
        result = invoke(*arguments)
        assert result.exit_code == 0, result.output


def test_bad_input_is_refused_before_any_work(folders, tmp_path):
    text, empty, binary, packed = (tmp_path / name for name in ("a.txt", "empty.txt", "b.txt", "c.txt.xz"))
    text.write_text("some words\n")
    empty.write_text("")
    binary.write_bytes(b"\xff\xfe\x00")
    packed.write_bytes(b"no archive")
    for arguments, message in (
        ((folders["lm2"], tmp_path / "none.txt"), "none.txt is no file"),
        ((folders["lm2"], text, empty), "empty.txt is empty"),
        ((folders["lm2"], text, binary), "b.txt is no UTF-8 text"),
        ((folders["lm2"], text, packed), "c.txt.xz is no UTF-8 text, or damaged"),
        ((folders["lm2"], text, "--stride", 3), "--stride has no effect without --window"),
        ((folders["lm2"], text, "--window", 3, "--stride", 3), "1 <= stride < window"),
        ((folders["llama"], text, "--window", 513), "--window is 513, but the model's max_position_embeddings is 512"),
        ((folders["lm2"], text, "--json", text), "--json is"),
    ):
        result = invoke(*arguments)
        assert isinstance(result.exception, ValueError), result.output
        assert message in str(result.exception)
    assert text.read_text() == "some words\n"
