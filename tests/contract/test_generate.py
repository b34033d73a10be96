"""generate(): the numbers of every way to generate are those of one full forward. Tokens could agree by luck."""

import copy

import pytest
import torch
from contract.helpers import assert_close, assert_memory_matters, logits_of, pad, random_ids
from contract.subjects import LONGEST, SEGMENT, SUBJECT, subjects

from lm2.models.lm2.modeling_lm2 import PREFILL_SEGMENTS

PROMPT = SEGMENT + 3
NEW = 2 * SEGMENT + 2
OUTPUTS = {"return_dict_in_generate": True, "output_logits": True}


def assert_logits_of_one_forward(model, output, num_prompt_tokens: int) -> None:
    """Each step's logits, [B, V], are those that one forward over prompt and answer gives there."""
    full = logits_of(model, output.sequences, use_cache=False)
    assert_close(torch.stack(output.logits, dim=1), full[:, num_prompt_tokens - 1 : -1])


@pytest.mark.parametrize("use_cache", [True, False], ids=["cache", "no cache"])
@subjects("is_float32")
def test_greedy(subject, use_cache):
    model = subject.make()
    if subject.has_memory:
        assert_memory_matters(subject, model, random_ids(2, LONGEST))
    output = model.generate(random_ids(2, PROMPT), max_new_tokens=NEW, do_sample=False, use_cache=use_cache, **OUTPUTS)
    assert output.sequences.shape == (2, PROMPT + NEW)
    assert_logits_of_one_forward(model, output, PROMPT)
    assert torch.equal(output.sequences[:, PROMPT:], torch.stack(output.logits, dim=1).argmax(-1))


@subjects("is_float32")
def test_sampling(subject):
    model = subject.make()
    sampled = []
    for _ in range(2):
        torch.manual_seed(3)
        sampled.append(model.generate(random_ids(2, PROMPT), max_new_tokens=NEW, do_sample=True, top_k=0, **OUTPUTS))
        assert_logits_of_one_forward(model, sampled[-1], PROMPT)
    assert torch.equal(sampled[0].sequences, sampled[1].sequences)


@subjects("is_float32")
def test_beam_search(subject):
    model = subject.make()
    ids = random_ids(2, PROMPT)
    how = {"max_new_tokens": SEGMENT, "num_beams": 4, "num_return_sequences": 2, "do_sample": False}
    output = model.generate(ids, output_scores=True, **how, **OUTPUTS)
    without_cache = model.generate(ids, use_cache=False, output_scores=True, **how, **OUTPUTS)
    assert_close(output.sequences_scores, without_cache.sequences_scores)
    # A beam's score is its mean log-probability; and beams must have moved between rows for this to prove anything.
    log_probabilities = logits_of(model, output.sequences, use_cache=False)[:, PROMPT - 1 : -1].log_softmax(-1)
    of_tokens = log_probabilities.gather(-1, output.sequences[:, PROMPT:, None])[..., 0]
    assert_close(output.sequences_scores, of_tokens.mean(1))
    first_row = torch.arange(2).repeat_interleave(2)[:, None] * 4
    assert not torch.equal(output.beam_indices[:, 1:], first_row.expand(-1, output.beam_indices.shape[1] - 1))


@subjects("is_float32")
def test_a_batch_with_left_padding(subject):
    model = subject.make()
    rows = [random_ids(1, length, seed=length)[0] for length in (2, PROMPT, SEGMENT)]
    ids, mask = pad(rows, [PROMPT - len(row) for row in rows], PROMPT)
    output = model.generate(ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False, **OUTPUTS)
    for index, row in enumerate(rows):
        text = output.sequences[index, PROMPT - len(row) :]
        of_row = torch.stack([logits[index] for logits in output.logits])
        assert_close(of_row, logits_of(model, text[None])[0, len(row) - 1 : -1])


@pytest.mark.parametrize("chunk", [1, 5, SEGMENT])
@subjects("is_float32", "has_memory")
def test_prefill_in_chunks(subject, chunk):
    model = subject.make()
    output = model.generate(
        random_ids(2, LONGEST), max_new_tokens=4, do_sample=False, prefill_chunk_size=chunk, **OUTPUTS
    )
    assert_logits_of_one_forward(model, output, LONGEST)


def test_a_long_prompt_is_read_in_pieces_of_bounded_length(monkeypatch):
    model = SUBJECT["default"].make()
    longest_call = 0
    forward = model.model.forward

    def watched(input_ids, **arguments):
        nonlocal longest_call
        longest_call = max(longest_call, input_ids.shape[1])
        return forward(input_ids, **arguments)

    monkeypatch.setattr(model.model, "forward", watched)
    num_prompt_tokens = (2 * PREFILL_SEGMENTS + 1) * SEGMENT + 3
    output = model.generate(random_ids(2, num_prompt_tokens), max_new_tokens=4, do_sample=False, **OUTPUTS)
    assert longest_call == PREFILL_SEGMENTS * SEGMENT
    assert_logits_of_one_forward(model, output, num_prompt_tokens)


@pytest.mark.parametrize("gives", ["all ids", "new ids"])
@subjects("is_float32", "has_memory")
def test_turns_on_one_cache(subject, gives):
    model = subject.make()
    cache = subject.new_cache(model)
    text = torch.empty(2, 0, dtype=torch.long)
    num_read = 0
    for turn, length in enumerate((PROMPT, 3, 2 * SEGMENT)):
        text = torch.cat([text, random_ids(2, length, seed=turn)], dim=1)
        # The last token of an answer was never fed back, so it is new as well.
        ids = text if gives == "all ids" else text[:, num_read:]
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(text),
            cache=cache,
            max_new_tokens=SEGMENT,
            do_sample=False,
            **OUTPUTS,
        )
        assert output.cache is cache
        answer = output.sequences[:, ids.shape[1] :]
        full = logits_of(model, torch.cat([text, answer], dim=1), use_cache=False)
        assert_close(torch.stack(output.logits, dim=1), full[:, text.shape[1] - 1 : -1])
        text = torch.cat([text, answer], dim=1)
        num_read = text.shape[1] - 1
        assert cache.num_tokens.tolist() == [num_read, num_read]


@subjects("is_float32", "has_memory")
def test_turns_of_rows_of_different_length(subject):
    model = subject.make()
    cache = subject.new_cache(model)
    texts = [torch.empty(0, dtype=torch.long)] * 2
    pending = [torch.empty(0, dtype=torch.long)] * 2
    mask = torch.empty(2, 0, dtype=torch.long)
    for turn, lengths in enumerate(((3, PROMPT), (SEGMENT, 2))):
        rows = [
            torch.cat([left_over, random_ids(1, length, seed=7 * turn + length)[0]])
            for left_over, length in zip(pending, lengths, strict=True)
        ]
        width = max(len(row) for row in rows)
        ids, new_mask = pad(rows, [width - len(row) for row in rows], width)
        mask = torch.cat([mask, new_mask], dim=1)
        output = model.generate(ids, attention_mask=mask, cache=cache, max_new_tokens=5, do_sample=False, **OUTPUTS)
        answer = output.sequences[:, width:]
        for index, row in enumerate(rows):
            known = torch.cat([texts[index], row])
            full = logits_of(model, torch.cat([known, answer[index]])[None])[0]
            assert_close(torch.stack([step[index] for step in output.logits]), full[len(known) - 1 : -1])
            texts[index] = torch.cat([known, answer[index, :-1]])
        pending = list(answer[:, -1:])
        mask = torch.cat([mask, torch.ones(2, answer.shape[1] - 1, dtype=torch.long)], dim=1)


@subjects("is_float32", "has_memory")
def test_beam_search_on_a_cache_that_was_repeated_for_the_beams(subject):
    model = subject.make()
    text, question = random_ids(1, PROMPT), random_ids(1, 3, seed=2)
    cache = subject.new_cache(model)
    logits_of(model, text, cache=cache)
    how = {"max_new_tokens": SEGMENT, "num_beams": 3, "do_sample": False, "output_scores": True}
    full_text = torch.cat([text, question], dim=1)
    expected = model.generate(full_text, **how, **OUTPUTS).sequences_scores
    for _ in range(2):
        own = copy.deepcopy(cache)
        own.batch_repeat_interleave(3)
        assert_close(model.generate(full_text, cache=own, **how, **OUTPUTS).sequences_scores, expected)


@subjects("has_memory")
def test_what_cannot_work_is_refused_with_a_reason(subject):
    model = subject.make()
    ids = random_ids(1, PROMPT)
    for implementation in ("static", "offloaded", "quantized", "offloaded_static"):
        with pytest.raises(ValueError, match=f"cache_implementation='{implementation}' is not supported"):
            model.generate(ids, max_new_tokens=2, cache_implementation=implementation)
    with pytest.raises(ValueError, match="stateful"):
        model.generate(ids, max_new_tokens=2, assistant_model=subject.make())
    with pytest.raises(ValueError, match="stateful"):
        model.generate(ids, max_new_tokens=2, prompt_lookup_num_tokens=2)
    other_cache = SUBJECT["llama"].new_cache(model)
    ours = type(subject.new_cache(model)).__name__
    with pytest.raises(ValueError, match=rf"cache is a DynamicCache.*use {ours}"):
        model.generate(ids, max_new_tokens=2, cache=other_cache)


def test_bf16_generates():
    model = SUBJECT["bf16"].make()
    output = model.generate(random_ids(2, PROMPT), max_new_tokens=NEW, do_sample=False, **OUTPUTS)
    assert output.sequences.shape == (2, PROMPT + NEW)
    assert bool(torch.isfinite(torch.stack(output.logits)).all())
