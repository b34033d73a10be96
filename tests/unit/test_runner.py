"""Asking models: batches, pieces and truncation change no answer, and what cannot be asked is refused."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from tiny_models import POSITIONS, SEGMENT, tiny_llama, tiny_lm2

from lm2.data.tokenizer import load_tokenizer
from lm2.eval import runner
from lm2.eval.runner import (
    Decoding,
    Ending,
    answer,
    check_vocabulary,
    decode,
    keeps_bounded_state,
    max_prompt_tokens,
    read,
    regroup,
)

LENGTHS = (1, SEGMENT - 1, SEGMENT, 3 * SEGMENT + 5, 2 * SEGMENT)
NEW = 8
TOLERANCE = 1e-4

MODELS = {
    "lm2": tiny_lm2(),
    "lm2 paper": tiny_lm2(memory_design="paper", num_memory_slots=32, num_memory_heads=1),
    "lm2 with a window over the whole text": tiny_lm2(attention_window=None),
    "lm2 without memory": tiny_lm2(memory_layers=0),
    "llama": tiny_llama(),
}
BOUNDED = ["lm2", "lm2 paper"]
TOKENIZER = load_tokenizer("builtin")


@pytest.fixture
def short_calls(monkeypatch) -> None:
    """Several calls for a row."""
    monkeypatch.setattr(runner, "CALL_TOKENS", 1)


def random_rows(lengths=LENGTHS, seed: int = 1) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(2, 2048, length, dtype=np.int32) for length in lengths]


def cut(row: np.ndarray, size: int = 7) -> list[np.ndarray]:
    return [row[first : first + size] for first in range(0, len(row), size)]


@torch.no_grad()
def last_logits(model, row) -> torch.Tensor:
    return model(torch.tensor(np.array(row, dtype=np.int64))[None], use_cache=False).logits[0, -1]


def greedy(model, row, count: int = NEW) -> list[int]:
    """One full forward for every token."""
    ids = row.tolist()
    for _ in range(count):
        ids.append(int(last_logits(model, ids).argmax()))
    return ids[len(row) :]


@contextmanager
def watch(model, after_call=lambda call: None):
    """How many columns each call of the model has had."""
    widths = []

    def note(module, args, kwargs):
        widths.append((args[0] if args else kwargs["input_ids"]).shape[1])
        after_call(widths)

    hook = model.register_forward_pre_hook(note, with_kwargs=True)
    yield widths
    hook.remove()


@pytest.mark.parametrize(("size", "first"), [(1, None), (5, None), (4, 9), (100, None), (3, 100)])
def test_regrouped_pieces_are_the_same_tokens(size, first):
    tokens = np.arange(41, dtype=np.int32)
    pieces = [tokens[:3], tokens[3:3], tokens[3:20], tokens[20:21], tokens[21:]]
    got = list(regroup(pieces, size, first))
    assert np.array_equal(np.concatenate(got), tokens)
    sizes = [len(piece) for piece in got]
    starts = size if first is None else first
    assert sizes[0] == min(starts, 41)
    assert all(length == size for length in sizes[1:-1])
    assert 0 < sizes[-1] <= max(size, starts)


@pytest.mark.usefixtures("short_calls")
@pytest.mark.parametrize("name", BOUNDED)
def test_pieces_of_a_ragged_batch_give_the_logits_of_one_forward(name):
    model, rows = MODELS[name], random_rows()
    reading = read(model, [cut(row) for row in rows])
    assert reading.num_tokens == list(LENGTHS) == reading.state.num_tokens.tolist()
    for logits, row in zip(reading.logits_BV, rows, strict=True):
        torch.testing.assert_close(logits, last_logits(model, row), atol=TOLERANCE, rtol=0)
        # Else the memory would not matter, and the test prove little.
        if len(row) > SEGMENT:
            assert (logits - last_logits(model, row[-(len(row) % SEGMENT or SEGMENT) :])).abs().max() > 0.1


@pytest.mark.usefixtures("short_calls")
def test_reading_goes_on_where_it_stopped():
    model, [row] = MODELS["lm2"], random_rows([50])
    first = read(model, [[row[:30]]])
    second = read(model, [[row[30:]]], first.state)
    torch.testing.assert_close(second.logits_BV[0], last_logits(model, row), atol=TOLERANCE, rtol=0)


def test_a_long_prompt_is_never_whole_in_memory(monkeypatch):
    monkeypatch.setattr(runner, "CALL_TOKENS", 4 * SEGMENT)
    model, rows = MODELS["lm2"], random_rows([200, 170])
    taken, ahead = [0, 0], []

    def pieces(index):
        for piece in cut(rows[index]):
            taken[index] += len(piece)
            yield piece

    with watch(model, lambda call: ahead.append(max(taken) - sum(call_widths))) as call_widths:
        read(model, [pieces(0), pieces(1)])
    assert call_widths == [2 * SEGMENT] * 6 + [8]
    # Of what is yet to be read, each call and at most one piece.
    assert max(ahead) < 7


@pytest.mark.usefixtures("short_calls")
@pytest.mark.parametrize("name", MODELS)
def test_a_batch_gets_what_each_row_gets_alone(name):
    model, rows = MODELS[name], random_rows()
    together = answer(model, TOKENIZER, [cut(row) for row in rows], Decoding(NEW))
    expected = [greedy(model, row) for row in rows]
    assert [reply.text for reply in together] == [TOKENIZER.decode(ids, skip_special_tokens=True) for ids in expected]
    assert len({tuple(ids) for ids in expected}) == len(rows)
    assert [reply.prompt_tokens for reply in together] == list(LENGTHS)
    alone = [answer(model, TOKENIZER, [[row]], Decoding(NEW))[0] for row in rows]
    assert alone == together


@pytest.mark.parametrize("name", ["lm2", "llama"])
def test_a_text_ends_answers_row_by_row_and_saves_calls(name):
    model, rows = MODELS[name], random_rows()
    free = [greedy(model, row) for row in rows]
    end = TOKENIZER.decode(free[0][2:3])
    answers = answer(model, TOKENIZER, [[row] for row in rows], Decoding(NEW, ends=(end,)))
    for reply, ids in zip(answers, free, strict=True):
        wanted = next((n for n in range(1, NEW) if end in TOKENIZER.decode(ids[:n])), NEW)
        assert reply.text == TOKENIZER.decode(ids[:wanted], skip_special_tokens=True)
    assert answers[0].text.endswith(end)
    with watch(model) as widths:
        [reply] = answer(model, TOKENIZER, [[rows[0]]], Decoding(NEW, ends=(end,)))
    # The prompt, and each token of the answer but the last.
    count = next(n for n in range(1, NEW) if end in TOKENIZER.decode(free[0][:n]))
    assert len(widths) == count < NEW


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("name", ["lm2", "llama"])
def test_the_end_of_text_token_of_the_model_ends_an_answer(name, many, monkeypatch):
    model, rows = MODELS[name], random_rows()
    free = [greedy(model, row) for row in rows]
    token = free[3][4]
    monkeypatch.setattr(model.generation_config, "eos_token_id", [token, 5] if many else token)
    answers = answer(model, TOKENIZER, [[row] for row in rows], Decoding(NEW))
    for reply, ids in zip(answers, free, strict=True):
        kept = ids[: ids.index(token) + 1] if token in ids else ids
        assert reply.text == TOKENIZER.decode(kept, skip_special_tokens=True)


def test_what_a_folder_recommends_for_chats_changes_no_answer(monkeypatch):
    model, rows = MODELS["llama"], random_rows()
    ask = lambda: answer(model, TOKENIZER, [[row] for row in rows], Decoding(NEW))  # noqa: E731
    before = ask()
    for name, value in (("repetition_penalty", 9.0), ("do_sample", True), ("min_new_tokens", 5), ("num_beams", 3)):
        monkeypatch.setattr(model.generation_config, name, value)
    own = model.generation_config
    assert ask() == before
    assert model.generation_config is own


@pytest.mark.parametrize("name", ["lm2", "llama"])
def test_truncation_keeps_the_end_and_says_so(name):
    model, rows = MODELS[name], random_rows([40, 5, 12])
    kept = answer(model, TOKENIZER, [cut(row) for row in rows], Decoding(NEW), truncate_tokens=12)
    whole = answer(model, TOKENIZER, [[row[-12:]] for row in rows], Decoding(NEW))
    assert [reply.text for reply in kept] == [reply.text for reply in whole]
    assert [(reply.prompt_tokens, reply.truncated_tokens) for reply in kept] == [(12, 28), (5, 0), (12, 0)]


def test_more_than_the_positions_is_refused_unless_the_state_is_bounded():
    prompts = [random_rows([POSITIONS - NEW + 1])]
    assert max_prompt_tokens(MODELS["llama"], NEW) == POSITIONS - NEW
    assert max_prompt_tokens(MODELS["lm2"], NEW) is None
    for name in ("llama", "lm2 without memory", "lm2 with a window over the whole text"):
        with pytest.raises(ValueError, match="a prompt has 505 tokens, but the model has positions for 504"):
            answer(MODELS[name], TOKENIZER, prompts, Decoding(NEW))
    assert answer(MODELS["lm2"], TOKENIZER, prompts, Decoding(NEW))[0].prompt_tokens == 505
    with pytest.raises(ValueError, match="max_new_tokens is 512, but the model's max_position_embeddings is 512"):
        max_prompt_tokens(MODELS["llama"], 512)


@pytest.mark.parametrize("name", ["lm2", "llama"])
def test_an_empty_prompt_is_refused(name):
    with pytest.raises(ValueError, match="a prompt is empty"):
        answer(MODELS[name], TOKENIZER, [random_rows([3]), []], Decoding(NEW))


def test_which_models_keep_a_bounded_state():
    assert [name for name, model in MODELS.items() if keeps_bounded_state(model)] == BOUNDED


def test_a_tokenizer_of_another_vocabulary_is_refused():
    check_vocabulary(MODELS["llama"], TOKENIZER)
    with pytest.raises(ValueError, match="token id 2047, but the model's vocab_size is 2000"):
        check_vocabulary(tiny_llama(vocab_size=2000), TOKENIZER)


@pytest.mark.parametrize("name", ["lm2", "llama"])
def test_draws_follow_the_seed_and_one_candidate_is_greedy(name):
    model, rows = MODELS[name], random_rows([20])

    def ask(seed: int, **options) -> str:
        torch.manual_seed(seed)
        return answer(model, TOKENIZER, [rows], Decoding(NEW, temperature=1.5, **options))[0].text

    assert ask(0) == ask(0) != ask(1)
    likeliest = answer(model, TOKENIZER, [rows], Decoding(NEW))[0].text
    assert ask(0, top_k=1) == ask(1, top_p=1e-9) == likeliest != ask(0)


def test_draws_have_the_probabilities_of_the_temperature():
    torch.manual_seed(0)
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    logits = (2 * probabilities.log()).expand(20_000, 4)
    for options, expected in (
        ({}, probabilities),
        ({"top_k": 2}, torch.tensor([0.625, 0.375, 0, 0])),
        ({"top_p": 0.9}, torch.tensor([0.5, 0.3, 0.15, 0]) / 0.95),
    ):
        counts = torch.bincount(Decoding(1, temperature=2.0, **options).choose(logits), minlength=4)
        torch.testing.assert_close(counts / 20_000, expected, atol=0.015, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"temperature": -1}, "temperature is -1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_k": 3}, "top_k is 3, but has no effect at temperature 0"),
        ({"top_p": 0.5}, "top_p is 0.5, but has no effect at temperature 0"),
        ({"temperature": 1.0, "top_k": 0}, "top_k is 0"),
        ({"temperature": 1.0, "top_p": 1.5}, "top_p is 1.5"),
    ],
)
def test_decoding_out_of_range_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Decoding(**{"max_new_tokens": 1, **options})


def test_the_state_after_decoding_has_all_but_the_last_token():
    model, [row] = MODELS["lm2"], random_rows([20])
    reading = read(model, [[row]])
    [ids] = decode(model, reading, Decoding(5), Ending(model, TOKENIZER, ()))
    assert ids == greedy(model, row, 5)
    assert reading.state.num_tokens.tolist() == [24]
